"""Common mistakes with differential privacy, looked for in this run: passed, failed, or not checked.

The list follows the hazards of NIST SP 800-226 and section 5 of Ponomareva et al. (2023). A check that needs what
no run shows is "not checked" rather than passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, guarantees_of, terms_of
from privfed.audit.evidence.judgement import Layer
from privfed.federated.streams import Purpose
from privfed.privacy.ledger_report import spent_releases
from privfed.privacy.mechanisms import Terms
from privfed.privacy.mechanisms.central import add_gaussian, grid_step
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling
from privfed.transcript import Kind, Observer

Result = Literal["passed", "failed", "not checked"]
Found = tuple[Result, str]
LARGE_EPSILON = 10.0
"""Above it a guarantee says little (Ponomareva et al. 2023, section 5.2)."""
DIVISOR = "The sum is divided by a number that does not depend on who came"
FALSE_ALARM = 1e-4
"""Chance that cohorts drawn as claimed are called suspicious."""


def checks_of(
    m: Material,
    canaries: ev.Canaries | None,
    sweep: ev.SweepEvidence | None,
    unnoised: Sequence[ev.UnnoisedQuantity],
) -> list[ev.PitfallCheck]:
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
        ("unit", "All of a client's data counts as one", _unit(m, canaries)),
        ("unit", "One person is one client", ("not checked", "who is behind a client is not in the data")),
        ("implementation", "Cohorts vary as the sampling scheme says", measured(lambda m: _cohorts(m, canaries))),
        ("implementation", DIVISOR, measured(lambda m: _divisor(m, canaries))),
        ("implementation", "No update in the recorded sums is longer than the clip norm", measured(_clipped)),
        ("implementation", "The noise is as strong as accounted", measured(lambda m: _noise(canaries))),
        ("implementation", "The noise cannot be drawn again by who knows a seed", measured(_secret_noise)),
        ("implementation", "The noise has no floating-point holes", measured(_discrete)),
        ("implementation", "Stopping early looks at nobody's training data", _stopping(m)),
        ("implementation", "Updates that are not finite never reach the model", _finite(m)),
        ("trust", "Nobody sees single updates", _masked(m)),
        ("trust", "The server itself is held off by noise", measured(lambda m: _server(m, canaries))),
        (
            "trust",
            "Clients that vanish do not thin the noise below the claim",
            measured(lambda m: _survivors(m, canaries)),
        ),
        ("trust", "Every published figure is noised", _unnoised(unnoised)),
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


def _unit(m: Material, canaries: ev.Canaries | None) -> Found:
    """A client's update is clipped as a whole, over all layers: in the audited training, or in recorded rounds."""
    if terms_of(m)["unit"] == "client":
        if not math.isfinite(terms_of(m)["epsilon"]):
            return "not checked", "nothing is promised in this run"
        if canaries is not None and (audited := _of_the_audit(canaries, "all layers"))[0] != "not checked":
            return audited
        return _clipped(m)
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
    return (
        "not checked",
        f"by {divisor:g}, the cohort that is wanted, as configured; canaries have the steps taken again",
    )


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


def _noise(canaries: ev.Canaries | None) -> Found:
    """By the auditor, who has the sums before the noise; canaries alone would not see that a layer has none."""
    if canaries is None:
        return "not checked", "no canaries were in the training"
    if flagged := [o.observer for o in canaries.observers if o.flagged]:
        return "failed", f"canaries measure more than claimed against {', '.join(flagged)}"
    return _of_the_audit(canaries, "noise of ")


def _secret_noise(m: Material) -> Found:
    """The source of the first round's noise is opened twice more: what comes twice can come a third time."""
    once, again = (m.experiment.streams.source(Purpose.NOISE, 1).words(8).tolist() for _ in range(2))
    return _verdict(
        once != again, f"{m.experiment.streams.describe()}; opened twice, it gave {_alike(once == again)}"
    )


def _alike(same: bool) -> str:
    return "the same numbers" if same else "other numbers"


def _discrete(m: Material) -> Found:
    """Noise drawn as the run's was lies on a grid; where clients' integers are noised, all sums are integers."""
    privacy, why = m.experiment.settings.privacy, "(Mironov 2012 attacks the low bits of real-valued noise)"
    mechanism, dimension = m.experiment.mechanism, m.experiment.model.dimension
    if mechanism.integral:
        nothing, drawn = np.zeros(dimension, np.float32), m.experiment.streams.source(Purpose.CLIENT_NOISE, 1)
        state, terms = mechanism.initialize(dimension), Terms(1, 1)
        share = mechanism.on_client(state, nothing, 0.0, terms, drawn).vector
        off = int((share != np.rint(share)).sum())
        return _verdict(not off, f"of the {len(share)} numbers of a client's noise, {off} are no integers {why}")
    secure, source = privacy.randomness == "secure", m.experiment.streams.source(Purpose.NOISE, 1)
    steps = add_gaussian(np.zeros(256), 1.0, source, secure=secure) / grid_step(1.0)
    off = int((steps != np.rint(steps)).sum())
    kind = "a discrete Gaussian" if secure else "floating-point Gaussians"
    return _verdict(not off, f"{kind}: of 256 draws {off} lie off its grid {why}")


