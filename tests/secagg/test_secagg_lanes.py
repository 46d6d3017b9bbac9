"""Several coordinates in one word: digits that never meet, on a grid that fills the word."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.secagg import FixedPointCodec, ProtocolSum, RingSum, Stage
from privfed.secagg.errors import ParameterError
from privfed.secagg.lanes import MAX_COUNT, MIN_COUNT, Lanes, largest_half

COUNTS = range(MIN_COUNT, MAX_COUNT + 1)
KEY = bytes(range(32))
shapes = st.tuples(st.sampled_from(COUNTS), st.integers(1, 40_000), st.integers(0, 2**32))


@pytest.mark.parametrize("count", COUNTS)
def test_the_largest_half_fills_a_word(count: int) -> None:
    half = largest_half(count)
    assert (2 * half + 1) ** count <= 2**64 < (2 * half + 3) ** count


def split(lanes: Lanes, words: np.ndarray) -> np.ndarray:
    result = np.full(lanes.dimension, 2**62)
    for place, digits in lanes.blocks(words):
        result[place] = digits
    return result


def naive_words(lanes: Lanes, digits: Any) -> list[int]:
    """Word by word, in Python's integers."""
    words = [0] * lanes.length
    for place, digit in enumerate(digits):
        words[place % lanes.length] += int(digit) * lanes.radix ** (place // lanes.length)
    return [word % 2**64 for word in words]


@settings(deadline=None, max_examples=60)
@given(shapes, st.sampled_from([np.int32, np.int64]), st.data())
def test_what_is_added_in_any_parts_comes_back(shape: Any, dtype: Any, data: st.DataObject) -> None:
    count, dimension, seed = shape
    lanes = Lanes(count, data.draw(st.integers(1, largest_half(count))), dimension)
    rng = np.random.default_rng(seed)
    digits = rng.integers(-lanes.half, lanes.half + 1, dimension).astype(dtype)
    words, start = np.zeros(lanes.length, np.uint64), 0
    while start < dimension:
        size = data.draw(st.integers(max(1, dimension // 4), dimension))
        lanes.add(words, start, digits[start : start + size])
        start += size
    assert (split(lanes, words) == digits).all()
    if dimension < 1000:
        assert words.tolist() == naive_words(lanes, digits)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("signs", ["all up", "all down", "in turn"])
def test_sums_at_the_very_end_of_the_range_do_not_meet(count: int, signs: str) -> None:
    lanes, dimension = Lanes(count, largest_half(count), 4 * count + 1), 4 * count + 1
    digits = np.full(dimension, lanes.half)
    if signs == "all down":
        digits = -digits
    elif signs == "in turn":
        digits[::2] *= -1
    words = np.zeros(lanes.length, np.uint64)
    lanes.add(words, 0, digits)
    assert (split(lanes, words) == digits).all()
    # One step beyond, the lane above is hit: the range is used to its end.
    lanes.add(words, 0, np.sign(digits))
    assert (split(lanes, words) != digits + np.sign(digits)).any()


def clipped(codec: FixedPointCodec, dtype: Any, seed: int) -> np.ndarray:
    """As long as the caller is allowed to make it."""
    vector = np.random.default_rng(seed).normal(size=codec.dimension).astype(dtype)
    target = codec.clip_norm - codec.rounding_slack
    while np.linalg.norm(vector.astype(np.float64)) > target:
        vector = (vector * (target / np.linalg.norm(vector.astype(np.float64)) * (1 - 1e-7))).astype(dtype)
    return vector


codecs = st.tuples(st.integers(1, 80), st.floats(1e-6, 1e6), st.integers(1, 300))


@settings(deadline=None)
@given(codecs)
def test_the_grid_is_the_finest_number_of_float32_that_leaves_no_lane(case: Any) -> None:
    cohort, clip, _ = case
    codec = FixedPointCodec.in_lanes(*case, 3)
    assert codec.scale == float(np.float32(codec.scale))
    assert codec.lanes is not None

    def worst(scale: float) -> int:
        return cohort * math.floor(Fraction(clip) * Fraction(scale))

    assert worst(codec.scale) <= codec.lanes.half <= largest_half(3)
    above = float(np.nextafter(np.float32(codec.scale), np.float32(np.inf)))
    assert Fraction(clip) * Fraction(above) > codec.lanes.half // cohort


@settings(deadline=None, max_examples=60)
@given(codecs, st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32))
def test_encoding_keeps_the_norm_and_moves_less_than_a_step(case: Any, dtype: Any, seed: int) -> None:
    codec = FixedPointCodec.in_lanes(*case, 3)
    update, words = clipped(codec, dtype, seed), np.zeros(codec.length, np.uint64)
    codec.add_encoded(words, update, KEY)
    uniforms = np.random.default_rng(seed).integers(0, 2**64, codec.dimension, dtype=np.uint64)
    for encoded in (words, codec.encode(update, uniforms)):
        steps = codec.to_signed(encoded)
        assert sum(int(s) ** 2 for s in steps) <= (Fraction(codec.clip_norm) * Fraction(codec.scale)) ** 2
        for value, step in zip(update, steps, strict=True):
            assert abs(Fraction(float(value)) * Fraction(codec.scale) - int(step)) < 1
        assert np.linalg.norm(codec.decode(encoded) - update) <= codec.rounding_slack


@settings(deadline=None, max_examples=60)
@given(codecs, st.floats(0.01, 1), st.integers(0, 2**32))
def test_a_factor_may_clip_to_the_slack_and_moves_less_than_a_step(case: Any, part: float, seed: int) -> None:
    codec = FixedPointCodec.in_lanes(*case, 3)
    update = clipped(codec, np.float32, seed) / np.float32(part)
    target = codec.clip_norm - codec.rounding_slack
    factor = np.float32(target / np.linalg.norm(update.astype(np.float64)) * (1 - 2.0**-24))
    words = np.zeros(codec.length, np.uint64)
    codec.add_encoded(words, update, KEY, factor)
    steps = codec.to_signed(words)
    assert sum(int(s) ** 2 for s in steps) <= (Fraction(codec.clip_norm) * Fraction(codec.scale)) ** 2
    exact = update.astype(np.float64) * float(factor) * codec.scale
    assert (np.abs(steps - exact) < 1 + np.abs(exact) * 2.0**-22).all()


@settings(deadline=None, max_examples=60)
@given(codecs, st.integers(0, 2**32), st.booleans())
def test_what_float32_rounds_in_scaling_counts_towards_the_norm(case: Any, seed: int, roomy: bool) -> None:
    """A norm that leaves room for the grid alone is looked at again; one that leaves the slack is not."""
    codec = FixedPointCodec.in_lanes(*case, 3)
    slack = codec.rounding_slack if roomy else codec.rounding_slack - codec.clip_norm * 2.0**-22
    longest, looked = codec.clip_norm - slack, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FixedPointCodec, "_check_norm", lambda *_: looked.append(True))
        update = clipped(codec, np.float32, seed) * np.float32(1 - 2.0**-20)
        codec.add_encoded(np.zeros(codec.length, np.uint64), update, KEY, longest=longest)
    assert bool(looked) is not roomy


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_whole_cohort_at_the_bound_does_not_overflow(count: int, sign: float) -> None:
    codec = FixedPointCodec.in_lanes(7, 1.3, 9, count)
    update = np.zeros(9)
    for place in range(9):
        update[:] = 0
        update[place] = sign * (codec.clip_norm - codec.rounding_slack)
        one = codec.encode(update, np.zeros(9, np.uint64))
        steps = codec.to_signed(one)
        assert np.abs(steps).sum() == abs(steps[place]) > 0
        assert (codec.to_signed(one * np.uint64(7)) == 7 * steps).all()


Z_LIMIT = 5.0  # two-sided false-alarm rate 5.7e-7 for each count of roundings


def ups(codec: FixedPointCodec, value: float, key: bytes) -> float:
    """z of how many of many equal coordinates, ``value`` steps each, went up."""
    size = codec.dimension
    words = np.zeros(codec.length, np.uint64)
    update = np.full(size, value / codec.scale, np.float32)
    codec.add_encoded(words, update, key)
    exact = float(update[0] * np.float32(codec.scale))
    floor, steps = math.floor(exact), codec.to_signed(words)
    assert set(np.unique(steps)) <= {floor, floor + 1}
    up = exact - floor
    return (int((steps == floor + 1).sum()) - size * up) / math.sqrt(size * up * (1 - up))


@pytest.mark.parametrize("value", [0.5, 3.3, -0.3, -12.7, 30.1])
def test_rounding_is_unbiased_in_every_lane(value: float) -> None:
    codec = FixedPointCodec.in_lanes(4, 2.0**12, 200_000, 3)
    assert abs(ups(codec, value, KEY)) < Z_LIMIT


def test_the_narrowest_codec_uses_lanes_where_they_take_little_more() -> None:
    bits = {}
    for cohort in (2, 7, 8, 20, 50, 80, 81, 1000):
        codec = FixedPointCodec.narrowest(cohort, 1.0, 1_000_000)
        bits[cohort] = codec.ring_bits if codec.lanes is None else 64 / codec.lanes.count
        assert codec.clip_norm * codec.scale > 2**14
    assert bits == {2: 18, 7: 19, 8: 64 / 3, 20: 64 / 3, 50: 64 / 3, 80: 64 / 3, 81: 23, 1000: 26}
    assert FixedPointCodec.narrowest(10, 1.0, 100, value_bits=10).lanes == Lanes(5, 3_560, 100)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((3, 1.0, 4, 2), "lanes: must be from 3 to 8"),
        ((3, 1.0, 4, 9), "lanes: must be from 3 to 8"),
        ((0, 1.0, 4, 3), "cohort_size"),
        ((3, math.nan, 4, 3), "clip_norm"),
        ((3, 1e-300, 4, 3), "too far from 1"),
        ((3, 1.0, 0, 3), "dimension"),
        ((2**21, 1.0, 4, 3), "not one step fits"),
        ((10_000, 1.0, 4, 3), "21 bits are too coarse for 10000 clients .* only 132 steps"),
        ((50, 1.0, 2**22, 3), "rounding may take"),
    ],
)
def test_impossible_lanes_are_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        FixedPointCodec.in_lanes(*arguments)


def test_the_protocol_and_the_plain_sum_give_the_same_words_with_dropouts() -> None:
    codec = FixedPointCodec.in_lanes(8, 1.0, 1000, 3)
    inputs, exact = {}, np.zeros(1000, np.int64)
    for i in range(8):
        inputs[i] = np.zeros(codec.length, codec.dtype)
        codec.add_encoded(inputs[i], clipped(codec, np.float32, i), bytes([i]) * 32)
        if i not in (2, 5):
            exact += codec.to_signed(inputs[i])
    dropouts: dict[int, Stage | None] = {2: Stage.SHARE_KEYS, 5: None, 3: Stage.MASKED_INPUT}
    masked = ProtocolSum(over_wire=True).sum(inputs, dropouts)
    plain = RingSum().sum(inputs, dropouts)
    assert masked.total.tobytes() == plain.total.tobytes()
    assert (codec.to_signed(masked.total) == exact).all()
    # What the server saw of a client decodes to nothing like it: digits as wide as the lane.
    assert np.abs(codec.to_signed(masked.uploads[0])[: codec.length]).mean() > codec.lanes.half / 4  # type: ignore[union-attr]
