"""The grid: what is tried, under which names and seeds, and what is refused before anything is run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfed.errors import SettingError
from privfed.settings_file import load_settings
from privfed.sweep.grid import Base, grid, parse_axis, trial_id

NOISE = "privacy.noise_multiplier"


def test_product_in_order_with_readable_names(base: Base) -> None:
    trials = grid(base, [f"{NOISE}=1,2", "training.rounds=3,4"], seeds=2)
    assert [trial.id for trial in trials] == [
        f"noise_multiplier-{noise}_rounds-{rounds}_seed-{seed}"
        for noise in (1, 2)
        for rounds in (3, 4)
        for seed in (0, 1)
    ]
    last = trials[-1]
    assert (last.settings.privacy.noise_multiplier, last.settings.training.rounds) == (2.0, 4)
    assert dict(last.values) == {NOISE: 2, "training.rounds": 4}


def test_without_vary_there_are_the_seeds(base: Base) -> None:
    assert [trial.id for trial in grid(base, [], seeds=3)] == ["seed-0", "seed-1", "seed-2"]


def test_infinite_epsilon_is_no_mechanism_and_keeps_the_clip(base: Base) -> None:
    base = replace(base, overrides=(f"{NOISE}=none", "privacy.epsilon=1", "secure_aggregation.mode=ring"))
    finite, infinite = grid(base, ["privacy.epsilon=2,inf"], seeds=1)
    assert finite.settings.privacy.epsilon == 2
    privacy = infinite.settings.privacy
    assert (privacy.mechanism, privacy.epsilon, privacy.noise_multiplier) == ("none", None, None)
    assert privacy.clip_norm == 1
    assert infinite.values == {"privacy.epsilon": "inf"}


def test_no_two_trials_share_their_noise_and_all_share_their_clients(base: Base) -> None:
    trials = grid(base, [f"{NOISE}={','.join(map(str, range(1, 41)))}"], seeds=10)
    assert len({trial.settings.training.seed for trial in trials}) == len(trials) == 400
    assert len({trial.settings.data.model_dump_json() for trial in trials}) == 1


def test_a_larger_grid_holds_the_same_trials(base: Base) -> None:
    small = {t.id: t.settings for t in grid(base, [f"{NOISE}=2,3"], seeds=1)}
    large = {t.id: t.settings for t in grid(base, [f"{NOISE}=1,2,3"], seeds=3)}
    assert small.items() <= large.items()


def test_another_experiment_seed_is_another_sweep(base: Base) -> None:
    one, other = (grid(replace(base, overrides=(f"training.seed={s}",)), [], 1)[0] for s in (1, 2))
    assert one.settings.training.seed != other.settings.training.seed


def test_seeds_that_are_varied_are_taken_as_they_are(base: Base) -> None:
    assert [t.settings.training.seed for t in grid(base, ["training.seed=4,5"], 1)] == [4, 5]


def test_trials_are_not_attacked_unless_asked(base: Base) -> None:
    assert not grid(base, [], 1)[0].settings.attacks.enabled
    assert grid(replace(base, overrides=("attacks.enabled=true",)), [], 1)[0].settings.attacks.enabled


def test_trials_have_no_canaries_unless_asked() -> None:
    demo = Base(Path(__file__).parents[2] / "examples" / "digits.toml", ())
    assert load_settings(demo.experiment).audit.canaries
    for trial in grid(
        demo, ["privacy.epsilon=1,inf"], 1
    ):  # without noise nothing is claimed: they would be refused
        assert (trial.settings.audit.canaries, trial.settings.audit.canary_control) == (0, False)
    asked = replace(demo, overrides=("audit.canaries=40",))
    assert grid(asked, ["privacy.epsilon=1"], 1)[0].settings.audit.canaries == 40


def test_commas_in_brackets_and_quotes_belong_to_a_value() -> None:
    assert parse_axis("model.hidden=[64, 32],[16]") == ("model.hidden", ("[64, 32]", "[16]"))
    assert parse_axis('data.folder="a,b",c') == ("data.folder", ('"a,b"', "c"))


@pytest.mark.parametrize(
    ("vary", "seeds", "named"),
    [
        (["privacy.noise_multiplier"], 1, "--vary: is written"),
        (["=1,2"], 1, "--vary: is written"),
        (["training.rounds=1,,2"], 1, "--vary: is written"),
        (["training.rounds=1,1"], 1, "names a value twice"),
        (["training.rounds=1", "training.rounds=2"], 1, "varied twice"),
        (["training.seed=1,2"], 2, "--seeds"),
        (["training.colour=1"], 1, "training.colour"),
        ([f"{NOISE}=1,2,-3"], 1, "noise_multiplier--3_seed-0: privacy.noise_multiplier"),
        (["privacy.epsilon=1"], 1, "epsilon-1_seed-0: privacy"),  # beside the noise multiplier of the file
        (["data.clients=50,1", "cohort.size=2"], 1, "clients-50"),
        ([f"training.rounds={','.join(map(str, range(1, 200)))}"], 100, "10000"),
    ],
)
def test_refusals(base: Base, vary: list[str], seeds: int, named: str) -> None:
    with pytest.raises(SettingError, match=re.escape(named)) as caught:
        grid(base, vary, seeds)
    assert "\n" not in str(caught.value)


plain = st.text(st.characters(codec="utf-8"), max_size=300)


@given(plain, plain)
def test_names_are_safe_short_and_tell_values_apart(one: str, other: str) -> None:
    first, second = (trial_id({"data.folder": text}, 0) for text in (one, other))
    assert re.fullmatch(r"[A-Za-z0-9.+_~-]{1,200}", first)
    assert (first == second) == (one == other)


def test_keys_with_the_same_last_part_are_told_apart() -> None:
    assert trial_id({"training.seed": 1, "data.seed": 2}, 0) == "training.seed-1_data.seed-2_seed-0"
