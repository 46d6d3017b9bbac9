"""Label inference: the published single-example rule, and multisets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.labels import infer_labels


def _bias_gradient(logits, labels):
    """Mean of softmax − one-hot, from its definition."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.mean(shifted / shifted.sum(1, keepdims=True) - np.eye(logits.shape[1])[labels], axis=0)


@settings(deadline=None)
@given(st.integers(2, 30), st.data())
def test_one_example_is_always_right(classes, data):
    """iDLG (Zhao et al. 2020): the only negative entry, whatever the logits and the gradient's scale."""
    label = data.draw(st.integers(0, classes - 1))
    seed = data.draw(st.integers(0, 2**32 - 1))
    scale = data.draw(st.floats(1e-6, 1e6))
    logits = np.random.default_rng(seed).normal(0, 2, (1, classes))
    assert infer_labels(scale * _bias_gradient(logits, [label]), 1).tolist() == [label]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_multiset_is_exact_at_uniform_probabilities(labels, scale):
    """Where every logit is equal each example moves its label's entry alike; up to one fewer than classes."""
    gradient = scale * _bias_gradient(np.zeros((len(labels), 10)), labels)
    assert sorted(infer_labels(gradient, len(labels)).tolist()) == sorted(labels)


def test_multiset_is_mostly_right_at_an_untrained_model():
    rng = np.random.default_rng(5)
    right = 0
    for _ in range(50):
        labels = rng.integers(0, 10, 8)
        found = infer_labels(_bias_gradient(rng.normal(0, 0.3, (8, 10)), labels), 8)
        right += np.minimum(np.bincount(found, minlength=10), np.bincount(labels, minlength=10)).sum()
    assert right / 400 > 0.9


def test_the_gradient_is_not_changed():
    gradient = np.array([-1.0, 0.5, 0.5])
    infer_labels(gradient, 3)
    assert gradient.tolist() == [-1.0, 0.5, 0.5]


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="count is 0"):
        infer_labels(np.ones(3), 0)
