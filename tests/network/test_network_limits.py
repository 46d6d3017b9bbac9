"""What a client accepts of a plan, which a server may change or which offers less; and what it remembers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from roundtable import OFFER, RUN, Table

from privfed.config import Settings
from privfed.errors import OutputError
from privfed.network import frames
from privfed.network.errors import DeclinedError
from privfed.network.frames import Invitation, Offer
from privfed.network.limits import Limits
from privfed.network.memory import ClientMemory
from privfed.network.plan import accepted, offered
from privfed.privacy.accounting import Guarantee

PLAN = Settings.model_validate(
    {
        "privacy": {
            "mechanism": "discrete_gaussian",
            "clip_norm": 0.5,
            "noise_multiplier": 1.0,
            "randomness": "secure",
        },
        "secure_aggregation": {"mode": "protocol", "threshold": 9},
        "data": {"clients": 20},
    }
)


def changed(section: str, **values: Any) -> Settings:
    tree = PLAN.model_dump(exclude_none=True)
    tree[section] |= values
    return Settings.model_validate(tree)


def test_a_plan_within_the_limits_is_accepted() -> None:
    Limits(min_noise=1.0, model_hash="a" * 64).check_settings(PLAN, "a" * 64)


@pytest.mark.parametrize(
    ("settings", "limits", "cause", "words"),
    [
        (changed("privacy", noise_multiplier=0.99), Limits(min_noise=1.0), "min-noise", "below --min-noise 1"),
        (changed("privacy", randomness="research"), Limits(), "allow-research", "known seed"),
        (changed("secure_aggregation", mode="ring"), Limits(), "allow-unmasked", "not masked"),
        (PLAN, Limits(model_hash="b" * 64), "model-hash", "not that of --model-hash"),
        (
            changed("privacy", clip_norm=0.6),
            Limits(max_clip_norm=0.5),
            "max-clip-norm",
            r"plan's clip norm, 0\.6, is above --max-clip",
        ),
    ],
)
def test_a_plan_below_the_limits_is_refused(settings: Settings, limits: Limits, cause: str, words: str) -> None:
    with pytest.raises(DeclinedError, match=words) as declined:
        limits.check_settings(settings, "a" * 64)
    assert declined.value.cause == cause


def test_a_plan_without_noise_is_refused_where_noise_is_asked_for() -> None:
    tree = PLAN.model_dump(exclude_none=True)
    tree["privacy"] = {"clip_norm": 0.5, "randomness": "secure"}
    with pytest.raises(DeclinedError, match="noise multiplier None"):
        Limits(min_noise=0.1).check_settings(Settings.model_validate(tree), "a" * 64)


def offer_of(settings: Settings) -> Offer:
    return Offer(
        run=RUN,
        settings=offered(settings, settings.privacy.noise_multiplier, 20),
        clients=20,
        input_shape=[8, 8, 1],
        classes=10,
        initial_sha256="0" * 64,
    )


@pytest.mark.parametrize("lie", [{"clip_norm": 50.0}, {"noise_multiplier": 0.01}])
def test_a_server_that_changes_clip_norm_or_noise_of_an_accepted_plan_is_refused(
    tmp_path: Path, lie: dict[str, float]
) -> None:
    """A client clips and noises by the plan that it accepted, and no other."""
    memory = ClientMemory(tmp_path / "memory")
    memory.close()
    honest = offer_of(PLAN)
    memory.accept(RUN, frames.digest(honest), 1.0, 20)
    memory.check(RUN, frames.digest(offer_of(accepted(honest.settings))))
    with pytest.raises(DeclinedError, match="not the one that was accepted") as declined:
        memory.check(RUN, frames.digest(offer_of(changed("privacy", **lie))))
    assert declined.value.cause == "plan changed"
    assert "noise_multiplier" not in Invitation.model_fields


def test_a_server_that_moves_the_clip_norm_beyond_the_clients_own_limit_is_refused(table: Table) -> None:
    """Whatever the accepted plan can come to."""
    limits = Limits(max_clip_norm=0.5)

    def invited(clip_norm: float) -> Invitation:
        frame, _ = frames.decode(table.invitation(table.params(), clip_norm=clip_norm), Invitation)
        return frame

    limits.check_round(invited(0.5))
    with pytest.raises(DeclinedError, match=r"round's clip norm, 0\.51, is above --max-clip-norm 0\.5"):
        limits.check_round(invited(0.51))
    limits.check_settings(changed("privacy", clip_norm=0.5), "a" * 64)


def guarantee(epsilon: float) -> Guarantee:
    return Guarantee(epsilon, 1e-5, "client", "", "", "", epsilon, "", 1, 1.0)


def test_the_budget_is_of_all_runs_together() -> None:
    limits, spent = Limits(max_epsilon=3.0), {"server": guarantee(2.0), "release": guarantee(1.0)}
    assert limits.check_epsilon(spent, 0.0) == 2.0
    assert limits.check_epsilon(spent, 1.0) == 2.0
    with pytest.raises(DeclinedError, match=r"on top of 1\.5") as declined:
        limits.check_epsilon(spent, 1.5)
    assert declined.value.cause == "max-epsilon"
    assert Limits(max_epsilon=3.0, against="release").check_epsilon(spent, 1.5) == 1.0
    with pytest.raises(DeclinedError, match="ε = inf"):
        Limits(max_epsilon=3.0, against="active server").check_epsilon(spent, 0.0)
    assert math.isinf(Limits().check_epsilon({}, 0.0))


def test_a_memory_outlives_its_process_and_is_one_processs(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path / "memory")
    memory.accept(RUN, OFFER, 1.5, 2)
    memory.claim_contribution(RUN, 1)
    memory.note_revocations(RUN, 7)
    with pytest.raises(OutputError, match="One process at a time"):
        ClientMemory(tmp_path / "memory")
    memory.close()
    again = ClientMemory(tmp_path / "memory")
    assert again.spent_elsewhere("another") == 1.5
    again.claim_contribution(RUN, 2)
    with pytest.raises(DeclinedError, match="all 2 rounds"):
        again.claim_contribution(RUN, 2)
    with pytest.raises(DeclinedError, match="older than 7"):
        again.note_revocations(RUN, 6)
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "os:getcwd"}},
        {"training": {"weighted": True}, "privacy": {}},
        {"executor": "tff"},
        {"nothing": 1},
    ],
)
def test_a_plan_that_a_client_cannot_or_must_not_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DeclinedError, match="plan"):
        accepted({**offered(PLAN, 1.0, 20), **change})


def test_the_servers_folders_are_not_in_the_offer() -> None:
    settings = changed("data", source="npy:/srv/private", partition="natural")
    assert b"/srv/private" not in frames.encode(offer_of(settings))
