"""What the auditor finds in its notes: whether noise, clip, cohorts and the server's step were as the claim says.

Canaries look from where an observer stands. These checks look from inside the training that was audited, where
both the sum and the noised sum are at hand, and so see in one training what no observer could tell in a thousand.
They say something of this training alone, by this code; a deployment with other code they do not see.

Statistical checks fail at most ``FALSE_ALARMS`` of the trainings that are as claimed, all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privfed.audit.notes import Notes
from privfed.audit.watched import Watched, deviation
from privfed.privacy.accounting import ObservedRelease
from privfed.privacy.factorisation import Strategy
from privfed.privacy.mechanisms import CorrelatedGaussian, DistributedNoise
from privfed.privacy.sampling import FixedSizeSampling, PoissonSampling, RoundRobinSampling, SamplingScheme

Real = NDArray[np.float64]
Status = Literal["passed", "failed", "not checked"]

FALSE_ALARMS = 1e-3
"""Chance of a training that is as claimed to fail any statistical check."""
_STATISTICAL = 4
"""Checks that rest on a test: noise, independence, cohorts, and the clip under clients' noise."""
LEVEL = FALSE_ALARMS / _STATISTICAL
LONGER = 1e-5
"""By how much a clipped update may exceed the clip norm, over it: rounding of its measurement."""
OFF = 1e-3
"""By how much a step of the server may be off, over its length: rounding."""


@dataclass(frozen=True)
class Check:
    """One thing that a claim rests on.

    Attributes:
        name: What is checked.
        status: Outcome.
        finding: What was measured, or why it was not.
        p_value: Chance of so much or more if all is as claimed, from above; ``None`` where no chance is involved.
    """

    name: str
    status: Status
    finding: str
    p_value: float | None = None


def checks(
    watched: Watched,
    notes: Notes,
    weights: NDArray[np.float32] | None,
    sampling: SamplingScheme,
    spent: Sequence[Sequence[ObservedRelease]],
) -> list[Check]:
    """All of them.

    Args:
        watched: The mechanism as it was audited.
        notes: After the last round.
        weights: The last round's model ``[d]``; ``None`` where another one was released.
        sampling: As claimed.
        spent: Releases on the ledger, by round.
    """
    strategy = watched.inner.strategy if isinstance(watched.inner, CorrelatedGaussian) else None
    bounds = np.cumsum([0, *_sketched_by_layer(watched)])
    fresh = _whitened(notes.sketch, strategy)
    return [
        _noise(watched, notes, fresh, bounds, strategy),
        _independence(fresh),
        _clip(notes, noisy=watched.inner.client_noise > 0),
        _cohorts(watched, notes, sampling),
        _step(notes, weights),
        _survivors(watched, notes, spent),
    ]


def _sketched_by_layer(watched: Watched) -> list[int]:
    ends = np.cumsum(watched.layers)
    layer = np.searchsorted(ends, watched.sketched, side="right")
    return [int(n) for n in np.bincount(layer, minlength=len(ends))]


def _whitened(sketch: Real, strategy: Strategy | None) -> Real:
    """Independent noise ``[rounds, m]`` of the rounds that drew any: correlated noise is ``C⁻¹·Z``."""
    drawn = np.isfinite(sketch).all(axis=1) if sketch.size else np.zeros(len(sketch), bool)
    if strategy is None:
        independent: Real = sketch[drawn]
        return independent
    rounds = int(np.argmin(drawn)) if not drawn.all() else len(drawn)  # rows come one after another
    white: Real = strategy.matrix()[:rounds, :rounds] @ sketch[:rounds]
    return white


def _noise(
    watched: Watched, notes: Notes, fresh: Real, bounds: NDArray[np.int64], strategy: Strategy | None
) -> Check:
    """Sum of squares of each layer's noise against χ²; only too little noise fails."""
    name, rounds = "noise of each layer is as strong as claimed", len(fresh)
    if not rounds:
        return Check(name, "not checked", "no round drew noise")
    if strategy is None:
        squares, freedom = notes.squares, rounds * np.asarray(watched.layers)
    else:
        squares = np.add.reduceat(np.square(fresh).sum(axis=0), bounds[:-1])
        freedom = rounds * np.diff(bounds)
    chances = stats.chi2.cdf(squares, freedom)
    p = min(1.0, len(chances) * float(chances.min()))
    weakest = int(np.argmin(chances))
    ratio = math.sqrt(float(squares[weakest] / freedom[weakest]))
    return Check(
        name,
        "failed" if p < LEVEL else "passed",
        f"{ratio:.3g} of the claimed standard deviation in layer {weakest + 1} of {len(chances)}, the least",
        p,
    )


