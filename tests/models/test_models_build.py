from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.build import build_model
from privfed.models.structure import find_dense_input, find_embedding, find_output_bias
from privfed.models.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_build_gives_the_zoo_and_its_declared_structure_is_what_the_gradients_show(name):
    shape = (8,) if name == "transformer" else (8, 8, 1)
    model = build_model(name, shape, 10)
    assert model.input_shape == shape
    assert model.logits(model.unflatten(model.initial_vector(0)), np.zeros((3, *shape), np.float32)).shape == (
        3,
        10,
    )
    assert find_embedding(model) == model.embedding
    assert find_dense_input(model) == model.dense_input
    assert find_output_bias(model) == model.output_bias


def test_build_passes_options_on():
    model = build_model("mlp", (8, 8, 1), 10, hidden=[5, 3], activation="tanh", initializer="uniform")
    assert [spec.shape for spec in model.variables] == [(64, 5), (5,), (5, 3), (3,), (3, 10), (10,)]
    assert np.abs(model.initial_vector(0)).max() <= 0.5
    weights = [tf.ones(spec.shape) for spec in model.variables]
    x = np.full((1, 8, 8, 1), 0.01, np.float32)
    hidden = np.tanh(5 * np.tanh(64 * 0.01 + 1) + 1)
    np.testing.assert_allclose(model.logits(weights, x), np.full((1, 10), 3 * hidden + 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "where", "reason"),
    [
        ("resnet", {}, "model.name", "Known: softmax, mlp, lenet, cnn, transformer; or module:function"),
        ("softmax", {"hidden": [3]}, "model.hidden", "softmax does not take hidden.*takes initializer"),
        ("cnn", {"hidden": [3]}, "model.hidden", "cnn does not take hidden"),
        ("softmax", {"activation": "relu"}, "model.activation", "softmax does not take activation"),
        ("mlp", {"activation": "gelu"}, "model.activation", "Known: relu, sigmoid, tanh"),
        ("mlp", {"initializer": "ones"}, "model.initializer", "Known: zeros, glorot, uniform"),
        ("mlp", {"hidden": []}, "model.hidden", "widths of at least 1"),
        ("mlp", {"hidden": [0]}, "model.hidden", "widths of at least 1"),
        ("module:function", {"hidden": [3]}, "model.hidden", "Set it inside module:function"),
    ],
)
def test_build_refuses_what_does_not_fit(name, options, where, reason):
    with pytest.raises(SettingError, match=reason) as refusal:
        build_model(name, (8, 8, 1), 10, **options)
    assert refusal.value.where == where


def test_build_refuses_a_single_class_and_flat_features_for_images():
    with pytest.raises(SettingError, match="at least two classes"):
        build_model("softmax", (8, 8, 1), 1)
    with pytest.raises(SettingError, match="needs images"):
        build_model("lenet", (64,), 10)
    with pytest.raises(SettingError, match="at least 6×6"):
        build_model("cnn", (5, 8, 1), 10)
