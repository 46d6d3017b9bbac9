"""Clipping and adding up inside the graph: what keeps updates from ever leaving it.

The guarantee is that of ``privfed.privacy.clipping``: no contribution is longer than the bound. Norms are computed
in float32 pieces here, which is faster, so the clip aims a little lower (``NORM_SLACK``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

PIECE = 256
"""Most float32 squares that are added up before float64 takes over."""

NORM_SLACK = 2.0**-16
"""Share of the clip norm that is given up to rounding.

A float32 sum of 256 squares is off by less than 256 · 2⁻²⁴ = 2⁻¹⁶ of itself, in any order of summation (Higham
2002, section 4.2), and so the norm by half of that. The other half covers the
two roundings of ``factor · update``.
"""

UNDERFLOW = 2.0**-63
"""Coordinates below it may vanish when they are squared in float32, where subnormal numbers are flushed."""


def squared_norm(update: Sequence[Any]) -> Any:
    """Sum of the squares of float32 tensors of known shape, float64 scalar; its root is within ``NORM_SLACK`` / 2.

    Finite for every finite update: where squares overflow float32, everything is done in float64.
    """

    def in_float64() -> Any:
        return tf.add_n([tf.reduce_sum(tf.square(tf.cast(part, tf.float64))) for part in update])

    squared = squared_norm_in_pieces(update)
    return tf.cond(tf.math.is_finite(squared), lambda: squared, in_float64)


def squared_norm_in_pieces(update: Sequence[Any]) -> Any:
    """The same, except that updates longer than about 10¹⁹ may come out as infinite."""
    return tf.add_n([_sum_of_squares(part) for part in update])


def clip_factor(norm: Any, clip_norm: Any, dimension: int) -> Any:
    """What to multiply updates ``[dimension]`` by that were measured to be ``norm`` long; both float64, any shape.

    ``clip_norm`` may be infinite. Meaningless where the norm is not finite.
    """
    at_most = norm + UNDERFLOW * math.sqrt(dimension)
    return tf.minimum(tf.constant(1.0, tf.float64), clip_norm * (1 - NORM_SLACK) / at_most)


def add_contribution(
    total: Sequence[Any], update: Sequence[Any], factor: Any, finite: Any, *, fused: bool
) -> list[Any]:
    """``total + factor · update`` where ``finite``, else ``total``; one tensor for each variable.

    ``fused`` says that XLA makes one loop of it, in which a branch would cost more than a selection.
    """

    def contribution(part: Any, dtype: Any) -> Any:
        return tf.cast(part * tf.cast(factor, tf.float32), dtype)

    if fused:
        return [
            t + tf.where(finite, contribution(u, t.dtype), tf.zeros([], t.dtype))
            for t, u in zip(total, update, strict=True)
        ]
    return list(
        tf.cond(
            finite,
            lambda: [t + contribution(u, t.dtype) for t, u in zip(total, update, strict=True)],
            lambda: [tf.identity(t) for t in total],
        )
    )


def _sum_of_squares(part: Any) -> Any:
    size = part.shape.num_elements()
    piece = max((divisor for divisor in range(1, PIECE + 1) if size % divisor == 0), default=1)
    pieces = tf.reduce_sum(tf.square(tf.reshape(part, [size // piece, piece])), 1)
    return tf.reduce_sum(tf.cast(pieces, tf.float64))
