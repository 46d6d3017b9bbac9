"""Rings of every width: packed and unpacked as by a naive twin, summed alike with masks and without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.secagg import FixedPointCodec, ProtocolSum, RingSum, Stage, packing, ring
from privfed.secagg.errors import InputError, ParameterError
from privfed.secagg.packing import packed_bytes
from privfed.secagg.ring import RingVector, dtype_of

WIDTHS = st.integers(8, 64)


def naive_pack(values: list[int], bits: int) -> bytes:
    """Bit by bit, in strings of ones and zeros."""
    planes, shift = b"", 0
    for width in (64, 32, 16, 8, 4, 2, 1):
        if bits & width:
            ones = "".join(f"{(v >> shift) & (2**width - 1):0{width}b}"[::-1] for v in values)
            ones += "0" * (-len(ones) % 8)
            planes += bytes(int(ones[i : i + 8][::-1], 2) for i in range(0, len(ones), 8))
            shift += width
    return planes


@pytest.mark.parametrize("block", [8, 24, packing.BLOCK])
@settings(deadline=None, max_examples=100)
@given(bits=WIDTHS, length=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_packing_is_the_naive_twins_and_comes_back(block: int, bits: int, length: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        check_packing(bits, length, seed)


def check_packing(bits: int, length: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, length, np.uint64).astype(dtype_of(bits))
    packed = bytes(RingVector(bits, values).packed)
    assert packed == naive_pack(values.tolist(), bits)
    assert len(packed) == packed_bytes(length, bits)
    back, total = RingVector.unpack(bits, length, packed), values.copy()
    back.add_to(total)
    assert total.tolist() == (values + values).tolist()
    assert back.values.dtype == dtype_of(bits)
    assert (back.values == values).all()
    assert not back.values.flags.writeable
    assert back.packed == packed
    total = values.copy()
    back.add_to(total)
    assert total.tolist() == (values + values).tolist()


def test_a_known_vector_of_26_bits() -> None:
    vector = RingVector(26, np.array([1, 2**26 - 1, 0x2ABCDEF], np.uint32))
    assert bytes(vector.packed).hex() == "0100ffffefcd" + "00ffab" + "2c"
    assert packed_bytes(1_000_000, 26) == 3_250_000


def test_vectors_that_are_not_of_the_ring_are_refused() -> None:
    for bits, values in ((32, np.zeros(3)), (16, np.zeros(3, np.uint32)), (32, np.zeros((2, 2), np.uint32))):
        with pytest.raises(InputError, match="input vector"):
            RingVector(bits, values)
    for bits in (7, 65):
        with pytest.raises(InputError, match="8 to 64 bits"):
            RingVector(bits, np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="more than 9 bits"):
        _ = RingVector(9, np.array([512], np.uint16)).packed
    with pytest.raises(ValueError, match="filled up with zeros"):
        RingVector.unpack(9, 1, b"\0\x02")
    with pytest.raises(ValueError, match="filled up with zeros"):
        RingVector.unpack(14, 2, b"\0\0\0\x10")  # 8 + 4 + 2 bits


@settings(deadline=None, max_examples=200)
@given(WIDTHS, st.data())
def test_signed_values_come_back_whatever_lies_above_the_ring(bits: int, data: st.DataObject) -> None:
    signed = data.draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    above = data.draw(st.integers(0, 2**64)) << bits
    held = np.array([(signed % 2**bits + above) % 2 ** (8 * dtype_of(bits).itemsize)], dtype_of(bits))
    assert ring.to_signed(held, bits).tolist() == [signed]
    ring.reduce(held, bits)
    assert held.tolist() == [signed % 2**bits]


@settings(deadline=None, max_examples=25)
@given(WIDTHS, st.integers(0, 2**32))
def test_the_protocol_and_the_plain_sum_agree_on_every_width(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {i: rng.integers(0, 2**bits, 11, np.uint64).astype(dtype_of(bits)) for i in range(4)}
    dropouts: dict[int, Stage | None] = {2: Stage.SHARE_KEYS}
    masked = ProtocolSum(ring_bits=bits, over_wire=True).sum(inputs, dropouts)
    plain = RingSum(ring_bits=bits).sum(inputs, dropouts)
    by_hand = [sum(int(inputs[i][k]) for i in (0, 1, 3)) % 2**bits for k in range(11)]
    assert masked.total.tolist() == plain.total.tolist() == by_hand
    assert masked.total.dtype == plain.total.dtype == dtype_of(bits)
    for upload in (*masked.uploads.values(), *plain.uploads.values()):
        assert not bits < 64 or int(upload.max()) < 2**bits
    assert plain.bytes_per_stage["input"] == 3 * packed_bytes(11, bits)
    rest = masked.bytes_per_stage["masked_input"] - plain.bytes_per_stage["input"]
    assert rest == 3 * (8 + 8 + 8 + 4 + 3 * 40 + 16)  # header, sender, length and width, three tokens, tag


def test_what_masks_hide_stays_uniform_in_a_narrow_ring() -> None:
    # χ² over the 2⁹ values at 40,000 draws, false alarm 1e-9; an unreduced or a half-masked ring fails.
    inputs = {i: np.zeros(40_000, np.uint16) for i in range(3)}
    upload = ProtocolSum(ring_bits=9).sum(inputs, {}).uploads[0]
    counts = np.bincount(upload, minlength=512)
    assert len(counts) == 512
    statistic = float(((counts - 40_000 / 512) ** 2).sum() / (40_000 / 512))
    assert abs(statistic - 511) < 6.2 * math.sqrt(2 * 511)
    half = np.bincount(upload & 0xFF, minlength=512)
    assert float(((half - 40_000 / 512) ** 2).sum() / (40_000 / 512)) > 10_000


def test_inputs_of_another_type_than_the_rings_are_refused() -> None:
    for secure_sum in (ProtocolSum(ring_bits=20), RingSum(ring_bits=20)):
        with pytest.raises(ParameterError, match="uint32 for a ring of 20 bits"):
            secure_sum.sum({i: np.zeros(3, np.uint16) for i in range(3)}, {})


# The codec -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3000),
    st.floats(1e-3, 1e3),
    st.integers(1, 50),
    st.integers(10, 20),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_the_narrowest_ring_has_the_precision_and_the_worst_cohort_does_not_overflow(
    cohort: int, clip: float, dimension: int, value_bits: int, dtype: Any, seed: int
) -> None:
    codec = FixedPointCodec.narrowest(cohort, clip, dimension, value_bits)
    assert codec.clip_norm * codec.scale > 2 ** (value_bits - 2)
    worst = cohort * math.ceil(codec.clip_norm * codec.scale)
    if codec.lanes:
        plain = FixedPointCodec._narrowest_ring(cohort, clip, dimension, value_bits)
        assert 64 / codec.lanes.count <= 1.1 * plain.ring_bits
        assert worst <= codec.lanes.half + cohort
    elif codec.ring_bits > value_bits:
        try:
            finer = FixedPointCodec.for_cohort(cohort, clip, dimension, codec.ring_bits - 1)
        except ParameterError:
            pass  # too coarse for the dimension
        else:
            assert finer.clip_norm * finer.scale <= 2 ** (value_bits - 2)
    # All weight in one coordinate, all of one sign, all rounded up.
    assert worst < 2 ** (codec.ring_bits - 1)
    update = np.random.default_rng(seed).normal(size=dimension)
    update *= (clip - codec.rounding_slack) / np.linalg.norm(update) * (1 - 1e-6)
    update = update.astype(dtype)
    total = np.zeros(codec.length, codec.dtype)
    for _ in range(3):
        codec.add_encoded(total, update, seed.to_bytes(32, "big"))
    once = np.zeros(codec.length, codec.dtype)
    codec.add_encoded(once, update, seed.to_bytes(32, "big"))
    if cohort >= 3:
        assert (codec.to_signed(total) == 3 * codec.to_signed(once)).all()
    assert (np.abs(codec.decode(once) - update) <= 1 / codec.scale).all()


def test_a_thousand_clients_16_bit_values_take_26_bits() -> None:
    codec = FixedPointCodec.narrowest(1000, 1.0, 1_000_000)
    assert (codec.ring_bits, codec.scale) == (26, 2.0**15)
    assert packed_bytes(1_000_000, 26) / 2_000_000 == 1.625
    assert FixedPointCodec.narrowest(1024, 1.0, 1_000_000).ring_bits == 27
    assert FixedPointCodec.for_cohort(100, 1.0, 10, ring_bits=16).dtype == np.uint16
    with pytest.raises(ParameterError, match="16 bits are too coarse for 1000 clients"):
        FixedPointCodec.for_cohort(1000, 1.0, 10, ring_bits=16)