def _stopping(m: Material) -> Found:
    training, done = m.experiment.settings.training, len(m.result.reports)
    if training.patience is None:
        if done == training.rounds:
            return "passed", f"all {done} rounds were run that were fixed beforehand"
        return "not checked", f"{done} of {training.rounds} rounds were run; patience was not why"
    used, held_out = (
        {hash(row.tobytes()) for row in part}
        for part in (m.experiment.population.features, m.experiment.population.test_features)
    )
    return _verdict(
        not used & held_out,
        f"patience {training.patience} looks at {len(held_out)} held-out examples; "
        f"clients have {len(used & held_out)} of them",
    )


def _finite(m: Material) -> Found:
    dropped = sum(report.metrics.non_finite for report in m.result.reports)
    return _verdict(bool(np.isfinite(m.result.weights).all()), f"{dropped} such updates were left out")


def _masked(m: Material) -> Found:
    """A masked upload is uniform, so that its cosine with its client's update is about Gaussian over √d."""
    mode = m.experiment.settings.secure_aggregation.mode
    if mode == "bfv":
        return "not checked", "ciphertexts are not recorded, and that key holder and server keep apart is on trust"
    if mode != "protocol":
        seen = m.result.transcript.view(Observer.SERVER, m.experiment.model).observations
        single, rounds = sum(one.kind is Kind.CLIENT_UPDATE for one in seen), len(m.result.transcript.records)
        return "failed", f"in mode {mode} they come one by one: {single} in the {rounds} recorded rounds"
    cosines = [
        float(upload @ record.updates[client])
        / max(1e-300, float(np.linalg.norm(upload) * np.linalg.norm(record.updates[client])))
        for record in m.result.transcript.records
        for client, upload in record.uploads.items()
        if client in record.updates and np.any(record.updates[client])
    ]
    if not cosines:
        return "not checked", "no round was recorded with its uploads"
    largest = max(map(abs, cosines))
    p = min(1.0, 2 * len(cosines) * float(stats.norm.sf(largest * math.sqrt(m.experiment.model.dimension))))
    return _verdict(
        p > FALSE_ALARM, f"of {len(cosines)} uploads, the largest cosine with the own update is {largest:.2g}"
    )


def _server(m: Material, canaries: ev.Canaries | None) -> Found:
    if "server" not in guarantees_of(m):
        return "failed", "it holds the sums from before the noise"
    row = next((o for o in canaries.observers if o.observer == "server"), None) if canaries else None
    if row is None or not row.estimates:
        return "not checked", "the ledger says that noise is in what reaches it; canaries measure it"
    heard = ", ".join(f"{e.low:.3g} to {e.high:.3g}" for e in row.estimates)
    return _verdict(
        not row.flagged, f"canaries measure ε from {heard} against it, where {row.claim:.3g} is claimed"
    )


def _survivors(m: Material, canaries: ev.Canaries | None) -> Found:
    """Where clients bring the noise, the ledger counts no more of them than were in each round's sum."""
    if not m.experiment.mechanism.client_noise:
        return "not checked", "does not apply: the noise is drawn once, at the server, whoever vanishes"
    if canaries is not None:
        return _of_the_audit(canaries, "the ledger counts")
    _, spent = spent_releases(m.folder.ledger)
    there = [report.metrics.survivors for report in m.result.reports if report.metrics.aborted is None]
    counted = [[seen.release.shares.survivors for seen in one if seen.release.shares] for one in spent]
    if len(counted) != len(there) or not all(counted):
        return "not checked", "the ledger holds other releases too, or counts noise in another way"
    worst = max((min(each) - survivors for each, survivors in zip(counted, there, strict=True)), default=0)
    return _verdict(
        worst <= 0, "no round counts more than were there" if worst <= 0 else f"up to {worst} too many"
    )


def _unnoised(unnoised: Sequence[ev.UnnoisedQuantity]) -> Found:
    return _verdict(
        not unnoised,
        f'{len(unnoised)} kinds of figures are not; they are listed under "Published without noise"'
        if unnoised
        else "nothing else was published",
    )
