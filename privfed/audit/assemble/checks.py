"""Common mistakes with differential privacy, looked for in this run: passed, failed, or not checked.

The list follows the hazards of NIST SP 800-226 and section 5 of Ponomareva et al. (2023). A check that needs what
no run shows is "not checked" rather than passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, guarantees_of, terms_of
from privfed.audit.evidence.judgement import Layer
from privfed.privacy.ledger_report import spent_releases
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling

Result = Literal["passed", "failed", "not checked"]
Found = tuple[Result, str]
LARGE_EPSILON = 10.0
"""Above it a guarantee says little (Ponomareva et al. 2023, section 5.2)."""
DIVISOR = "The sum is divided by a number that does not depend on who came"
FALSE_ALARM = 1e-4
"""Chance that cohorts drawn as claimed are called suspicious."""


def checks_of(m: Material, canaries: ev.Canaries | None, sweep: ev.SweepEvidence | None) -> list[ev.PitfallCheck]:
    """The whole list, in the order of the layers."""
    promised = math.isfinite(terms_of(m)["epsilon"])

    def measured(found: Callable[[Material], Found]) -> Found:
        return found(m) if promised else ("not checked", "nothing is promised in this run")

    rows: list[tuple[Layer, str, Found]] = [
        ("guarantee", "ε is small enough to mean something", _small_epsilon(m)),
        ("guarantee", "δ is below one in the number of clients", measured(_small_delta)),
        ("guarantee", "What was released twice, or again after a crash, counts", measured(_replays)),
        ("guarantee", "No two values were released under the same noise", measured(_same_noise)),
        ("guarantee", "Choosing the settings cost no privacy, or its cost is stated", _search(sweep)),
        ("unit", "All of a client's data counts as one", _unit(m)),
        ("unit", "One person is one client", ("not checked", "who is behind a client is not in the data")),
        ("implementation", "Cohorts vary as the sampling scheme says", measured(lambda m: _cohorts(m, canaries))),
        ("implementation", DIVISOR, measured(lambda m: _divisor(m, canaries))),
        ("implementation", "No update in the recorded sums is longer than the clip norm", measured(_clipped)),
        ("implementation", "The noise is as strong as accounted", _canary(canaries)),
        ("implementation", "The noise cannot be drawn again by who knows a seed", measured(_secret_noise)),
        ("implementation", "The noise has no floating-point holes", measured(_discrete)),
        ("implementation", "Stopping early looks at nobody's training data", _stopping(m)),
        ("implementation", "Updates that are not finite never reach the model", _finite(m)),
        ("trust", "Nobody sees single updates", _masked(m)),
        ("trust", "The server itself is held off by noise", _server(m)),
        ("trust", "Clients that vanish do not thin the noise below the claim", measured(_survivors)),
        ("trust", "Every published figure is noised", _unnoised()),
        ("trust", "Timing, message sizes and logs tell nothing", ("not checked", "no side channel was measured")),
    ]
    return [ev.PitfallCheck(layer=layer, name=name, result=r, why=why) for layer, name, (r, why) in rows]


def _verdict(holds: bool, why: str) -> Found:
    return ("passed" if holds else "failed"), why


def _small_epsilon(m: Material) -> Found:
    epsilon = terms_of(m)["epsilon"]
    if not math.isfinite(epsilon):
        return "failed", "ε = ∞ against whoever sees the released model"
    return _verdict(
        epsilon <= LARGE_EPSILON, f"{epsilon:.3g} against whoever sees the released model; up to 10 is fair"
    )


def _small_delta(m: Material) -> Found:
    delta, clients = terms_of(m)["delta"], m.experiment.population.clients
    return _verdict(delta < 1 / clients, f"δ = {delta:g}, 1 / clients = {1 / clients:.2g}")


def _replays(m: Material) -> Found:
    _, spent = spent_releases(m.folder.ledger)
    rounds = 1 if m.experiment.mechanism.whole_run else len(m.result.reports)
    return _verdict(len(spent) >= rounds, f"{len(spent)} releases on the ledger, {rounds} needed for this model")


def _same_noise(m: Material) -> Found:
    _, spent = spent_releases(m.folder.ledger)
    bare = sum(any(seen.release.noise_multiplier == 0 for seen in one) for one in spent)
    return _verdict(not bare, f"{bare} releases on the ledger share their noise with another")


def _search(sweep: ev.SweepEvidence | None) -> Found:
    if sweep is None:
        return (
            "not checked",
            "whether settings were chosen by results on these clients is not known (--sweep tells)",
        )
    return _verdict(sweep.same_data, f"{sweep.trials} trials are composed below")


def _unit(m: Material) -> Found:
    if terms_of(m)["unit"] == "client":
        return "passed", "an update is clipped and noised as a whole"
    largest = int(m.experiment.population.sizes.max(initial=0))
    return "failed", f"the unit is one example; a client with {largest} of them has ε = ∞ as a whole"


def _cohorts(m: Material, canaries: ev.Canaries | None) -> Found:
    """Dispersion of a binomial: Σ(size - nq)² / (nq(1-q)) is about χ² with one degree a round."""
    sizes = np.array([report.metrics.cohort for report in m.result.reports], float)
    scheme, clients = m.experiment.sampling, m.experiment.population.clients
    if canaries is not None:
        return _of_the_audit(canaries, "cohorts")
    if isinstance(scheme, PoissonSampling) and scheme.rate < 1:
        mean, variance = clients * scheme.rate, clients * scheme.rate * (1 - scheme.rate)
        if len(sizes) < 5 or variance < 5:
            return "not checked", "too few rounds, or too small cohorts"
        statistic = float(np.sum((sizes - mean) ** 2) / variance)
        both = 2 * min(stats.chi2.cdf(statistic, len(sizes)), stats.chi2.sf(statistic, len(sizes)))
        return _verdict(
            both > FALSE_ALARM,
            f"sizes from {sizes.min():.0f} to {sizes.max():.0f} in {len(sizes)} rounds, "
            f"dispersion {statistic / len(sizes):.2f} of a binomial's (p = {both:.2g})",
        )
    expected = scheme.size if isinstance(scheme, FixedSizeSampling) else None
    return _verdict(
        len(set(sizes)) <= 1 if expected is None else bool((sizes == expected).all()),
        f"sizes from {sizes.min(initial=clients):.0f} to {sizes.max(initial=0):.0f}",
    )


def _of_the_audit(canaries: ev.Canaries, subject: str) -> Found:
    """The audited training's own checks whose name holds ``subject``, the worst of them."""
    found = [check for check in canaries.checks if subject in check.name]
    for result in ("failed", "passed"):
        for check in found:
            if check.status == result:
                return check.status, check.finding
    return "not checked", "canaries are in the training, and its own checks did not come to it"


