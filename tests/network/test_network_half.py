"""A client's half of a round is the simulation's, bit by bit, though it has nothing but its own examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privfed.composition import compose
from privfed.config import Settings
from privfed.errors import SettingError
from privfed.federated.aggregation import Aggregate, RingAggregation
from privfed.network.errors import DeclinedError
from privfed.network.half import ClientHalf
from privfed.network.join import own_population
from privfed.network.plan import accepted, check_servable, offered
from privfed.settings_file import dump_toml, resolve_settings

pytestmark = pytest.mark.slow

CLIENTS = 5
BASE: dict[str, Any] = {
    "data": {"source": "digits", "clients": CLIENTS, "partition": "dirichlet"},
    "training": {
        "rounds": 3,
        "local_epochs": 2,
        "batch_size": 10,
        "learning_rate": 0.2,
        "learning_rate_warmup": 2,
    },
}
MASKED = {"mode": "protocol", "colluders": 1}
CASES: dict[str, dict[str, Any]] = {
    "no mechanism": {},
    "central, masked": {
        "privacy": {"mechanism": "gaussian", "clip_norm": 0.1, "noise_multiplier": 1.0},
        "secure_aggregation": MASKED,
    },
    "central, narrow ring": {
        "privacy": {"mechanism": "gaussian", "clip_norm": 0.1, "noise_multiplier": 1.0},
        "secure_aggregation": {**MASKED, "ring_bits": "auto"},
    },
    "local": {"privacy": {"mechanism": "local", "clip_norm": 0.1, "noise_multiplier": 1.0}},
    "discrete Gaussian": {
        "privacy": {"mechanism": "discrete_gaussian", "clip_norm": 0.1, "noise_multiplier": 1.0},
        "secure_aggregation": MASKED,
    },
    "Skellam": {
        "privacy": {"mechanism": "skellam", "clip_norm": 0.1, "noise_multiplier": 1.0},
        "secure_aggregation": MASKED,
    },
    "calibrated": {
        "privacy": {"mechanism": "discrete_gaussian", "clip_norm": 0.1, "epsilon": 20.0, "delta": 1e-3},
        "secure_aggregation": MASKED,
    },
    "DP-SGD": {
        "training": {"rounds": 3, "local_steps": 4, "batch_size": 10},
        "privacy": {
            "mechanism": "dp_sgd",
            "unit": "example",
            "clip_norm": 0.5,
            "noise_multiplier": 1.0,
            "example_rate": 0.1,
        },
    },
    "adaptive": {"privacy": {"mechanism": "adaptive", "clip_norm": 0.1, "noise_multiplier": 1.0}},
    "adaptive, masked": {
        "privacy": {"mechanism": "adaptive", "clip_norm": 0.1, "noise_multiplier": 1.0},
        "secure_aggregation": MASKED,
    },
    "FedProx, features": {
        "training": {**BASE["training"], "algorithm": "fedprox", "proximal": 0.1, "momentum": 0.5},
        "model": {"name": "mlp", "hidden": [16], "features": "hog"},
    },
}


def simulated(settings: Settings, number: int) -> tuple[NDArray[np.float32], dict[int, NDArray[Any]]]:
    """The weights of a round, and by client what it sends, encoded where it is masked."""
    experiment = compose(settings)
    weights = experiment.initial_weights + np.float32(0.01)
    with experiment.client_work() as work:
        parts = experiment.round(work)
        aggregation: Any = parts.aggregation
        sent: dict[str, Any] = {}

        class Kept(type(aggregation)):  # type: ignore[misc]
            def sum(self, inputs: Any, vectors: Any, dropouts: Any) -> Aggregate:
                sent.update(inputs=inputs, vectors=dict(vectors))
                return Aggregate(np.zeros(inputs.length), tuple(sorted(vectors)), {})

        kept = Kept(**vars(aggregation))
        replace(parts, aggregation=kept)(
            number, weights, parts.initialize(len(weights)), experiment.sample(number), lambda w, n: None
        )
    found = {}
    for client, vector in sent["vectors"].items():
        found[client] = np.asarray(vector, np.float64)
        if isinstance(aggregation, RingAggregation):
            encoding = aggregation.encoding(sent["inputs"])
            found[client] = encoding.zeros()
            encoding.add(found[client], client, vector)
    return weights, found


def half_of(settings: Settings, client: int, data: Path) -> ClientHalf:
    """As ``privfed join`` makes it, from the offer and its own examples."""
    whole = compose(settings)
    offer = offered(settings, whole.noise_multiplier, CLIENTS)
    experiment = compose(accepted(offer), own_population(str(data), client, CLIENTS))
    with experiment.client_work() as work:
        plan = experiment.privacy_plan
        largest = 1 if plan is None else plan.largest_cohort
        return ClientHalf(
            client, experiment.round(work), experiment.initial_weights, experiment.rounds, CLIENTS, largest
        )


@pytest.mark.parametrize("case", CASES)
def test_what_a_client_sends_is_what_it_sends_in_the_simulation(case: str, tmp_path: Path) -> None:
    settings = resolve_settings({**BASE, **CASES[case]})
    data = tmp_path / "data.toml"
    data.write_text(dump_toml(settings), encoding="utf-8")
    for number in (1, 2):  # the learning rate is not the same
        weights, expected = simulated(settings, number)
        assert sorted(expected) == list(range(CLIENTS))
        for client in (0, CLIENTS - 1):
            half = half_of(settings, client, data)
            clip_norm = 0.1 if settings.privacy.mechanism == "adaptive" else None
            half.check_clip(1, clip_norm)
            np.testing.assert_array_equal(half(number, weights, CLIENTS, clip_norm), expected[client])
            if settings.secure_aggregation.mode == "protocol":
                assert half.expected(CLIENTS).dimension == len(expected[client])


def test_secure_noise_is_drawn_anew_each_time(tmp_path: Path) -> None:
    tree = {**BASE, **CASES["discrete Gaussian"]}
    settings = resolve_settings({**tree, "privacy": {**tree["privacy"], "randomness": "secure"}})
    data = tmp_path / "data.toml"
    data.write_text(dump_toml(settings), encoding="utf-8")
    half = half_of(settings, 2, data)
    first, second = (half(1, half.initial, CLIENTS) for _ in range(2))
    assert (first != second).mean() > 0.5


def test_an_update_that_is_not_finite_is_not_sent(tmp_path: Path) -> None:
    settings = resolve_settings({**BASE, **CASES["central, masked"]})
    data = tmp_path / "data.toml"
    data.write_text(dump_toml(settings), encoding="utf-8")
    half = half_of(settings, 2, data)
    with pytest.raises(DeclinedError, match="local training"), np.errstate(all="ignore"):
        half(1, np.full_like(half.initial, 3e38), CLIENTS)


@pytest.mark.parametrize(
    ("section", "values", "why"),
    [
        ("training", {"algorithm": "scaffold"}, "control variate"),
        ("training", {"weighted": True}, "numbers of examples"),
        ("secure_aggregation", {"mode": "ring"}, "hides nothing"),
        ("secure_aggregation", {"mode": "bfv"}, "needs a key holder beside server and clients"),
        ("audit", {"canaries": 3}, "makes clients up"),
    ],
)
def test_what_is_for_simulations_is_refused_with_its_reason(
    section: str, values: dict[str, Any], why: str
) -> None:
    settings = resolve_settings({**BASE, **CASES["discrete Gaussian"]})
    part = getattr(settings, section).model_copy(update=values)
    with pytest.raises(SettingError, match=why):
        check_servable(settings.model_copy(update={section: part}))
    check_servable(settings)
