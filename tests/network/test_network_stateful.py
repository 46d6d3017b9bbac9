"""Central noise with a memory, and clip norms that move: what a client keeps count of, and what it believes.

That whole trainings are the simulation's: ``test_network_training.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfed.composition import compose
from privfed.config import Settings
from privfed.experiment import Experiment
from privfed.network.errors import DeclinedError
from privfed.network.half import ClientHalf
from privfed.network.join import _participation, _spent, own_population
from privfed.network.limits import Limits
from privfed.network.memory import ClientMemory
from privfed.network.plan import accepted, offered
from privfed.privacy.mechanisms import AdaptiveClipping
from privfed.settings_file import dump_toml, resolve_settings

CLIENTS, ROUNDS = 6, 5
ROUND_ROBIN = {"sampling": "round_robin", "size": 2}
MASKED = {"mode": "protocol", "colluders": 0}
CASES: dict[str, dict[str, Any]] = {
    "adaptive": {"mechanism": "adaptive", "cohort": {"sampling": "poisson", "rate": 0.6, "over_selection": 0.25}},
    "adaptive, masked": {"mechanism": "adaptive", "cohort": {"sampling": "fixed", "size": 4}, "masked": True},
    "tree": {"mechanism": "tree", "cohort": ROUND_ROBIN},
    "banded": {"mechanism": "banded", "cohort": ROUND_ROBIN},
    "banded, masked": {"mechanism": "banded", "cohort": ROUND_ROBIN, "masked": True},
}


def settings_of(case: str) -> Settings:
    values = CASES[case]
    return resolve_settings(
        {
            "data": {"source": "digits", "clients": CLIENTS},
            "training": {"rounds": ROUNDS, "batch_size": 20, "learning_rate": 0.2},
            "cohort": values["cohort"],
            "privacy": {
                "mechanism": values["mechanism"],
                "clip_norm": 0.2,
                "noise_multiplier": 0.5,
                "delta": 1e-3,
            },
            "secure_aggregation": MASKED if values.get("masked") else {"mode": "off"},
            # What is not recorded is summed another way in mode "off", to other roundings.
            "attacks": {"rounds": list(range(1, ROUNDS + 1))},
        }
    )


def as_joined(settings: Settings, client: int, data: Path) -> Experiment:
    """As ``privfed join`` makes it, from the offer and its own examples."""
    offer = offered(settings, compose(settings).noise_multiplier, CLIENTS)
    return compose(accepted(offer), own_population(str(data), client, CLIENTS))


def half_of(experiment: Experiment, client: int) -> ClientHalf:
    plan = experiment.privacy_plan
    assert plan is not None
    with experiment.client_work() as work:
        parts = experiment.round(work)
    return ClientHalf(client, parts, experiment.initial_weights, experiment.rounds, CLIENTS, plan.largest_cohort)


def test_a_client_contributes_no_sooner_and_no_more_often_than_correlated_noise_allows(tmp_path: Path) -> None:
    settings = settings_of("banded")
    data = tmp_path / "data.toml"
    data.write_text(dump_toml(settings), encoding="utf-8")
    joined = as_joined(settings, 0, data)
    assert _participation(joined) == (2, 3)  # of 5 rounds, 2 of 6 clients in each
    with_noise = joined.guarantees()["release"].epsilon
    assert _spent(joined, Limits(allow_unmasked=True), 0.0) == with_noise  # once for the run, and not by round
    memory = ClientMemory(tmp_path / "memory")
    memory.accept("run", "0" * 64, 1.0, *_participation(joined))
    memory.claim_contribution("run", 2)
    for sooner in (3, 4, 1):
        with pytest.raises(DeclinedError, match=f"round {sooner} comes after round 2: the plan has 3 rounds"):
            memory.claim_contribution("run", sooner)
    memory.close()
    again = ClientMemory(tmp_path / "memory")  # another process of the same client
    with pytest.raises(DeclinedError, match="comes after round 2"):
        again.claim_contribution("run", 4)
    again.claim_contribution("run", 5)
    with pytest.raises(DeclinedError, match="all 2 rounds"):
        again.claim_contribution("run", 8)
    again.close()


def test_a_clip_norm_is_named_only_where_it_moves_and_only_within_reach(tmp_path: Path) -> None:
    data = tmp_path / "data.toml"
    for case, moves in (("adaptive", True), ("tree", False)):
        settings = settings_of(case)
        data.write_text(dump_toml(settings), encoding="utf-8")
        half = half_of(as_joined(settings, 0, data), 0)
        if not moves:
            half.check_clip(1, None)
            with pytest.raises(DeclinedError, match="has its own"):
                half.check_clip(1, 0.2)
            continue
        half.check_clip(1, 0.2)
        for number, named in ((1, 0.2001), (1, None), (3, 50.0), (3, 1e-6)):
            with pytest.raises(DeclinedError, match="clip norm"):
                half.check_clip(number, named)


def test_no_honest_clip_norm_is_out_of_reach() -> None:
    """All bits the same way in every round is the farthest that clients can move it; noise comes on top."""
    mechanism = AdaptiveClipping(0.2, 0.5, expected_cohort=4, quantile=0.3)
    cohort = 6
    for direction in (-1, 1):
        exact = replace(mechanism)
        logarithm = 0.0
        for number in range(1, 20):
            least, most = exact.reach(number, cohort)
            assert least <= 0.2 * np.exp(logarithm) <= most
            within = direction * cohort * 0.5 / 4 + 0.5
            logarithm -= exact.rate * (within - exact.quantile)
        least, most = exact.reach(2, cohort)
        assert most < 0.2 * np.exp(exact.rate * (cohort / 8 + 0.5 + 8 * exact.bit_noise / 4))
