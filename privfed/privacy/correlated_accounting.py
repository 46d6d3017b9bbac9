"""What a whole training with correlated noise spends: one Gaussian mechanism, in closed form.

All rounds together release ``C·X + Z``, which one client moves by ``clip_norm · sensitivity`` in L2 norm at most.
With noise of standard deviation ``z · clip_norm · sensitivity`` in every entry of ``Z`` that is one Gaussian
mechanism with noise multiplier ``z``, for everybody who sees the models of any or all rounds, and who may
know every cohort. Its ε is independent of the number of rounds, but for the sensitivity. So

- a training that stops early has spent the whole ε: rounds cost nothing singly;
- a training that goes on from a checkpoint, rows of noise and all, goes on in the same release;
- another attempt with fresh noise, from the start or from a checkpoint, composes: its rows are those of a second
  mechanism whose sensitivity is no larger, since the client's rounds in it (shared ones counted in both) again
  keep to the limits. Attempts are Gaussian mechanisms of one noise multiplier, so n of them are one with
  ``z / sqrt(n)``. A round repeated on its own after its release counts as an attempt too.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr

from privfed.privacy.calibration import smallest_noise
from privfed.privacy.errors import PrivacyError


def effective_noise_multiplier(stddev: float, clip_norm: float, sensitivity: float, attempts: int = 1) -> float:
    """Noise multiplier of the one Gaussian mechanism that all ``attempts`` together are.

    Raises:
        PrivacyError: An argument is out of range.
    """
    for name, value in (("stddev", stddev), ("clip_norm", clip_norm), ("sensitivity", sensitivity)):
        if not (value > 0 and math.isfinite(value)):
            raise PrivacyError("must be a positive number", where=name, value=value)
    if attempts < 1:
        raise PrivacyError("must be at least 1", where="attempts", value=attempts)
    return stddev / (clip_norm * sensitivity * math.sqrt(attempts))


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The least δ of one Gaussian mechanism (Balle & Wang 2018, Theorem 8).

    ``Φ(1/(2z) - ε·z) - exp(ε)·Φ(-1/(2z) - ε·z)``; the terms are subtracted as logarithms, so that small ones last.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise PrivacyError("must be a positive number", where="noise_multiplier", value=noise_multiplier)
    half, shift = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    first, second = float(log_ndtr(half - shift)), epsilon + float(log_ndtr(-half - shift))
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The least ε of one Gaussian mechanism, rounded up by ``1e-12`` of itself at most.

    Raises:
        PrivacyError: An argument is out of range.
    """
    if not 0 < delta < 1:
        raise PrivacyError("lies in (0, 1)", where="delta", value=delta)
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(noise_multiplier, middle) > delta else (low, middle)
    return high


def noise_multiplier_for(epsilon: float, delta: float, attempts: int = 1) -> float:
    """The smallest noise multiplier (in steps of ``calibration.RESOLUTION``) with ε within ``epsilon``.

    In closed form. An accountant with a discretised privacy loss may state about 0.001 more for it.

    Raises:
        PrivacyError: An argument is out of range, or no noise reaches the target.
    """
    if attempts < 1:
        raise PrivacyError("must be at least 1", where="attempts", value=attempts)
    return smallest_noise(lambda z: gaussian_epsilon(z / math.sqrt(attempts), delta), epsilon, delta)