def _divisor(m: Material, canaries: ev.Canaries | None) -> Found:
    divisor = m.experiment.divisor
    if divisor is None:
        return "not checked", "the unit is an example: cohorts amplify nothing, so that their size is no secret"
    if canaries is not None and (audited := _of_the_audit(canaries, "divided by"))[0] != "not checked":
        return audited
    return "passed", f"by {divisor:g}, the expected cohort"


def _clipped(m: Material) -> Found:
    clip = m.experiment.settings.privacy.clip_norm
    records = m.result.transcript.records
    norms = [float(np.linalg.norm(v)) for record in records for v in record.updates.values()]
    if clip is None or not norms or m.experiment.settings.privacy.mechanism in ("adaptive", "dp_sgd"):
        return "not checked", "no round was recorded whose bound is fixed"
    # Stochastic rounding in the ring moves each coordinate by less than a step, which the noise covers.
    return _verdict(
        max(norms) <= clip * 1.001, f"longest of {len(norms)} recorded: {max(norms):.4g}, bound {clip:g}"
    )


def _canary(canaries: ev.Canaries | None) -> Found:
    if canaries is None:
        return "not checked", "no canaries were in the training"
    measured = _of_the_audit(canaries, "noise")
    if measured[0] == "failed":
        return measured
    flagged = [o.observer for o in canaries.observers if o.flagged]
    return _verdict(
        not flagged,
        f"canaries measure more than claimed against {', '.join(flagged)}"
        if flagged
        else f"{canaries.included} canaries refute no claim",
    )


def _secret_noise(m: Material) -> Found:
    secure = m.experiment.settings.privacy.randomness == "secure"
    return _verdict(secure, m.experiment.streams.describe())


def _discrete(m: Material) -> Found:
    integral = m.experiment.settings.privacy.mechanism in ("discrete_gaussian", "skellam")
    secure = m.experiment.settings.privacy.randomness == "secure"
    kind = "integers are noised" if integral else "a discrete Gaussian" if secure else "floating-point Gaussians"
    return _verdict(integral or secure, f"{kind} (Mironov 2012 attacks the low bits of real-valued noise)")


def _stopping(m: Material) -> Found:
    patience = m.experiment.settings.training.patience
    if patience is None:
        return "passed", "the number of rounds was fixed beforehand"
    return "passed", f"patience {patience} looks at held-out examples, which no client trained on"


def _finite(m: Material) -> Found:
    dropped = sum(report.metrics.non_finite for report in m.result.reports)
    return _verdict(bool(np.isfinite(m.result.weights).all()), f"{dropped} such updates were left out")


def _masked(m: Material) -> Found:
    mode = m.experiment.settings.secure_aggregation.mode
    return _verdict(mode == "protocol", f"secure_aggregation.mode = {mode}")


def _server(m: Material) -> Found:
    held = "server" in guarantees_of(m)
    return _verdict(held, "noise is in what reaches it" if held else "it holds the sums from before the noise")


def _survivors(m: Material) -> Found:
    if m.experiment.mechanism.client_noise > 0 or m.experiment.settings.privacy.mechanism in (
        "discrete_gaussian",
        "skellam",
    ):
        return "passed", "clients bring the noise; the ledger counts what the survivors of each round brought"
    return "passed", "the noise is drawn once, at the server, whoever vanishes"


def _unnoised() -> Found:
    return (
        "failed",
        'accuracy, losses and clipping figures are not; they are listed under "Published without noise"',
    )
