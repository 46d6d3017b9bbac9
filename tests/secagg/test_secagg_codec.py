"""The codec: unbiased, never too long, never overflowing, and loud about everything else."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privfed.secagg import FixedPointCodec, rounding
from privfed.secagg.errors import CodecError, ParameterError
from privfed.secagg.exact import exact_square_sum

ZEROS, ONES = np.uint64(0), np.uint64(2**64 - 1)
Z_LIMIT = 5.0  # two-sided false-alarm rate 5.7e-7 for each count of roundings


def words(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, 2**64, length, dtype=np.uint64)


def clipped(codec: FixedPointCodec, rng: np.random.Generator) -> np.ndarray:
    """As long as the caller is allowed to make it, by its own measure."""
    target = codec.clip_norm - codec.rounding_slack
    vector = rng.normal(size=codec.dimension)
    vector *= target / np.linalg.norm(vector)
    while np.linalg.norm(vector) > target:
        vector *= 1 - 2.0**-53
    return vector


codecs = st.builds(
    lambda n, clip, d, bits: (n, clip, d, bits),
    st.integers(1, 5000),
    st.floats(1e-6, 1e6),
    st.integers(1, 300),
    st.sampled_from([32, 64]),
)


@settings(deadline=None)
@given(codecs)
def test_scale_is_the_largest_power_of_two_that_cannot_overflow(case: tuple[int, float, int, int]) -> None:
    n, clip, _, bits = case
    scale = FixedPointCodec.for_cohort(*case).scale
    assert math.frexp(scale)[0] == 0.5

    def worst(scale: float) -> Fraction:
        return n * (Fraction(clip) * Fraction(scale) + 1)

    assert worst(scale) < 2 ** (bits - 1) <= worst(2 * scale)


def test_the_bound_is_strict_where_a_power_of_two_meets_it_exactly() -> None:
    # One client, clip norm 2**31 - 1: a scale of one would reach 2**31 exactly.
    assert FixedPointCodec.for_cohort(1, 2.0**31 - 1, 1).scale == 0.5


@settings(deadline=None)
@given(codecs, st.integers(0, 2**32))
def test_rounding_keeps_the_norm_and_moves_less_than_a_step(case: tuple[int, float, int, int], seed: int) -> None:
    codec = FixedPointCodec.for_cohort(*case)
    rng = np.random.default_rng(seed)
    update = clipped(codec, rng)
    # All words zero is the worst case: every coordinate that is off the grid moves away from zero.
    for uniforms in (words(rng, codec.dimension), np.full(codec.dimension, ZEROS), np.full(codec.dimension, ONES)):
        encoded = codec.encode(update, uniforms)
        assert encoded.dtype == codec.dtype
        steps = [int(value) for value in codec.to_signed(encoded)]
        assert sum(step * step for step in steps) <= (Fraction(codec.clip_norm) * Fraction(codec.scale)) ** 2
        for value, step in zip(update, steps, strict=True):
            assert abs(Fraction(float(value)) * Fraction(codec.scale) - step) < 1
        assert np.linalg.norm(codec.decode(encoded) - update) <= codec.rounding_slack


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dimension", [1, 2, 1000, 100_000])
def test_clipping_by_the_slack_is_enough_even_where_the_grid_is_finer_than_floats(
    dimension: int, bits: int
) -> None:
    codec = FixedPointCodec.for_cohort(10, 0.7, dimension, bits)
    for seed in range(20):
        codec.encode(clipped(codec, np.random.default_rng(seed)), np.full(dimension, ZEROS))


@settings(deadline=None)
@given(codecs, st.sampled_from([-1.0, 1.0]))
def test_a_whole_cohort_at_the_bound_does_not_overflow(case: tuple[int, float, int, int], sign: float) -> None:
    codec = FixedPointCodec.for_cohort(*case)
    update = np.zeros(codec.dimension)
    update[-1] = sign * (codec.clip_norm - codec.rounding_slack)
    one = codec.encode(update, np.full(codec.dimension, ZEROS))
    with np.errstate(over="ignore"):
        total = one * codec.dtype.type(codec.cohort_size)
    assert int(codec.to_signed(total)[-1]) == codec.cohort_size * int(codec.to_signed(one)[-1])
    assert np.sign(codec.decode(total)[-1]) == sign


@pytest.mark.parametrize("bits", [32, 64])
def test_negative_numbers_wrap_and_cancel(bits: int) -> None:
    codec = FixedPointCodec.for_cohort(2, 1.0, 3, bits)
    update = np.array([-0.25, 0.5, -(2.0**-12)])
    minus, plus = (codec.encode(u, np.full(3, ONES)) for u in (update, -update))
    assert int(minus[0]) == 2**bits - int(0.25 * codec.scale)
    assert not (minus + plus).any()
    assert (codec.decode(minus) == update).all()


def z_score(ups: int, trials: int, probability: float) -> float:
    return (ups - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def rounded_up(value: float, uniforms: np.ndarray, bits: int) -> int:
    codec = FixedPointCodec.for_cohort(4, 1000.0, len(uniforms), bits)
    steps = codec.to_signed(codec.encode(np.full(len(uniforms), value / codec.scale), uniforms))
    floor = math.floor(value)
    assert set(np.unique(steps)) <= {floor, floor + 1}
    return int((steps == floor + 1).sum())


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("value", [0.5, 3.01, 7.9, -0.3, -12.75])
def test_rounding_is_unbiased(value: float, bits: int) -> None:
    uniforms = words(np.random.default_rng(11), 200_000)
    probability = value - math.floor(value)
    assert abs(z_score(rounded_up(value, uniforms, bits), len(uniforms), probability)) < Z_LIMIT


@pytest.mark.parametrize("value", [3.01, 7.9, -0.3])
def test_the_bias_test_catches_words_that_are_not_uniform(value: float) -> None:
    halved = words(np.random.default_rng(12), 200_000) >> np.uint64(1)
    assert abs(z_score(rounded_up(value, halved, 32), len(halved), value - math.floor(value))) > Z_LIMIT


KEY = bytes(range(32))


def added(codec: FixedPointCodec, update: np.ndarray, key: bytes = KEY) -> np.ndarray:
    total = np.zeros(codec.dimension, codec.dtype)
    codec.add_encoded(total, update, key)
    return total


@settings(deadline=None, max_examples=60)
@given(codecs, st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_adding_an_encoded_update_is_encoding_it(
    case: tuple[int, float, int, int], seed: int, dtype: type
) -> None:
    codec = FixedPointCodec.for_cohort(*case)
    rng = np.random.default_rng(seed)
    update = (clipped(codec, rng) * (1 - 2.0**-20)).astype(dtype)
    encoded = added(codec, update)
    steps = [int(value) for value in codec.to_signed(encoded)]
    assert sum(step * step for step in steps) <= (Fraction(codec.clip_norm) * Fraction(codec.scale)) ** 2
    for value, step in zip(update, steps, strict=True):
        exact = Fraction(float(value)) * Fraction(codec.scale)
        assert abs(exact - step) < 1
        assert step * exact >= 0
    before = rng.integers(0, 2 ** case[3], codec.dimension, dtype=codec.dtype)
    after = before.copy()
    codec.add_encoded(after, update, KEY)
    np.testing.assert_array_equal(after, before + encoded)


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 23), (np.float32, 64), (np.float64, 32)])
def test_a_factor_gives_the_integers_of_the_update_multiplied_before(dtype: type, bits: int) -> None:
    codec = FixedPointCodec.for_cohort(50, 0.1, 70_001, bits)
    update = (clipped(codec, np.random.default_rng(3)) * 30).astype(dtype)
    factor = np.float32(0.999 / 30)
    total = np.zeros(codec.dimension, codec.dtype)
    codec.add_encoded(total, update, KEY, factor)
    np.testing.assert_array_equal(total, added(codec, update * factor))
    with pytest.raises(CodecError, match="exceeds the clip norm"):
        codec.add_encoded(total, update, KEY)


@settings(deadline=None, max_examples=60)
@given(codecs, st.integers(0, 2**32))
def test_a_norm_that_leaves_room_for_rounding_is_not_looked_at_again(
    case: tuple[int, float, int, int], seed: int
) -> None:
    codec = FixedPointCodec.for_cohort(*case)
    longest = codec.clip_norm - codec.rounding_slack
    update = np.random.default_rng(seed).standard_normal(codec.dimension).astype(np.float32)
    factor = np.float32(longest / np.linalg.norm(update.astype(np.float64)) * (1 - 2.0**-20))
    total = np.zeros(codec.dimension, codec.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FixedPointCodec, "_check_norm", lambda *_: pytest.fail("looked at again"))
        codec.add_encoded(total, update, KEY, factor, longest)
    steps = codec.to_signed(total)
    assert (np.abs(steps - update * float(factor) * codec.scale) < 1 + np.abs(steps) * 2.0**-22).all()


def test_a_norm_beyond_the_bound_is_refused_whoever_measured_it() -> None:
    codec = FixedPointCodec.for_cohort(4, 1.0, 1000)
    update = np.full(1000, 0.9 / math.sqrt(1000), np.float32)
    with pytest.raises(CodecError, match="exceeds the clip norm"):
        codec.add_encoded(np.zeros(1000, codec.dtype), update, KEY, longest=1.01)


def added_ups(value: float, size: int, dtype: type, bits: int) -> int:
    codec = FixedPointCodec.for_cohort(4, 2.0**20, size, bits)
    steps = codec.to_signed(added(codec, np.full(size, value / codec.scale, dtype)))
    floor = math.floor(value)
    assert set(np.unique(steps)) <= {floor, floor + 1}
    return int((steps == floor + 1).sum())


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 32), (np.float64, 32), (np.float32, 64)])
@pytest.mark.parametrize("value", [0.5, 3.25, 7.890625, -0.3125, -12.75, 1000.0625, 0.0078125])
def test_adding_rounds_without_bias(value: float, dtype: type, bits: int) -> None:
    size = 200_000
    assert abs(z_score(added_ups(value, size, dtype, bits), size, value - math.floor(value))) < Z_LIMIT


@pytest.mark.parametrize("value", [3.25, -0.3125])
def test_the_bias_test_of_adding_catches_words_that_are_not_uniform(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    uniform = rounding._next_words
    monkeypatch.setattr(rounding, "_next_words", lambda *arguments: uniform(*arguments) >> np.uint16(1))
    ups = added_ups(value, 200_000, np.float32, 32)
    assert abs(z_score(ups, 200_000, value - math.floor(value))) > Z_LIMIT


def test_roundings_differ_by_key_and_by_coordinate() -> None:
    size = 100_000
    codec = FixedPointCodec.for_cohort(4, 2.0**20, size)
    update = np.full(size, 0.5 / codec.scale, np.float32)
    first, second = (codec.to_signed(added(codec, update, bytes([i]) * 32)) for i in (1, 2))
    np.testing.assert_array_equal(first, codec.to_signed(added(codec, update, bytes([1]) * 32)))
    for bits in (first ^ second, first[1:] ^ first[:-1]):
        assert abs(z_score(int(bits.sum()), len(bits), 0.5)) < Z_LIMIT


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [32, 64])
def test_adding_refuses_what_encoding_refuses(bits: int, dtype: type) -> None:
    codec = FixedPointCodec.for_cohort(3, 1.0, 70_000, bits)
    total = np.zeros(70_000, codec.dtype)
    for bad in (math.nan, math.inf):
        update = np.zeros(70_000, dtype)
        update[69_999] = bad
        with pytest.raises(CodecError, match="1 of 70000 coordinates are NaN or infinite"):
            codec.add_encoded(total, update, KEY)
    for long in (np.full(70_000, 1 / math.sqrt(69_000), dtype), np.full(70_000, 1e30, dtype)):
        with pytest.raises(CodecError, match=r"exceeds the clip norm 1\.0\. Clip to"):
            codec.add_encoded(total, long, KEY)
    with pytest.raises(CodecError, match="update: must be float32 or float64"):
        codec.add_encoded(total, np.zeros(3), KEY)
    with pytest.raises(CodecError, match="total: must be"):
        codec.add_encoded(np.zeros(3, codec.dtype), np.zeros(70_000), KEY)


def test_tiny_negative_numbers_do_not_become_a_step() -> None:
    codec = FixedPointCodec.for_cohort(2, 1.0, 2)
    update = np.array([-1e-300, 5e-324])
    assert not codec.encode(update, np.array([1, ONES], dtype=np.uint64)).any()


def test_float32_and_a_source_of_words_are_taken() -> None:
    codec = FixedPointCodec.for_cohort(3, 2.0, 50)
    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    update = clipped(codec, np.random.default_rng(2)).astype(np.float32) * np.float32(0.9)
    by_call = codec.encode(update, lambda length: words(rng, length))
    assert (by_call == codec.encode(update.astype(np.float64), words(same, 50))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_coordinates_are_refused(bad: float, dtype: type) -> None:
    codec = FixedPointCodec.for_cohort(3, 1.0, 4)
    update = np.array([0.0, bad, 0.1, 0.0], dtype=dtype)
    with pytest.raises(CodecError, match="1 of 4 coordinates are NaN or infinite"):
        codec.encode(update, np.full(4, ZEROS))


@pytest.mark.parametrize("bits", [32, 64])
def test_vectors_above_the_clip_norm_are_refused(bits: int) -> None:
    codec = FixedPointCodec.for_cohort(3, 1.0, 2, bits)
    step = 1 / codec.scale
    edge = np.array([0.6, 0.8]) * (1 - 2.0**-20)
    codec.encode(edge, np.full(2, ONES))
    for update in ([1.0 + 4 * step, 0.0], [0.75, 0.75], [0.0, -3.0], [1e300, 1e300], [1.7e308, 0.0]):
        if bits == 64 and update[0] == 1.0:
            continue  # four steps of a 64-bit grid are below float64's resolution at 1
        with pytest.raises(CodecError, match=r"exceeds the clip norm 1\.0\. Clip to"):
            codec.encode(np.array(update), np.full(2, ONES))


def test_the_norm_is_checked_to_the_last_step() -> None:
    codec = FixedPointCodec.for_cohort(1, 5.0, 2)
    # 3-4-5 on the grid lies on the bound exactly; one step more lies outside by 4e-9 of the norm.
    update = np.array([3.0, 4.0])
    assert (codec.decode(codec.encode(update, np.full(2, ONES))) == update).all()
    with pytest.raises(CodecError, match="exceeds"):
        codec.encode(update + np.array([0.0, 1 / codec.scale]), np.full(2, ONES))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30))
def test_square_sums_are_exact(values: list[int]) -> None:
    assert exact_square_sum(np.array(values, dtype=np.uint64)) == sum(value * value for value in values)


def test_wrong_shapes_and_types_are_refused() -> None:
    codec = FixedPointCodec.for_cohort(3, 1.0, 4)
    with pytest.raises(CodecError, match="update: must be float32 or float64"):
        codec.encode(np.zeros(5), np.full(4, ZEROS))
    with pytest.raises(CodecError, match="update: must be float32 or float64"):
        codec.encode(np.zeros(4, dtype=np.int64), np.full(4, ZEROS))
    with pytest.raises(CodecError, match="uniforms: must be uint64"):
        codec.encode(np.zeros(4), np.zeros(4))
    with pytest.raises(CodecError, match="total: must be uint32"):
        codec.decode(np.zeros(4, dtype=np.uint64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, 4), "cohort_size"),
        ((3, 0.0, 4), "clip_norm"),
        ((3, math.nan, 4), "clip_norm"),
        ((3, math.inf, 4), "clip_norm"),
        ((3, 1e-300, 4), "too far from 1"),
        ((3, 1.0, 0), "dimension"),
        ((3, 1.0, 4, 7), "ring_bits"),
        ((2**31, 1.0, 4), "not one step fits"),
        ((2**24, 1.0, 4), "the clip norm is only .* steps. Use a larger ring_bits"),
        ((10_000, 1.0, 2**28), "rounding may take .*% of the clip norm"),
    ],
)
def test_impossible_codecs_are_refused(arguments: tuple[int, float, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        FixedPointCodec.for_cohort(*arguments)


@settings(deadline=None)
@given(st.integers(1, 2**23), st.integers(1, 2**26))
def test_an_accepted_codec_is_fine_enough(cohort: int, dimension: int) -> None:
    try:
        codec = FixedPointCodec.for_cohort(cohort, 1.0, dimension)
    except ParameterError:
        assume(False)
    assert codec.scale >= 256
    # What is refused is decided by the grid alone; the slack holds the error of measuring a norm besides.
    assert codec.rounding_slack <= 1 / 16 + (dimension + 8) * 2.0**-53 + 1e-15
