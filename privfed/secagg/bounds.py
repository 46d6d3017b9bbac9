"""How many neighbours and what threshold a cohort needs, and what then holds, against whom, how surely.

Bell et al. 2020, section 3.2, for a server that follows the protocol; for one that does not, the argument below.
Write n for the cohort, k for the (even) neighbours of a client on the ring, t for the threshold, c for the corrupt
among a client's k neighbours. A client's shares are held by itself and its neighbours, k + 1 in all. Who is
corrupt, and in the semi-honest setting who vanishes, is fixed before the order of the ring is drawn.

Semi-honest. (a) c < t everywhere, or colluders could put a secret together alone: hypergeometric tail, n times.
(b) Honest survivors stay connected: a cut needs k/2 clients in a row that are corrupt or gone, which has
probability at most ``n * (corrupt + dropped)**(k/2)``. (c) Nobody loses more than k − t neighbours.

Active. The server chooses who "vanished" after it knows the ring, and may tell each client something else.
(a) No client's seed and mask key both come out: an honest holder gives one of them only, so that would take
``2(t − c)`` honest holders of the ``k + 1 − c``: impossible when ``2t > k + 1 + c``. For the same reason no client
that reveals anything has its mask key revealed: ``t − c`` of its honest holders signed that it survives.
(b) Let T be honest clients whose sum the server learns, and no sum of some of them. The mask that one of T has
with an honest client outside is known only if that one's mask key came out. Whoever revealed a seed of T was shown
that its own mask is in the owner's vector (the inclusion token), and its mask key did not come out, so it is
itself in T, or corrupt: every client of T has ``t − c`` of T, itself included, among its holders. If the k/2
places on one side of it had none of T, those who revealed its seed would be at most ``k/2 + 1 + c'``, with c' the
corrupt in these places: too few when ``t > k/2 + 1 + c'``. So T goes all around the ring without a gap above k/2,
and has ``t − c`` members in each of ``2n // 3k`` neighbourhoods that do not meet.
(c) No client is in two such sums. Views with different rosters or models do not mix: all keys are bound to them.
The order of the ring is drawn from a hash of all advertisements, so the server can draw again by changing its
colluders' keys: whatever may fail is counted ``2**grinding_bits`` times.

In a complete graph (a) alone matters, ``2t > n + c`` with c all corrupt clients, and nothing is random: T has
``t − c`` members, more than half of the honest, so that there is one sum only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.secagg.errors import ParameterError

SMALL_COHORT = 100
"""Up to here the graph is complete: it costs little, and its bound is certain and does not rest on the order."""


class Adversary(Enum):
    """What the server may do besides look; in both settings it knows all that the corrupt clients know."""

    SEMI_HONEST = "semi-honest"
    ACTIVE = "active"


@dataclass(frozen=True)
class Guarantee:
    """Neighbours and threshold for a cohort, and the bounds that they achieve.

    Attributes:
        cohort_size: Clients in the session.
        neighbours: Of each client; ``cohort_size - 1`` in a complete graph.
        threshold: Shares that give back a secret.
        adversary: Against whom the security bound holds.
        corrupt: Most clients that may collude with the server.
        dropped: Most clients that may vanish, chosen without regard to the graph.
        security_failure: Bound on the probability that the server could learn more than the sum.
        correctness_failure: Bound on the probability that more vanish somewhere than the threshold allows.
        smallest_sum: Honest clients there are at least in any sum that the server can learn.
    """

    cohort_size: int
    neighbours: int
    threshold: int
    adversary: Adversary
    corrupt: int
    dropped: int
    security_failure: float
    correctness_failure: float
    smallest_sum: int

    def __str__(self) -> str:
        """One sentence for a log or a report."""
        return (
            f"{self.neighbours} neighbours, threshold {self.threshold} of {self.neighbours + 1}: against the "
            f"{self.adversary.value} server with up to {self.corrupt} of {self.cohort_size} clients, more than "
            f"sums of {self.smallest_sum} honest clients is learned with probability at most "
            f"{self.security_failure:.2g}; with up to {self.dropped} gone, the round fails with probability at "
            f"most {self.correctness_failure:.2g}"
        )


def guarantee_for(
    cohort_size: int,
    corrupt: float = 0.1,
    dropped: float = 0.1,
    *,
    adversary: Adversary = Adversary.ACTIVE,
    security_bits: int = 40,
    correctness_bits: int = 30,
    grinding_bits: int = 40,
) -> Guarantee:
    """Fewest neighbours, and for them the lowest threshold, that keep both failures as rare as asked for.

    Args:
        cohort_size: Clients in the session, at least 2.
        corrupt: Largest share of them that collude with the server, in ``[0, 1)``.
        dropped: Largest share of them that vanish, in ``[0, 1)``.
        adversary: Which setting.
        security_bits: ``security_failure`` is to be at most ``2**-security_bits``.
        correctness_bits: ``correctness_failure`` is to be at most ``2**-correctness_bits``.
        grinding_bits: An active server draws the ring at most ``2**grinding_bits`` times in a round.

    Raises:
        ParameterError: A share is out of range, or even the complete graph cannot tolerate both shares.
    """
    for name, share in (("corrupt", corrupt), ("dropped", dropped)):
        if not 0 <= share < 1:
            raise ParameterError(f"{name}: must be in [0, 1) (got {share})")
    if cohort_size < 2:
        raise ParameterError(f"cohort_size: must be at least 2 (got {cohort_size})")
    # The largest number that is no more than the share; 1e-9 makes up for 0.29 * 100 = 28.999999999999996.
    bad, gone = math.floor(corrupt * cohort_size + 1e-9), math.floor(dropped * cohort_size + 1e-9)
    draws = 2.0**grinding_bits if adversary is Adversary.ACTIVE else 1.0
    for k in range(2, cohort_size - 1 if cohort_size > SMALL_COHORT else 0, 2):
        thresholds = np.arange(k // 2 + 1, k + 1)
        insecure = draws * _insecurity(cohort_size, bad, gone, k, thresholds, adversary)
        fails = cohort_size * _tail(cohort_size - 1, gone, k)[np.minimum(k - thresholds + 1, k + 1)]
        good = (insecure <= 2.0**-security_bits) & (fails <= 2.0**-correctness_bits)
        if good.any():
            at = int(good.argmax())
            t = int(thresholds[at])
            smallest = cohort_size - bad - gone
            if adversary is Adversary.ACTIVE:
                smallest = (k + 2 - t) * (2 * cohort_size // (3 * k))
            return Guarantee(
                cohort_size, k, t, adversary, bad, gone, float(insecure[at]), float(fails[at]), smallest
            )
    return _complete(cohort_size, bad, gone, adversary)


def _complete(n: int, bad: int, gone: int, adversary: Adversary) -> Guarantee:
    threshold = max(2, n // 2 + 1, bad + 1)
    if adversary is Adversary.ACTIVE:
        threshold = max(threshold, (n + bad) // 2 + 1)
    if threshold > n - gone:
        raise ParameterError(
            f"corrupt, dropped: no threshold withstands {bad} corrupt and {gone} vanishing clients of {n} "
            f"({adversary.value}). Lower one of the two"
        )
    smallest = threshold - bad if adversary is Adversary.ACTIVE else n - bad - gone
    return Guarantee(n, n - 1, threshold, adversary, bad, gone, 0.0, 0.0, smallest)


def _insecurity(
    n: int, bad: int, gone: int, k: int, thresholds: NDArray[Any], adversary: Adversary
) -> NDArray[np.float64]:
    corrupt = _tail(n - 1, bad, k)
    if adversary is Adversary.SEMI_HONEST:
        alone: NDArray[np.float64] = n * corrupt[thresholds] + n * ((bad + gone) / n) ** (k / 2)
        return alone
    # At most 2t - k - 2 corrupt among k neighbours, and t - k/2 - 2 among the k/2 on either side.
    half = _tail(n - 1, bad, k // 2)
    around = corrupt[np.minimum(2 * thresholds - k - 1, k + 1)]
    beside = half[np.minimum(np.maximum(thresholds - k // 2 - 1, 0), k // 2 + 1)]
    total: NDArray[np.float64] = n * around + 2 * n * beside
    return total


def _tail(population: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Hypergeometric ``P[at least x marked among the drawn]`` for x from 0 to ``drawn + 1``.

    The masses' relative error is below ``1e-8`` up to a million clients, and the smallest are added up first.
    """
    from scipy.special import gammaln  # slow to import, and only the choice of parameters needs it

    def log_choose(n: int, k: NDArray[Any]) -> Any:
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

    x = np.arange(drawn + 1)
    possible = (x <= marked) & (drawn - x <= population - marked)
    masses = np.zeros(drawn + 1)
    logs = log_choose(marked, x[possible]) + log_choose(population - marked, drawn - x[possible])
    masses[possible] = np.exp(logs - log_choose(population, np.array(drawn)))
    tail: NDArray[np.float64] = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
    return tail
