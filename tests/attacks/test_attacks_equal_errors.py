"""The fast first answer of the recursive attack, when it is taken, and how levels in doubt are settled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from attacks import RecursiveAnalytic, attempt, recursive_analytic
from attacks.activations import ACTIVATIONS
from attacks.base import NotInvertible
from attacks.conv_chain import Convolution, find_chain
from attacks.equal_errors import _activations, _pixels, equal_errors
from attacks.example_gradient import example_gradient
from attacks.layer_equations import LayerEquations
from attacks.pixels import LEVELS
from attacks.recursive_analytic import _settled

SPREAD = 1e-6
NOISE = 1e-7
SIGMOID = ACTIVATIONS[0]


def of_known_input(layer: Convolution, delta: np.ndarray) -> tuple[LayerEquations, np.ndarray]:
    """Equations without error of an input ``[places, channels]``, and it."""
    rng = np.random.default_rng(2)
    places, channels, filters = layer.inputs[0] * layer.inputs[1], layer.inputs[2], layer.outputs[2]
    x = rng.uniform(size=(places, channels))
    kernel = rng.normal(size=(layer.kernel[0] * layer.kernel[1], channels, filters))
    slope = rng.uniform(0.1, 0.3, delta.shape)
    scaled = delta / (2 * NOISE)
    rows = layer.correlation(scaled).reshape(-1, places)
    known = LayerEquations(
        layer, kernel, slope, slope * layer.forward(kernel, x), delta, layer.gram(scaled), rows.T @ (rows @ x)
    )
    return known, x


def test_pixels_are_the_least_squares_solution_of_all_equations() -> None:
    layer = Convolution(2, (1, 1), (3, 3), (6, 6, 2), (3, 3, 4))
    rng = np.random.default_rng(3)
    known, x = of_known_input(layer, rng.normal(size=(9, 4)))
    # Equations that contradict each other: what their errors weigh matters.
    known = replace(known, aim=known.aim + rng.normal(size=known.aim.shape))
    found, precision = _pixels(known, SPREAD)
    rows = layer.correlation(known.delta / (2 * NOISE)).reshape(-1, 36)
    dense = np.vstack([known.slope.reshape(-1, 1) * layer.matrix(known.kernel) / SPREAD, np.kron(rows, np.eye(2))])
    aim = np.concatenate([known.aim.reshape(-1) / SPREAD, (rows @ x).reshape(-1)])
    np.testing.assert_allclose(found, np.linalg.lstsq(dense, aim, rcond=None)[0], rtol=1e-6, atol=1e-6)
    # 4,000 probes: a relative standard error of 1.1 %; beyond 6 % in one of 72 at a rate below 1e-6.
    stddevs = precision.stddevs(np.random.default_rng(5), probes=4000)
    np.testing.assert_allclose(stddevs, np.sqrt(np.diag(np.linalg.inv(dense.T @ dense))), rtol=0.06)


@pytest.mark.parametrize("seen", [9, 6], ids=["by the kernel's gradient alone", "with outputs for the rest"])
def test_activations_are_the_input_behind_the_equations(seen: int) -> None:
    layer = Convolution(1, (1, 1), (3, 3), (3, 3, 2), (3, 3, 4))
    delta = np.random.default_rng(3).normal(size=(9, 4))
    delta[:, 1:] = 0
    if seen < 9:
        # Most outputs hardly move the loss: the kernel's gradient says nothing of what they alone see.
        delta[:seen] *= 1e-9
    known, x = of_known_input(layer, delta)
    weak = np.linalg.eigvalsh(known.shared) < (30 * SPREAD) ** -2
    assert weak.any() == (seen < 9)
    found, spread = _activations(known, SPREAD, SIGMOID)
    np.testing.assert_allclose(found, x, atol=1e-7)
    assert 0 < spread < 1e-4


def test_more_unknown_activations_than_outputs_are_refused() -> None:
    layer = Convolution(2, (1, 1), (3, 3), (6, 6, 2), (3, 3, 4))
    known, _ = of_known_input(layer, np.zeros((9, 4)))
    with pytest.raises(np.linalg.LinAlgError, match="more unknown"):
        _activations(known, SPREAD, SIGMOID)


def test_equations_that_are_not_finite_are_no_answer(lab) -> None:
    place = lab("lenet")
    weights = [np.asarray(part, np.float64) for part in place.model.unflatten(place.weights)]
    gradient = [np.full_like(part, np.inf) for part in weights]
    features, error = np.full(len(weights[-2]), 0.5), np.full(10, 0.1)
    rng = np.random.default_rng(0)
    with np.errstate(invalid="ignore"):
        found = equal_errors(find_chain(place.model), weights, gradient, features, error, NOISE, rng)
    assert found is None


def _bytes(place, row: int) -> np.ndarray:
    return np.round(place.images[[row]] * LEVELS) / LEVELS


def _attack(place, image: np.ndarray, row: int):
    gradient = place.gradient(place.weights, image, place.labels[[row]])
    update = (place.weights - np.float32(0.1) * gradient.astype(np.float32) - place.weights).astype(np.float64)
    if place.plan.clip_norm is not None:
        update = update * place.plan.clip_norm / np.linalg.norm(update)
    view = place.view(place.observe([row], update))
    return attempt(RecursiveAnalytic(), view, 0, np.random.default_rng(0))


def _full_weights(*_: object) -> None:
    raise NotInvertible("asked for full weights")


@pytest.mark.parametrize("plan", [{}, {"clip_norm": 1e-3}], ids=["gradient", "clipped"])
def test_bytes_are_verified_without_the_full_weights(lab, monkeypatch, plan) -> None:
    monkeypatch.setattr(recursive_analytic, "_invert_chain", _full_weights)
    place = lab("lenet", **plan)
    for row in range(5):
        image = _bytes(place, row)
        found = _attack(place, image, row)
        np.testing.assert_array_equal(found.images, image)
        assert found.labels.tolist() == [place.labels[row]]
        assert found.residual < 1e-5
        assert found.evaluations == 1


def test_pixels_that_are_no_bytes_get_the_full_weights(lab, monkeypatch) -> None:
    monkeypatch.setattr(recursive_analytic, "_invert_chain", _full_weights)
    place = lab("lenet")
    assert _attack(place, place.images[[0]], 0).failure == "asked for full weights"


@pytest.mark.parametrize("sure", [True, False], ids=["one level off", "in doubt"])
def test_bytes_that_the_gradient_denies_or_that_are_in_doubt_get_the_full_weights(lab, monkeypatch, sure) -> None:
    place = lab("lenet")
    image = _bytes(place, 0)
    first, uncertain = image[0].copy(), np.zeros_like(image[0])
    pixel = tuple(np.argwhere((first > 0.2) & (first < 0.8))[0])
    if sure:
        first[pixel] += 1 / LEVELS
    else:
        uncertain[pixel] = 0.5 / LEVELS
    monkeypatch.setattr(recursive_analytic, "equal_errors", lambda *_: (first, uncertain))
    asked = []
    full = recursive_analytic._invert_chain
    monkeypatch.setattr(recursive_analytic, "_invert_chain", lambda *known: asked.append(1) or full(*known))
    found = _attack(place, image, 0)
    assert asked
    np.testing.assert_array_equal(found.images, image)


def test_gradient_of_an_example_is_that_of_its_loss(lab) -> None:
    place = lab("lenet")
    weights = place.weights.astype(np.float64)
    ours = example_gradient(place.model)(weights, place.images[[1]], place.labels[1]).numpy()
    np.testing.assert_allclose(ours, place.gradient(weights, place.images[[1]], place.labels[[1]]), rtol=1e-9)


@pytest.mark.parametrize("errors", [{5: 0.55}, {5: 0.55, 20: -0.52, 41: 0.97}], ids=["one", "three that depend"])
def test_levels_that_pixels_may_have_missed_are_settled_by_the_gradient(errors: dict[int, float]) -> None:
    truth = np.random.default_rng(6).integers(40, 200, (8, 8, 1)) / LEVELS
    x, uncertain = truth.copy(), np.full(truth.shape, 0.02 / LEVELS)
    for pixel, error in errors.items():
        x.flat[pixel] += error / LEVELS
        # The last lies by the wrong level as if it were the right one, but could be off by as much.
        uncertain.flat[pixel] = max(0.15, abs(error) / 3) / LEVELS
    # Pixels have part of their effects in common, as on a gradient.
    effects = np.eye(64) + 0.05

    def residual(image: np.ndarray) -> float:
        return float(np.linalg.norm(effects @ (image - truth).reshape(-1)))

    assert residual(np.round(x * LEVELS) / LEVELS) > 0.9 / LEVELS
    image, left, evaluations = _settled(x, uncertain, residual)
    np.testing.assert_allclose(image, truth, atol=1e-12)
    assert left < 1e-9
    assert evaluations <= 1 + 3 * 30
