"""Protocol and ring sum agree, on totals, survivors and aborts, and both with a count made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.secagg import FixedPointCodec, ProtocolSum, RingSum, RoundAborted, SecureSum, Stage, SumResult
from privfed.secagg.errors import ParameterError

BOTH = [ProtocolSum, RingSum]


def vectors(ids: Any, dimension: int = 3, dtype: type = np.uint32, seed: int = 0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {i: rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), dimension, dtype=dtype) for i in ids}


def outcome(
    secure_sum: SecureSum, inputs: Mapping[int, Any], dropouts: Mapping[int, Stage | None]
) -> tuple[Any, ...]:
    try:
        result = secure_sum.sum(inputs, dropouts)
    except RoundAborted as aborted:
        return aborted.stage, aborted.survivors, aborted.threshold, str(aborted)
    assert set(result.uploads) == set(result.survivors)
    return result.survivors, result.total.dtype, result.total.tolist()


def by_hand(inputs: Mapping[int, Any], dropouts: Mapping[int, Stage | None], threshold: int) -> tuple[Any, ...]:
    """The rule, told once more: count who sends each stage's message, then add with Python's integers."""
    last = {i: dropouts.get(i, Stage.UNMASK) for i in inputs}
    counts = [sum(1 for s in last.values() if s is not None and s.value >= number) for number in range(5)]
    for stage, count in zip(Stage, counts, strict=True):
        if count < threshold:
            return stage, count, threshold
    kept = sorted(i for i, s in last.items() if s in (Stage.MASKED_INPUT, Stage.CONSISTENCY, Stage.UNMASK))
    first = inputs[kept[0]]
    modulus = 2 ** (8 * first.itemsize)
    total = [sum(int(inputs[i][k]) for i in kept) % modulus for k in range(len(first))]
    return tuple(kept), first.dtype, total


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[int, Any], dict[int, Stage | None], int]:
    ids = draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8, unique=True))
    threshold = draw(st.integers(max(2, len(ids) // 2 + 1), len(ids)))
    dtype = draw(st.sampled_from([np.uint32, np.uint64]))
    inputs = vectors(ids, draw(st.integers(1, 9)), dtype, draw(st.integers(0, 2**32)))
    gone = draw(st.lists(st.sampled_from(ids), unique=True, max_size=4))
    return inputs, {i: draw(st.sampled_from([None, *Stage])) for i in gone}, threshold


@settings(deadline=None, max_examples=80)
@given(rounds())
def test_protocol_equals_ring_equals_the_rule_told_by_hand(case: tuple[Any, Any, int]) -> None:
    inputs, dropouts, threshold = case
    expected = by_hand(inputs, dropouts, threshold)
    protocol = outcome(ProtocolSum(4, threshold), inputs, dropouts)
    assert protocol == outcome(RingSum(threshold), inputs, dropouts)
    assert protocol[:3] == expected


@pytest.mark.parametrize("last", [None, *Stage])
@pytest.mark.parametrize("kind", BOTH)
def test_one_client_vanishing_at_each_stage_is_survived(kind: Any, last: Stage | None) -> None:
    inputs = vectors([5, 0, 9, 2])
    result = kind().sum(inputs, {0: last})
    survivors = (0, 2, 5, 9) if last in (Stage.MASKED_INPUT, Stage.CONSISTENCY, Stage.UNMASK) else (2, 5, 9)
    assert result.survivors == survivors
    assert (result.total == sum((inputs[i] for i in survivors), np.zeros(3, np.uint32))).all()


@pytest.mark.parametrize(
    ("last", "stage"),
    [
        (None, Stage.ADVERTISE_KEYS),
        (Stage.ADVERTISE_KEYS, Stage.SHARE_KEYS),
        (Stage.SHARE_KEYS, Stage.MASKED_INPUT),
        (Stage.MASKED_INPUT, Stage.CONSISTENCY),
        (Stage.CONSISTENCY, Stage.UNMASK),
    ],
)
@pytest.mark.parametrize("kind", BOTH)
def test_below_the_threshold_the_round_aborts(kind: Any, last: Stage | None, stage: Stage) -> None:
    match = f"aborted at stage {stage.name}: 2 clients left, threshold 3"
    with pytest.raises(RoundAborted, match=match) as caught:
        kind().sum(vectors(range(4)), dict.fromkeys((1, 3), last))
    assert (caught.value.stage, caught.value.survivors, caught.value.threshold) == (stage, 2, 3)


@pytest.mark.parametrize("kind", BOTH)
def test_a_cohort_smaller_than_the_threshold_aborts(kind: Any) -> None:
    for ids in ([], [4]):
        with pytest.raises(RoundAborted) as caught:
            kind().sum(vectors(ids), {})
        assert (caught.value.stage, caught.value.survivors) == (Stage.ADVERTISE_KEYS, len(ids))
    with pytest.raises(RoundAborted, match="2 clients left, threshold 5"):
        kind(threshold=5).sum(vectors([1, 2, 3]), {2: None})


@pytest.mark.parametrize("kind", BOTH)
def test_wrong_arguments_are_refused(kind: Any) -> None:
    good = vectors([1, 2, 3])
    with pytest.raises(ParameterError, match="client 8 vanishes but has no input"):
        kind().sum(good, {8: None})
    with pytest.raises(ParameterError, match="threshold: must be at least 2 and above half"):
        kind(threshold=1).sum(good, {})
    for wrong in (np.zeros(4, np.uint32), np.zeros(3, np.uint64)):
        with pytest.raises(ParameterError, match="one type and shape"):
            kind().sum({**good, 2: wrong}, {})
    for wrong in (np.zeros(3), np.zeros((3, 1), np.uint32), np.zeros(0, np.uint32)):
        with pytest.raises(ParameterError, match="must be vectors of uint"):
            kind().sum(dict.fromkeys((1, 2, 3), wrong), {})


def test_a_bad_session_is_refused() -> None:
    with pytest.raises(ParameterError, match="session"):
        ProtocolSum(0, session=b"x").sum(vectors([1, 2]), {})


def test_uploads_are_masked_in_one_and_plain_in_the_other() -> None:
    inputs = vectors(range(5), 64)
    masked, plain = ProtocolSum().sum(inputs, {}), RingSum().sum(inputs, {})
    for i in inputs:
        assert (plain.uploads[i] == inputs[i]).all()
        # 64 words: a chance of one in 2**26 that even one of them is left as it was.
        assert (masked.uploads[i] != inputs[i]).all()
        assert plain.uploads[i] is not inputs[i]
    assert (masked.total == plain.total).all()


def test_the_traffic_of_every_stage_is_counted() -> None:
    n, d = 5, 7
    result = ProtocolSum().sum(vectors(range(n), d), {4: Stage.SHARE_KEYS})
    assert result.bytes_per_stage == {
        "advertise_keys": n * (8 + 8 + 32 + 32 + 32 + 64),
        "share_keys": n * (8 + 8 + 32 + 4 + (n - 1) * (8 + 12 + 66 + 16) + 16),
        "masked_input": (n - 1) * (8 + 8 + 8 + 4 * d + 4 + (n - 1) * (8 + 32) + 16),
        "consistency": (n - 1) * (8 + 8 + 64),
        "unmask": (n - 1) * (8 + 8 + 4 + 4 + n * (8 + 33) + 16),
    }
    assert RingSum().sum(vectors(range(n), d), {4: None}).bytes_per_stage == {"input": (n - 1) * 4 * d}
    assert result.seconds_per_stage.keys() == result.bytes_per_stage.keys()
    assert min(result.seconds_per_stage.values()) > 0


def test_inputs_are_left_alone() -> None:
    inputs = vectors(range(4))
    copies = {i: vector.copy() for i, vector in inputs.items()}
    for kind in BOTH:
        kind().sum(inputs, {2: Stage.MASKED_INPUT})
    assert all((inputs[i] == copies[i]).all() for i in inputs)


def test_codec_and_protocol_give_the_mean_of_real_updates() -> None:
    n, d = 6, 200
    codec = FixedPointCodec.for_cohort(n, 1.0, d)
    rng = np.random.default_rng(3)
    updates = {i: rng.normal(size=d) for i in range(n)}
    updates = {i: u * 0.9 / np.linalg.norm(u) for i, u in updates.items()}
    encoded = {i: codec.encode(u, rng.integers(0, 2**64, d, dtype=np.uint64)) for i, u in updates.items()}
    result: SumResult = ProtocolSum().sum(encoded, {5: None})
    exact = sum(updates[i] for i in result.survivors)
    assert np.abs(codec.decode(result.total) - exact).max() < len(result.survivors) / codec.scale