def _independence(fresh: Real) -> Check:
    """The largest correlation of two rounds' noise, over all pairs, against Student's t."""
    name, (rounds, size) = "noise of different rounds is independent", fresh.shape
    if rounds < 2 or size < 8:
        return Check(name, "not checked", "it takes two rounds and a few coordinates")
    lengths = np.linalg.norm(fresh, axis=1, keepdims=True)
    unit = fresh / np.where(lengths > 0, lengths, 1.0)
    between = np.triu(np.abs(unit @ unit.T), 1)
    largest = min(1.0, float(between.max()))
    first, second = np.unravel_index(int(between.argmax()), between.shape)
    # Of two independent Gaussian vectors the cosine is distributed as a correlation without its mean taken off.
    t = largest * math.sqrt((size - 1) / max(1e-300, 1 - largest**2))
    p = min(1.0, rounds * (rounds - 1) / 2 * 2 * float(stats.t.sf(t, size - 1)))
    found = f"largest cosine of two rounds' noise {largest:.2g}, of rounds {first + 1} and {second + 1}"
    return Check(name, "failed" if p < LEVEL else "passed", found, p)


def _clip(notes: Notes, *, noisy: bool) -> Check:
    """No clipped update is too long; of noisy ones, none leans further along the update than noise does."""
    name = "every measured update is clipped to the clip norm, all layers together"
    measured, longest, noised, remainder = notes.clip
    if noisy:
        if not noised:
            return Check(name, "not checked", "no update was measured")
        z = remainder / math.sqrt(noised)
        p = float(stats.norm.sf(z))
        found = f"what noise leaves of {int(noised)} contributions, along their updates: {z:.2g} standard errors"
        return Check(name, "failed" if p < LEVEL else "passed", found, p)
    if not measured:
        return Check(name, "not checked", "no update was measured")
    found = f"the longest of {int(measured)} measured updates: {longest:.6g} clip norms"
    return Check(name, "passed" if longest <= 1 + LONGER else "failed", found)


def _cohorts(watched: Watched, notes: Notes, sampling: SamplingScheme) -> Check:
    """Sizes of cohorts, and how often each client is in one, against the claimed scheme."""
    name = f"cohorts are drawn as claimed ({sampling.describe()})"
    sizes = notes.sizes[np.isfinite(notes.sizes)]
    if not len(sizes):
        return Check(name, "not checked", "no cohort was seen")
    if np.isnan(notes.sizes[: int(np.flatnonzero(np.isfinite(notes.sizes))[-1])]).any():
        return Check(name, "not checked", "rounds were aborted, which depends on their cohorts")
    exist = np.ones(len(notes.counts), bool)
    if not watched.canaries.zero_out:
        exist[watched.canaries.first :] = watched.canaries.included
    counts, rounds = notes.counts[exist].astype(np.float64), len(sizes)
    if isinstance(sampling, PoissonSampling) and sampling.rate < 1:
        return _poisson(name, sizes, counts, sampling.rate)
    if isinstance(sampling, FixedSizeSampling) and sampling.size < sampling.population:
        # Drawn among clients and canaries, those that do not exist included.
        p = min(1.0, 2 * min(_dispersion(counts, rounds, sampling.size / len(notes.counts))))
        found = f"at most {sizes.max():.0f} clients; {_spread(counts, rounds)}"
        return Check(name, "failed" if p < LEVEL or sizes.max() > sampling.size else "passed", found, p)
    if isinstance(sampling, RoundRobinSampling):
        most, found = sampling.participations, f"no client is in more than {counts.max():.0f} of {rounds} rounds"
        ok = counts.max() <= most and sizes.max() <= sampling.size
        return Check(name, "passed" if ok else "failed", f"{found}, and {most} are claimed")
    return _all_there(name, sizes, len(counts))


