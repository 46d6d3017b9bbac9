"""The transformer beside a naive twin in NumPy, and what its declared structure promises."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from privfed.errors import SettingError
from privfed.models.transformer import transformer

LENGTH, TOKENS, WIDTH, HEADS = 5, 11, 8, 2


def normalise(h, scale, bias):
    return (h - h.mean()) / np.sqrt(h.var() + 1e-5) * (1 + scale) + bias


def naive(weights, ids):
    """One window, one position and one head at a time."""
    left = list(weights)
    embedding, positions = left.pop(0), left.pop(0)
    h = [embedding[token] + positions[i] for i, token in enumerate(ids)]
    while len(left) > 4:
        s1, b1, query, key, value, out, s2, b2, k1, c1, k2, c2 = (left.pop(0) for _ in range(12))
        x = [normalise(v, s1, b1) for v in h]
        after = []
        for i in range(len(h)):
            heads = []
            for head in range(HEADS):
                part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                scores = np.array([(x[i] @ query)[part] @ (x[j] @ key)[part] for j in range(i + 1)])
                chances = np.exp(scores / np.sqrt(WIDTH / HEADS))
                chances /= chances.sum()
                heads.append(sum(chances[j] * (x[j] @ value)[part] for j in range(i + 1)))
            v = h[i] + np.concatenate(heads) @ out
            z = normalise(v, s2, b2) @ k1 + c1
            after.append(v + np.array([u * (1 + erf(u / np.sqrt(2))) / 2 for u in z]) @ k2 + c2)
        h = after
    scale, bias, kernel, offset = left
    return normalise(h[-1], scale, bias) @ kernel + offset


@pytest.fixture
def model():
    return transformer((LENGTH,), TOKENS, width=WIDTH, heads=HEADS)


@pytest.fixture
def weights(model):
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.3, spec.shape) for spec in model.variables]


def test_logits_are_those_of_a_loop(model, weights):
    ids = np.random.default_rng(2).integers(0, TOKENS, (4, LENGTH))
    expected = [naive(weights, window) for window in ids]
    np.testing.assert_allclose(model.logits(weights, ids / 255), expected, rtol=1e-5)


def test_attention_inputs_of_prefixes_do_not_know_what_comes_after(model, weights):
    ids = np.array([[3, 1, 4, 1, 5], [3, 1, 4, 9, 2]], np.int32)
    for block in range(3):
        whole = model.attention.inputs(weights, ids, block).numpy()
        np.testing.assert_allclose(whole[0, :3], whole[1, :3], rtol=1e-9)
        np.testing.assert_allclose(model.attention.inputs(weights, ids[:, :3], block), whole[:, :3], rtol=1e-9)
        assert not np.allclose(whole[0, 3], whole[1, 3])


def test_images_and_widths_that_do_not_divide_are_refused():
    with pytest.raises(SettingError, match="windows of token ids"):
        transformer((8, 8, 1), 10)
    with pytest.raises(ValueError, match="among 4 heads"):
        transformer((8,), 10, width=6)
