"""What the server sees is uniform, whatever went in; and a mask with a flaw is caught by the same test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from privfed.secagg import ProtocolSum, Stage
from privfed.secagg.keys import KeyPair, pair_mask_key
from privfed.secagg.prg import apply_masks
from privfed.secagg.shamir import combine, weights_at_zero

FALSE_ALARM = 1e-7  # of each single test below; about 20 of them in this file
LENGTH = 20_000


def p_value(counts: np.ndarray) -> float:
    """Pearson's test of equal probabilities."""
    expected = counts.sum() / counts.size
    return float(chi2.sf(((counts - expected) ** 2).sum() / expected, counts.size - 1))


def looks_uniform(vector: np.ndarray) -> bool:
    """Bytes at every position of the word, each against the uniform distribution, at ``FALSE_ALARM`` together."""
    columns = vector.view(np.uint8).reshape(len(vector), vector.itemsize)
    p_values = [p_value(np.bincount(column, minlength=256)) for column in columns.T]
    return min(p_values) > FALSE_ALARM / len(p_values)


def masked(dtype: type, value: int) -> dict[int, np.ndarray]:
    inputs = {i: np.full(LENGTH, value, dtype=dtype) for i in range(4)}
    return dict(ProtocolSum().sum(inputs, {3: Stage.MASKED_INPUT}).uploads)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("value", [0, 12345])
def test_masked_vectors_look_uniform(dtype: type, value: int) -> None:
    assert all(looks_uniform(upload) for upload in masked(dtype, value).values())


def test_pairs_of_masked_vectors_look_independent() -> None:
    uploads = masked(np.uint32, 0)
    assert looks_uniform(uploads[0] - uploads[1])
    assert looks_uniform(uploads[0] + uploads[1])


def test_a_vanished_clients_upload_stays_masked_though_its_key_is_rebuilt(make_session: Any) -> None:
    # Client 3 is called dropped although its vector arrived late: the self-mask still covers it.
    session = make_session(range(4), 3, LENGTH)
    session.inputs = {i: np.zeros(LENGTH, np.uint32) for i in range(4)}
    session.run_to(Stage.UNMASK, gone=[3]).reveal()
    session.clients[3].receive(session.inboxes[3])
    late = session.clients[3].contribute(session.inputs[3]).vector.values.copy()
    points, scope = session.params.points, session.server._scope
    weights = weights_at_zero([points[holder] for holder in session.reveals])
    shares = [answer.key_shares[3] for answer in session.reveals.values()]
    pair = KeyPair.from_private_bytes(combine(weights, shares).to_bytes(32, "big"))
    assert pair.public == session.advertised[3].mask_key
    keys = {i: session.advertised[i].mask_key for i in range(3)}
    apply_masks(late, [pair_mask_key(scope, pair, 3, i, key) for i, key in keys.items()], [])
    assert looks_uniform(late)


def top_bit_lost(vector: np.ndarray, added: Sequence[bytes], subtracted: Sequence[bytes], workers: int) -> None:
    apply_masks(vector, added, subtracted)
    vector &= np.array(2 ** (8 * vector.itemsize - 1) - 1, dtype=vector.dtype)


def small_masks(vector: np.ndarray, added: Sequence[bytes], subtracted: Sequence[bytes], workers: int) -> None:
    noise = np.zeros_like(vector)
    apply_masks(noise, added, subtracted)
    vector += noise % np.array(1000, dtype=vector.dtype)


def one_block_over_and_over(
    vector: np.ndarray, added: Sequence[bytes], subtracted: Sequence[bytes], workers: int
) -> None:
    block = np.zeros(64, dtype=vector.dtype)
    apply_masks(block, added, subtracted)
    vector += np.resize(block, len(vector))


def no_masks(vector: np.ndarray, added: Sequence[bytes], subtracted: Sequence[bytes], workers: int) -> None:
    pass


@pytest.mark.parametrize("broken", [top_bit_lost, small_masks, one_block_over_and_over, no_masks])
def test_broken_masks_are_caught(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.secagg.client.apply_masks", broken)
    assert not any(looks_uniform(upload) for upload in masked(np.uint32, 0).values())


def test_a_missing_self_mask_shows_when_the_pairwise_masks_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    # All pairwise masks cancel in the sum of uploads; what is left is uniform only because of the self-masks.
    def total() -> np.ndarray:
        return sum(masked(np.uint32, 0).values(), np.zeros(LENGTH, np.uint32))

    assert looks_uniform(total())
    monkeypatch.setattr(
        "privfed.secagg.client.apply_masks",
        lambda vector, added, subtracted, workers: apply_masks(vector, added[1:], subtracted),
    )
    assert not looks_uniform(total())


# What the server sees does not depend on how a sum is made up ----------------------------------------------------


def view(inputs: dict[int, np.ndarray]) -> np.ndarray:
    """All masked uploads of one round, ``[clients * LENGTH]``."""
    return np.concatenate(list(ProtocolSum().sum(inputs, {}).uploads.values()))


def distinguish() -> int:
    """Correct guesses, of 40, at who of two clients put in all of the sum, and who nothing.

    The guess is the one whose upload is more often just above what was put in.
    """
    rng = np.random.default_rng(11)
    everything, nothing = np.full(2000, 2**30, np.uint32), np.zeros(2000, np.uint32)
    correct = 0
    for bit in rng.integers(0, 2, 40).tolist():
        worlds = {0: everything, 1: nothing, 2: nothing}, {0: nothing, 1: everything, 2: nothing}
        first, second, _ = view(worlds[bit]).reshape(3, -1)
        near = [np.mean(upload - np.uint32(2**30) < 2**28) for upload in (first, second)]
        correct += bit == int(near[1] > near[0])
    return correct


# 40 fair coins: fewer than 6 or more than 34 heads has probability 1.4e-6.
CHANCE = range(6, 35)


def test_a_distinguisher_of_inputs_with_one_sum_does_no_better_than_chance() -> None:
    assert distinguish() in CHANCE


def test_the_distinguisher_wins_against_masks_that_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.secagg.client.apply_masks", small_masks)
    monkeypatch.setattr("privfed.secagg.server.apply_masks", lambda *_: None)
    assert distinguish() not in CHANCE


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_masked_values_pass_kolmogorov_and_smirnov(dtype: type) -> None:
    # As fractions of the ring; 4 uploads of one round, 1e-7 each.
    top = 2.0 ** (8 * np.dtype(dtype).itemsize)
    for upload in masked(dtype, 7).values():
        assert kstest(upload / top, "uniform").pvalue > FALSE_ALARM


def test_kolmogorov_and_smirnov_catch_a_lost_top_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.secagg.client.apply_masks", top_bit_lost)
    for upload in masked(np.uint32, 7).values():
        assert kstest(upload / 2.0**32, "uniform").pvalue < FALSE_ALARM
