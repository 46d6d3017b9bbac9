"""Many random small rounds, in all processors and with a memory of what is done: not one wrong sum.

``PRIVFED_ROUNDS`` sets how many (100,000 unless set), ``PRIVFED_ROUNDS_DIR`` a folder that keeps count, so that a
run that was stopped goes on where it was: ``PRIVFED_ROUNDS_DIR=/tmp/rounds pytest -m slow`` on this file.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from privfed.secagg import ProtocolSum, RoundAborted, Stage
from privfed.secagg.ring import dtype_of

CHUNK = 500


def play(seed: int) -> str:
    """One round of its own for every seed: ``exact`` or ``aborted``.

    Raises:
        AssertionError: A wrong sum, a wrong list of survivors, or an abort that the rule does not ask for.
    """
    draw = random.Random(seed)
    n = draw.randint(2, 6)
    degree = draw.choice([None, None, 2, 4])
    holders = n if degree is None else min(n, degree + 1)
    threshold = draw.randint(max(2, holders // 2 + 1), max(2, holders))
    ids = sorted({draw.getrandbits(64) for _ in range(n)})
    bits = draw.choice([9, 16, 22, 26, 32, 64])
    inputs = {i: np.array([draw.randrange(2**bits) for _ in range(3)], dtype_of(bits)) for i in ids}
    dropouts = {i: draw.choice([None, *Stage]) for i in ids if draw.random() < 0.2}
    left = [
        [i for i in ids if (last := dropouts.get(i, Stage.UNMASK)) is not None and last >= stage]
        for stage in Stage
    ]
    protocol = ProtocolSum(seed, threshold, degree=degree, over_wire=bool(seed % 2), ring_bits=bits)
    try:
        result = protocol.sum(inputs, dropouts)
    except RoundAborted:
        # On a ring, one neighbourhood alone may have lost too many.
        assert holders < n or min(len(clients) for clients in left) < threshold, seed
        return "aborted"
    assert result.survivors == tuple(left[Stage.MASKED_INPUT]), seed
    expected = [sum(int(inputs[i][k]) for i in result.survivors) % 2**bits for k in range(3)]
    assert result.total.tolist() == expected, seed
    assert all(len(clients) >= threshold for clients in left), seed
    return "exact"


def play_chunk(number: int, folder: Path) -> tuple[int, int]:
    done = folder / f"{number:06d}"
    if done.exists():
        exact, aborted = done.read_text().split()
        return int(exact), int(aborted)
    outcomes = [play(seed) for seed in range(number * CHUNK, (number + 1) * CHUNK)]
    counts = outcomes.count("exact"), outcomes.count("aborted")
    written = folder / f"{number:06d}.{os.getpid()}.part"
    written.write_text(f"{counts[0]} {counts[1]}\n")
    written.replace(done)
    return counts


def test_some_random_rounds() -> None:
    assert {play(seed) for seed in range(40)} == {"exact", "aborted"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_rounds_give_no_wrong_sum(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rounds = int(os.environ.get("PRIVFED_ROUNDS", "100000"))
    folder = Path(os.environ.get("PRIVFED_ROUNDS_DIR", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-rounds // CHUNK))
    # Spawned, so that no process inherits the threads of another library.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        counts = list(pool.map(play_chunk, numbers, [folder] * len(numbers)))
    exact, aborted = (sum(column) for column in zip(*counts, strict=True))
    text = f"{exact + aborted:,} rounds: {exact:,} exact sums, {aborted:,} aborts, 0 wrong sums"
    record_property("says", text)  # printed at the end of the run, from whichever process
    assert exact + aborted == len(numbers) * CHUNK
    assert exact > aborted