def _spread(counts: Real, rounds: int) -> str:
    return f"a client is in {counts.min():.0f} to {counts.max():.0f} of {rounds} rounds"


def _all_there(name: str, sizes: Real, everybody: int) -> Check:
    ok = bool((sizes == everybody).all())
    found = f"from {sizes.min():.0f} to {sizes.max():.0f} of {everybody} clients in a round"
    return Check(name, "passed" if ok else "failed", found)


def _poisson(name: str, sizes: Real, counts: Real, rate: float) -> Check:
    """Mean of the sizes, their dispersion, and that of clients' participations, each on both sides."""
    rounds, clients = len(sizes), len(counts)
    draws = rounds * clients
    mean = 2 * min(
        float(stats.binom.cdf(sizes.sum(), draws, rate)), float(stats.binom.sf(sizes.sum() - 1, draws, rate))
    )
    by_round = 2 * min(_dispersion(sizes, clients, rate))
    by_client = 2 * min(_dispersion(counts, rounds, rate))
    p = min(1.0, 3 * min(mean, by_round, by_client))
    spread = math.sqrt(clients * rate * (1 - rate))
    return Check(
        name,
        "failed" if p < LEVEL else "passed",
        f"sizes {sizes.mean():.4g} ± {sizes.std():.3g} for {clients * rate:.4g} ± {spread:.3g}; "
        + _spread(counts, rounds),
        p,
    )


def _dispersion(values: Real, draws: int, rate: float) -> tuple[float, float]:
    """Chances of so little and of so much dispersion of independent binomial ``values`` about their mean.

    The sum of squares is taken for a Gamma variable of the mean and the variance that it has; for many draws that
    is χ².
    """
    variance = draws * rate * (1 - rate)
    excess = (1 - 6 * rate * (1 - rate)) / variance
    scale = max(1e-3, 2 + excess)
    total = float(np.square(values - draws * rate).sum()) / variance
    shape = len(values) / scale
    return float(stats.gamma.cdf(total / scale, shape)), float(stats.gamma.sf(total / scale, shape))


def _step(notes: Notes, weights: NDArray[np.float32] | None) -> Check:
    """The models are what the noised sums and the expected cohort give, and nothing else."""
    name = "models follow from noised sums alone, divided by the expected cohort"
    if not len(notes.expected):
        return Check(name, "not checked", "no round was seen from its beginning")
    made, off, scale = notes.steps if weights is None else deviation(notes, weights)
    found = f"largest deviation over {int(made)} steps: {off:.2g} of the step"
    if off > OFF:
        found += f", which is {scale:.3g} times as long as it should be in that direction"
    return Check(name, "passed" if off <= OFF else "failed", found)


def _survivors(watched: Watched, notes: Notes, spent: Sequence[Sequence[ObservedRelease]]) -> Check:
    """Where clients bring noise, the ledger counts that of clients in the sum and of nobody else."""
    name = "the ledger counts the noise of those who are in the sum"
    if not watched.inner.client_noise:
        return Check(name, "not checked", "does not apply: the server adds the noise, whoever survives")
    there = notes.survivors[np.isfinite(notes.survivors)]
    if len(spent) != len(there):
        return Check(name, "not checked", "the ledger holds releases of other attempts as well")
    claimed = [min(_claimed_survivors(watched, one), default=0.0) for one in spent]
    worst = max((c - t for c, t in zip(claimed, there, strict=True)), default=0.0)
    found = "no round counts more of them than were there" if worst <= 0 else f"up to {worst:.0f} too many"
    return Check(name, "passed" if worst <= 0 else "failed", found)


def _claimed_survivors(watched: Watched, releases: Sequence[ObservedRelease]) -> list[float]:
    if isinstance(watched.inner, DistributedNoise):
        return [float(one.release.shares.survivors) for one in releases if one.release.shares is not None]
    clip = watched.clip_norm_in(None)
    strongest = max(one.release.noise_multiplier for one in releases)
    return [round((strongest * clip / watched.inner.client_noise) ** 2, 6)]
