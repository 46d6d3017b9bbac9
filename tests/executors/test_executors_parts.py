"""Parts of a cohort, and the tree of their sums."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_executors_sums import CLIP, MANY_STEPS, ONE_STEP, SEED, make

from privfed.executors.parts import FEWEST, LEAST_EXAMPLES, Node, TreeSum, cut, nodes

DIMENSION = 5


def by_recursion(vectors):
    """The tree as a definition: halves at powers of two, added left to right."""
    if len(vectors) == 1:
        return vectors[0]
    half = 1 << (len(vectors) - 1).bit_length() - 1
    return by_recursion(vectors[:half]) + by_recursion(vectors[half:])


@given(count=st.integers(1, 70), wanted=st.integers(1, 20), fewest=st.integers(1, 9), order=st.randoms())
def test_whoever_adds_which_subtree_in_which_order_the_bits_are_the_same(count, wanted, fewest, order):
    vectors = np.random.default_rng(count).normal(size=(count, DIMENSION)) * 10.0 ** np.arange(DIMENSION)
    shared_out = nodes(count, wanted, fewest)
    assert [part for node in shared_out for part in node.parts(count)] == list(range(count))
    order.shuffle(shared_out)
    tree = TreeSum(count)
    for node in shared_out:
        own = TreeSum(len(node.parts(count)))
        for number, part in enumerate(node.parts(count)):
            own.add(Node(0, number), vectors[part].copy())
        tree.add(node, own.total(DIMENSION))
    np.testing.assert_array_equal(tree.total(DIMENSION), by_recursion(vectors))


def test_a_sum_in_the_order_of_arrival_would_not_do():
    vectors = np.random.default_rng(0).normal(size=(40, DIMENSION))
    assert (vectors.sum(0) != by_recursion(vectors)).any()


def test_subtrees_in_order_keep_few_vectors_and_threads_may_add():
    tree = TreeSum(1000)
    for number in range(1000):
        tree.add(Node(0, number), np.ones(1))
        assert len(tree._waiting) <= 10
    assert tree.total(1) == 1000
    shared = TreeSum(64)
    threads = [
        threading.Thread(target=lambda mine=mine: [shared.add(Node(0, n), np.ones(1)) for n in mine])
        for mine in np.array_split(np.random.default_rng(0).permutation(64), 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.total(1) == 64


def test_a_part_that_is_missing_is_noticed_and_nothing_is_zeros():
    tree = TreeSum(3)
    tree.add(Node(0, 1), np.ones(2))
    with pytest.raises(ValueError, match="lacks"):
        tree.total(2)
    np.testing.assert_array_equal(TreeSum(0).total(2), [0, 0])


@given(
    sizes=st.lists(st.integers(1, 500), max_size=300), dimension=st.integers(1, 10**7), least=st.integers(1, 2000)
)
def test_parts_are_consecutive_and_of_about_the_same_work(sizes, dimension, least):
    work = np.array(sizes, float)
    parts = list(cut(work, dimension, least))
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(len(part) for part in parts)
    if parts:
        assert len(parts) <= max(FEWEST, work.sum() / LEAST_EXAMPLES)
        assert len(parts) <= -(-work.sum() // least)
        assert max((work[part] + 1).sum() for part in parts) <= 2 * (work + 1).sum() / len(parts) + work.max() + 1


@pytest.mark.parametrize(
    ("model_name", "path", "training"),
    [("cnn", "loop", MANY_STEPS), ("mlp", "xla", MANY_STEPS), ("mlp", "ghost", ONE_STEP)],
)
def test_threads_do_not_change_a_bit_of_a_sum(model_name, path, training):
    model, work = make(model_name, path, training, threads=1)
    weights, clients = model.initial_vector(1), [4, 0, 2, 3, 5, 1] * 5
    expected = work.clipped_sum(weights, clients, SEED, CLIP)
    for threads in (2, 3):
        got = make(model_name, path, training, threads=threads)[1].clipped_sum(weights, clients, SEED, CLIP)
        for key in ("total", "norms", "loss_sum", "correct", "seen"):
            np.testing.assert_array_equal(getattr(got, key), getattr(expected, key), err_msg=key)
