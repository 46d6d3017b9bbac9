"""What a claim of differential privacy has to say, item by item, and whom it trusts.

The items are those of Ponomareva et al. (2023), section 5.3.3, sorted into the layers of NIST SP 800-226.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, guarantees_of, terms_of
from privfed.audit.evidence.judgement import Layer
from privfed.privacy.accounting import statements
from privfed.privacy.ledger_report import verify_ledger

SETTINGS_OF = {
    "none": "none: nothing is noised",
    "gaussian": "central: the server adds Gaussian noise to each sum",
    "adaptive": "central: the server adds Gaussian noise to each sum, and the clip norm follows a noised quantile",
    "tree": "central: the server adds noise that is correlated over rounds (DP-FTRL, tree)",
    "banded": "central: the server adds noise that is correlated over rounds (DP-FTRL, banded)",
    "discrete_gaussian": "distributed: clients bring discrete Gaussian noise, under masks",
    "skellam": "distributed: clients bring Skellam noise, under masks",
    "local": "local: each client noises its own update",
    "dp_sgd": "local: each client noises every step of its own training (DP-SGD)",
}


def statements_of(m: Material) -> list[ev.Statement]:
    """The reporting items, filled in from the run."""
    return [ev.Statement(layer=layer, item=item, says=says) for layer, item, says in _items(m)]


def _items(m: Material) -> Iterator[tuple[Layer, str, str]]:
    e, settings, terms = m.experiment, m.experiment.settings, terms_of(m)
    privacy, ledger = settings.privacy, verify_ledger(m.folder.ledger)
    yield "guarantee", "Setting", SETTINGS_OF[privacy.mechanism]
    formal = " ".join(statements(guarantees_of(m))) if guarantees_of(m) else "ε = ∞ against everybody"
    yield "guarantee", "Formal statement", formal
    yield "guarantee", "Accounting", f"{terms['accountant']}; recomputed from the ledger, not from the settings"
    yield (
        "guarantee",
        "What is covered",
        f"this training with every attempt at it ({ledger.attempts}; {ledger.spent} releases in all), and not the "
        "choice of its settings",
    )
    yield "guarantee", "What is released", "every broadcast model of every round, and the final one"
    yield (
        "unit",
        "Unit of privacy",
        "a client with all of its examples" if terms["unit"] == "client" else "one example",
    )
    yield "unit", "Neighbouring relation", terms["neighbouring"]
    sizes = e.population.sizes
    yield (
        "unit",
        "Clients",
        f"{e.population.clients}, with {sizes.min() if len(sizes) else 0} to {sizes.max(initial=0)} examples each",
    )
    yield "implementation", "Mechanism", _mechanism(m)
    yield "implementation", "Cohorts", f"{e.sampling.describe()}; drawn by the object that the accountant is told"
    yield "implementation", "Randomness", e.streams.describe()
    yield "implementation", "Aggregation", f"mode {settings.secure_aggregation.mode}"
    yield "implementation", "Checking it", "privfed verify, on this folder, recomputes it; the code is open"
    for trust in trust_of(m):
        yield "trust", trust.who, f"trusted to {trust.trusted_to}"


def _mechanism(m: Material) -> str:
    privacy, terms = m.experiment.settings.privacy, terms_of(m)
    if not math.isfinite(terms["epsilon"]):
        return "none"
    noise = terms["noise_multiplier"]
    strength = "varying by round" if noise is None else f"{noise:.5g}"
    return f"{privacy.mechanism}, clip norm {privacy.clip_norm:g}, noise multiplier {strength}"


def trust_of(m: Material) -> list[ev.TrustAssumption]:
    """Whom the promise relies on, and what is left of it without them."""
    settings = m.experiment.settings
    mechanism, masking = settings.privacy.mechanism, settings.secure_aggregation
    found = []
    if mechanism in ("gaussian", "adaptive", "tree", "banded"):
        found.append(
            (
                "The server",
                "draw the noise it should, add it before any model leaves, and forget the sums before it",
                "ε = ∞ for clients and release as well",
            )
        )
    if masking.mode == "protocol":
        found += [
            (
                "Whoever gives out identity keys",
                "let no server invent clients",
                "a server that fills the directory unmasks whom it likes",
            ),
            (
                f"All but {masking.colluders} clients of a cohort",
                "not share their secrets with the server",
                "sums of fewer clients, down to single updates",
            ),
        ]
    elif masking.mode == "bfv":
        found += [
            (
                "The key holder",
                "decrypt nothing but the sum of a cohort, and share its key with nobody",
                "each client's update is exposed to whoever has key and ciphertexts",
            ),
            (
                "The server",
                "have nothing decrypted but the sum of all that arrived",
                "any client's update it likes: the key holder cannot tell a sum from it",
            ),
        ]
    elif mechanism not in ("local", "dp_sgd"):
        found.append(
            (
                "The server",
                "not look at single updates, which reach it in the clear",
                "each client's update is exposed",
            )
        )
    if mechanism in ("discrete_gaussian", "skellam"):
        found.append(
            (
                "The clients",
                "add their share of the noise",
                "the noise of those that did not is missing from the sum",
            )
        )
    if settings.privacy.randomness == "research":
        found.append(
            ("Everybody who knows the seed", "not draw the noise again and subtract it", "ε = ∞ against them")
        )
    found.append(
        (
            "Clients",
            "train on their own data only, and clip",
            "poisoned models; privacy of the others stays as stated",
        )
    )
    return [ev.TrustAssumption(who=who, trusted_to=to, otherwise=otherwise) for who, to, otherwise in found]


def unnoised_of(m: Material) -> Iterator[ev.UnnoisedQuantity]:
    """What this run and its report publish of clients' data beside the promise."""
    rounds = [report.metrics for report in m.result.reports]
    trained = [result for result in (m.baseline, m.control) if result is not None]
    for there, name, why in (
        (
            any(x.train_accuracy is not None for x in rounds),
            "training loss and accuracy",
            "means over the cohort's own examples; seen by the server, written to metrics",
        ),
        (
            any(x.clipped_fraction is not None or x.signal_to_noise is not None for x in rounds),
            "clipped fraction, update norms, signal-to-noise",
            "computed from the updates before the noise",
        ),
        (
            bool(rounds),
            "cohort, survivors, non-finite clients, aborted rounds",
            "say who took part; an abort depends on the cohort",
        ),
        (
            True,
            "accuracy client by client",
            "computed on clients' own examples for this report; report.json has the worst by number",
        ),
        (
            bool(trained),
            "accuracy of the training without protection, or without canaries",
            "of models that no ε covers, trained for this report; the models themselves are not released",
        ),
        (m.membership is not None, "membership scores", "computed on the training examples for this report"),
        (
            any(exposure.outcome.original is not None for exposure in m.exposures),
            "originals in the gallery",
            "training examples, shown to judge reconstructions",
        ),
    ):
        if there:
            yield ev.UnnoisedQuantity(name=name, why=why)
