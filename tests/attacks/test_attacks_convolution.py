"""A convolution's products by its structure against the dense matrices that they avoid."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.conv_chain import Convolution

LAYERS = {
    "stride 1": Convolution(1, (2, 2), (5, 5), (7, 6, 3), (7, 6, 4)),
    "stride 2": Convolution(2, (2, 2), (5, 5), (8, 8, 1), (4, 4, 12)),
    "stride 3, uneven": Convolution(3, (1, 0), (4, 5), (9, 6, 2), (3, 1, 3)),
    "kernel beyond the input": Convolution(1, (3, 3), (7, 7), (1, 2, 2), (1, 2, 3)),
    "inputs that no output sees": Convolution(3, (0, 0), (2, 2), (9, 8, 2), (3, 3, 2)),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request: pytest.FixtureRequest) -> Convolution:
    return request.param


def draws(layer: Convolution) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel ``[taps, channels, filters]``, input ``[places, channels]``, outputs ``[positions, filters]``."""
    rng = np.random.default_rng(7)
    taps, (h, w, channels), (oh, ow, filters) = layer.kernel[0] * layer.kernel[1], layer.inputs, layer.outputs
    kernel, x = rng.normal(size=(taps, channels, filters)), rng.normal(size=(h * w, channels))
    return kernel, x, rng.normal(size=(oh * ow, filters))


def test_forward_and_backward_are_the_matrix_and_its_transpose(layer: Convolution) -> None:
    kernel, x, delta = draws(layer)
    matrix = layer.matrix(kernel)
    np.testing.assert_allclose(layer.forward(kernel, x).reshape(-1), matrix @ x.reshape(-1), atol=1e-12)
    np.testing.assert_allclose(layer.backward(kernel, delta).reshape(-1), matrix.T @ delta.reshape(-1), atol=1e-12)


def test_backward_of_a_kernel_s_gradient_is_the_correlation_s_right_hand_side(layer: Convolution) -> None:
    target, _, delta = draws(layer)
    rows = layer.correlation(delta).reshape(-1, layer.inputs[0] * layer.inputs[1])
    aim = target.transpose(0, 2, 1).reshape(len(rows), -1)
    np.testing.assert_allclose(layer.backward(target, delta), rows.T @ aim, atol=1e-12)


def test_normal_and_gram_are_products_of_the_dense_matrices(layer: Convolution) -> None:
    kernel, _, weights = draws(layer)
    matrix = layer.matrix(kernel)
    np.testing.assert_allclose(
        layer.normal(kernel, weights), matrix.T @ (weights.reshape(-1, 1) * matrix), atol=1e-12
    )
    rows = layer.correlation(weights).reshape(-1, layer.inputs[0] * layer.inputs[1])
    np.testing.assert_allclose(layer.gram(weights), rows.T @ rows, atol=1e-12)
