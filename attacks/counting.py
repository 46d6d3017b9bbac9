"""Whole numbers of labels behind the last layer's gradient, with or without its length, through known noise.

The estimate of the mean probabilities is that of ``attacks.label_counts``; what is left of its error lies along
the few directions in which probabilities vary from input to input. Counts are whole, so errors beyond half an
example are told from it (nearest point of a lattice, in the errors' own metric).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.mean_probabilities import MOST_CLASSES, Estimate, fit_mean_probabilities

Array = NDArray[np.float64]

ROUNDS = 3
"""Times that probabilities and counts are taken from each other."""
DROPPED = 1e-3
"""Directions with less than this share of the largest singular value say nothing about a class's features."""
REGRESSED = 0.15
"""Weight of the regression on made-up inputs in the mean probabilities."""
SCALES = np.geomspace(0.9, 30, 70)
FINER = np.geomspace(0.95, 1.05, 15)
"""Where an unknown scale is looked for: from its lower bound on, then around the best."""
MOST_MOVED = 512
"""Examples up to which whole numbers say more than their rounding."""
ANY = (0.0, np.inf)
"""Bounds of a scale of which nothing is known."""
LEAST = 1e-9
"""Relative decrease of a squared distance that is more than rounding."""
EVEN = 0.05
"""Standard deviation of a count's error beside that of the mean probabilities: whatever is not reckoned with."""


@dataclass(frozen=True, eq=False)
class Counting:
    """Counts labels behind gradients of one model, by what it makes of inputs that the attacker has.

    Attributes:
        logits: Of these, ``[inputs, classes]``.
        known: Whether their labels are known, so that they are examples of the attacked kind.
        regression: Fitted on them; ``None`` where there are too many classes for one.
        spread: What noise in the gradient grows by in each row of ``product``, squared: ``[classes]``.
        bias: Of the last layer, ``[classes]``.
        count: Examples behind a gradient.
        clients: Who have them, equally many each.
        distorted: Standard deviation of each share of labels, of whatever a single step does not explain.
    """

    logits: Array
    known: bool
    regression: Estimate | None
    spread: Array
    bias: Array
    count: int
    clients: int = 1
    distorted: float = 0.0

    @classmethod
    def of(
        cls,
        logits: Array,
        labels: NDArray[np.int64] | None,
        kernel: Array,
        bias: Array,
        count: int,
        clients: int = 1,
        distorted: float = 0.0,
    ) -> Counting:
        """Fit the regression on inputs with these logits, and labels if they are known."""
        few = labels is not None or len(bias) <= MOST_CLASSES
        regression = fit_mean_probabilities(logits, bias, labels) if few else None
        return cls(
            logits, labels is not None, regression, np.sum(kernel**2, axis=0), bias, count, clients, distorted
        )

    def __call__(self, error: Array, product: Array, noise: float) -> tuple[Array, float]:
        """Counts ``[classes]``, and minus twice the logarithm of their likelihood, up to a constant.

        Args:
            error: Mean of ``p − y``, ``[classes]``.
            product: Mean of ``(logits − bias)(p − y)ᵀ``, ``[classes, classes]``.
            noise: Standard deviation of the noise in each entry of ``error``.
        """
        shares, (even, prior) = self._shares(error, product, noise**2), self._before()
        noise = float(np.hypot(noise, self.distorted))
        shares = even + (shares - even) * prior / (prior + (self.count * noise) ** 2)
        probabilities, own = softmax(self.logits), float(np.hypot(EVEN, self.count * noise))
        return nearest_counts(
            shares, self.count, np.zeros_like(probabilities) if self.known else probabilities, own
        )

    def _before(self) -> tuple[float, float]:
        """Mean and variance of a count before anything is seen.

        Of each client all distributions of labels are equally likely (a Dirichlet one of ones).
        """
        even, classes = self.count / len(self.bias), len(self.bias)
        return even, even * (self.count / self.clients + classes) / (1 + classes)

    def of_any_scale(self, error: Array, product: Array, noise: float, within: tuple[float, float] = ANY) -> Array:
        """Counts where ``error`` and ``product`` are so many times too long: the number that explains them best.

        It is at least what the negative entries add up to, as labels' shares add up to no more than 1.

        Args:
            error: As in a call, times the number.
            product: Likewise.
            noise: Likewise.
            within: The least and the most that the number can be.
        """
        near = max(-float(error[error < 0].sum()), LEAST * float(np.abs(error).max()))
        steps, dimension, (even, prior) = SCALES, len(error) - 1, self._before()
        for _ in range(2):
            found = []
            for scale in np.unique(np.clip(near * steps, *within)):
                counts, unlikely = self(error / scale, product / scale, noise / scale)
                # The density of ``error`` is that of what it is so many times of, spread as far in each direction.
                unlikely += 2 * dimension * float(np.log(scale)) + float(np.sum((counts - even) ** 2)) / prior
                found.append((unlikely, float(scale), counts))
            _, near, best = min(found, key=lambda one: one[:2])
            steps = FINER
        return best

    def _shares(self, error: Array, product: Array, variance: float) -> Array:
        """Counts before they are made whole, ``[classes]``; ``variance`` is that of noise in ``error``."""
        bias, count, classes = self.bias, self.count, len(error)
        noise = None
        if variance:
            # Means over the examples vary by their number less than one example does.
            noise = count * variance * np.concatenate([np.ones(classes), np.repeat(self.spread, classes)])
        regressed = self.regression(error, product, noise) if self.regression is not None else np.zeros(classes)
        if self.known:
            return np.asarray((regressed - error) * count)
        logits = _mean_logits(product, error, bias, self.logits)
        share = REGRESSED if self.regression is not None else 0.0

        def counted(mean: Array) -> Array:
            return ((1 - share) * mean + share * regressed - error) * count

        shares = counted(softmax(logits))
        probabilities = np.tile(softmax(logits), (classes, 1))
        rest = product - np.outer(logits - bias, error)
        # Of each class's features, as far as noise lets them be seen beside how far features differ at all.
        blurred = variance * self.spread / np.maximum(self.logits.var(axis=0), 1e-300)
        for _ in range(ROUNDS):
            counts = _rounded(shares, count)
            root = np.sqrt(counts / count)
            effect = root[:, None] * (probabilities - np.eye(classes))
            left, values, right = np.linalg.svd(effect)
            kept = np.where(values > DROPPED * values[0], values, 0.0)
            gain = kept[:, None] / np.maximum(kept[:, None] ** 2 + blurred, 1e-300)
            shift = left @ (gain * (right @ rest.T))
            own = np.where(counts[:, None] > 0, shift / np.maximum(root, 1e-9)[:, None], 0.0)
            probabilities = softmax(logits + own)
            shares = counted((counts / count) @ probabilities)
        return shares


