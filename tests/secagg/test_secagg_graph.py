"""The graph, the tree whose root it is drawn from, and the memory of sessions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from privfed.secagg import SecAggParams, SessionsInMemory, SessionsOnDisk, merkle
from privfed.secagg.graph import Graph


def params(n: int, degree: int | None, session: bytes = b"s" * 16) -> SecAggParams:
    threshold = (n if degree is None else min(degree + 1, n)) // 2 + 1
    return SecAggParams(session, 0, tuple(range(10, 10 + n)), threshold, 1, degree=degree)


@pytest.mark.parametrize(("n", "degree"), [(5, 2), (9, 4), (40, 6), (41, 38)])
def test_the_ring_is_regular_mutual_and_connected(n: int, degree: int) -> None:
    graph = Graph(params(n, degree), b"r" * 32)
    ids = range(10, 10 + n)
    around = {i: graph.neighbours(i) for i in ids}
    for i, others in around.items():
        assert len(set(others)) == degree
        assert i not in others
        assert list(others) == sorted(others)
        assert all(i in around[other] for other in others)
    reached, frontier = set(), {10}
    while frontier:
        reached |= frontier
        frontier = {j for i in frontier for j in around[i]} - reached
    assert reached == set(ids)


@pytest.mark.parametrize("degree", [None, 6, 8, 100])
def test_few_clients_are_all_joined(degree: int | None) -> None:
    graph = Graph(params(7, degree), b"r" * 32)
    assert graph.neighbours(12) == (10, 11, 13, 14, 15, 16)


def test_the_ring_depends_on_root_session_and_parameters() -> None:
    given = params(60, 10)
    rings = {
        tuple(Graph(p, root).neighbours(i) for i in p.client_ids)
        for p, root in ((given, b"r" * 32), (given, b"q" * 32), (params(60, 10, b"t" * 16), b"r" * 32))
    }
    assert len(rings) == 3
    again = tuple(Graph(given, b"r" * 32).neighbours(i) for i in given.client_ids)
    assert again in rings


def test_all_orders_of_a_small_ring_are_equally_likely() -> None:
    # Client 10's two neighbours among 5: 10 pairs, 4,000 roots. False alarm 1e-6; a ring that ignores the root or
    # sorts fewer than all clients fails by far.
    pairs = Counter(Graph(params(6, 2), i.to_bytes(32, "big")).neighbours(10) for i in range(4000))
    assert len(pairs) == 10
    counts = np.array(list(pairs.values()))
    assert chi2.sf(((counts - 400) ** 2 / 400).sum(), 9) > 1e-6


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_every_leaf_is_under_the_root_at_its_place_only(size: int) -> None:
    leaves = [merkle.leaf(bytes([i])) for i in range(size)]
    tree = merkle.Tree(leaves)
    for i, own in enumerate(leaves):
        path = tree.path(i)
        assert merkle.root_above(own, path, i, size) == tree.root
        assert merkle.root_above(merkle.leaf(b"other"), path, i, size) != tree.root
        assert not any(merkle.root_above(own, path, j, size) == tree.root for j in range(size) if j != i)
        assert merkle.root_above(own, (*path, bytes(32)), i, size) is None


def test_the_tree_is_the_one_that_plain_hashing_gives() -> None:
    def h(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    a, b, c = (h(b"\0" + name) for name in (b"a", b"b", b"c"))
    root = h(b"\1" + h(b"\1" + a + b) + h(b"\1" + c + h(b"\2")))
    assert merkle.Tree([merkle.leaf(name) for name in (b"a", b"b", b"c")]).root == root
    # A node's children are no leaf, and an absent client no client.
    assert merkle.leaf(a + b) != h(b"\1" + a + b)
    assert h(b"\2") == merkle.ABSENT
    assert merkle.top(root, bytes(32)) == h(b"\3" + root + bytes(32))


def test_sessions_are_claimed_once(tmp_path: Path) -> None:
    for used in (SessionsInMemory(), SessionsOnDisk(tmp_path / "a" / "b")):
        assert used.claim(1, b"session")
        assert not used.claim(1, b"session")
        assert used.claim(2, b"session")
        assert used.claim(1, b"another")
    assert not SessionsOnDisk(tmp_path / "a" / "b").claim(2, b"session")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


CLAIMS = """
import sys
from pathlib import Path
from privfed.secagg import SessionsOnDisk
used = SessionsOnDisk(Path(sys.argv[1]))
print(sum(used.claim(1, b"%d" % i) for i in range(200)))
"""


def test_of_many_processes_one_claims_a_session(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIMS, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert sum(int(process.communicate()[0]) for process in started) == 200