def _mean_logits(product: Array, error: Array, bias: Array, made_up: Array) -> Array:
    """The mean logits behind the gradient: its own estimate and that of made-up inputs, by their variances."""
    power = float(error @ error)
    own = product @ error / power
    variance = float(np.sum((product - np.outer(own, error)) ** 2)) / max(1, product.size - len(error)) / power
    own, prior = own + bias, made_up.mean(axis=0)
    apart = float(np.mean((own - prior) ** 2))
    prior_variance = max(apart - variance, 1e-3 * apart)
    share = prior_variance / max(prior_variance + variance, 1e-300)
    return np.asarray(share * own + (1 - share) * prior)


def _rounded(shares: Array, count: int) -> Array:
    """Whole numbers that add up to ``count``, as near to ``shares`` as can be."""
    if abs(np.maximum(shares, 0).sum() - count) > len(shares):
        shares = _onto_simplex(shares, count)
    counts = np.floor(np.maximum(shares, 0))
    while counts.sum() < count:
        counts[np.argmax(shares - counts)] += 1
    while counts.sum() > count:
        counts[np.argmin(np.where(counts > 0, shares - counts, np.inf))] -= 1
    return np.asarray(counts)


def _onto_simplex(shares: Array, count: int) -> Array:
    """The nearest numbers that are not negative and add up to ``count`` (Duchi et al. 2008, figure 1)."""
    falling = np.sort(shares)[::-1]
    level = (np.cumsum(falling) - count) / np.arange(1, len(shares) + 1)
    return np.asarray(np.maximum(shares - level[np.flatnonzero(falling > level)[-1]], 0))


def nearest_counts(shares: Array, count: int, probabilities: Array, own: float = EVEN) -> tuple[Array, float]:
    """Whole numbers that add up to ``count``, nearest to ``shares`` where errors are as probabilities vary.

    From the rounded ones on, one example at a time goes to another class, until no such move comes nearer; of very
    many examples the rounded ones stand.

    Args:
        shares: Their estimate, ``[classes]``.
        count: Examples.
        probabilities: Of single inputs, ``[inputs, classes]``.
        own: Standard deviation of each count's own error beside that.

    Returns:
        The numbers ``[classes]``, and minus twice the logarithm of their likelihood, up to a constant.
    """
    counts, classes = _rounded(shares, count), len(shares)
    # Of a batch's mean as of one input: inputs of a batch may all be off to the same side.
    covariance = count**2 * np.cov(probabilities.T) + own**2 * np.eye(classes)
    metric = np.linalg.inv(covariance)
    while True:
        # Squared distance after a move from class a to class b, less that before: of the step e_b − e_a.
        slope, single = metric @ (counts - shares), np.diag(metric)
        change = 2 * (slope[None, :] - slope[:, None]) + single[:, None] + single[None, :] - 2 * metric
        change[counts < 1] = 0  # nobody is left to go
        taken, given = np.unravel_index(np.argmin(change), change.shape)
        if count > MOST_MOVED or not change[taken, given] < -LEAST * single.max():
            off = counts - shares
            return counts, float(off @ metric @ off + np.linalg.slogdet(covariance)[1])
        counts[taken] -= 1
        counts[given] += 1


def softmax(logits: Array) -> Array:
    """Probabilities ``[..., classes]``."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
