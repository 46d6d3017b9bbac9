"""Settings: what is refused, in which words; and that a run's folder repeats the run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.config import Settings
from privfed.errors import SettingError
from privfed.settings_file import dump_toml, load_settings, resolve_settings

DIGITS = Path(__file__).parents[1] / "examples" / "digits.toml"


@pytest.mark.parametrize("example", sorted(DIGITS.parent.glob("*.toml")), ids=lambda p: p.stem)
def test_examples_are_valid_and_survive_a_round_trip(example: Path, tmp_path: Path) -> None:
    loaded = load_settings(example)
    copy = tmp_path / "config.toml"
    copy.write_text(dump_toml(loaded))
    assert load_settings(copy) == loaded
    assert load_settings(copy).fingerprint() == loaded.fingerprint()


@pytest.mark.parametrize(
    ("override", "where", "words"),
    [
        ("privacy.epsilon=0", "privacy.epsilon", "greater than 0"),
        ("privacy.epsilon=nan", "privacy.epsilon", "number"),
        ("privacy.epsilon=inf", "privacy.epsilon", "finite"),
        ("cohort.rate=1.5", "cohort.rate", "less than or equal to 1"),
        ("cohort.rate=0", "cohort.rate", "greater than 0"),
        ("cohort.size=5", "cohort", "size does not go with sampling = 'poisson'"),
        ("cohort.dropout=1", "cohort.dropout", "less than 1"),
        ("privacy.noise_multiplier=1", "privacy", "both given"),
        ("privacy.epsilon=none", "privacy", "neither epsilon nor noise_multiplier"),
        ("privacy.clip_norm=none", "privacy", "clip_norm is missing"),
        ("privacy.mechanism=none", "privacy", "needs a mechanism"),
        ("privacy.mechanism=laplace", "privacy.mechanism", "gaussian"),
        ("privacy.delta=1", "privacy.delta", "less than 1"),
        ("privacy.colour=1", "privacy.colour", "Known here: mechanism"),
        ("colour=1", "colour", "unknown key"),
        ("secure_aggregation.threshold=100", "secure_aggregation.threshold", "53.85 clients on average"),
        ("secure_aggregation.threshold=1", "secure_aggregation.threshold", "greater than or equal to 2"),
        ("secure_aggregation.colluders=54", "secure_aggregation.colluders", "honest client"),
        ("secure_aggregation.ring_bits=65", "secure_aggregation.ring_bits", "64"),
        ("training.weighted=true", "training.weighted", "influence"),
        ("training.rounds=0", "training.rounds", "nothing to protect"),
        ("training.rounds=1.5", "training.rounds", "integer"),
        ("training.rounds=true", "training.rounds", "integer"),
        ("training.learning_rate=-1", "training.learning_rate", "greater than 0"),
        ("training.algorithm=fedprox", "training.proximal", "fedprox needs"),
        ("training.proximal=0.1", "training.proximal", "fedavg has no proximal term"),
        ("training.local_steps=3", "training.local_steps", "local_epochs = 5 is given as well"),
        ("training.algorithm=fedsgd", "training.local_epochs", "one step a round"),
        ("training.algorithm=scaffold", "privacy.mechanism", "second release"),
        ("training.momentum=1", "training.momentum", "less than 1"),
        ("training.server_average=1", "training.server_average", "less than 1"),
        ("training.learning_rate_every=2", "training.learning_rate_every", "'none' does not use it"),
        ("training.learning_rate_decay=step", "training.learning_rate_every", "needs it"),
        ("training.server_learning_rate_warmup=41", "training.server_learning_rate_warmup", "40 rounds"),
        ("privacy.mechanism=dp_sgd", "privacy", "nothing for a client as a whole"),
        ("privacy.unit=example", "privacy", "goes with dp_sgd alone"),
        ("privacy.example_rate=0.1", "privacy", "does not go with mechanism = 'gaussian'"),
        ("data.partition=dirichlet(0.1)", "data.partition", "alpha"),
        ("data=3", "data", "dictionary"),
        ("data.clients.x=3", "data.clients.x", "value, not a table"),
        ("attacks.rounds=[99]", "attacks.rounds", "40 rounds"),
        ("name=../../x", "name", "letters"),
        ("nonsense", "--set", "key.path=value"),
        ("=3", "--set", "key.path=value"),
    ],
)
def test_wrong_settings_are_one_line_with_place_and_words(override: str, where: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_settings(DIGITS, [override])
    assert caught.value.where.startswith(where)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("others", "where"),
    [
        ({"training": {"weighted": True}}, "training.weighted"),
        ({"training": {"momentum": 0.5}}, "training.momentum"),
        ({"executor": "tff"}, "executor"),
    ],
)
def test_scaffold_is_refused_with_what_it_has_no_meaning_for(others: dict[str, Any], where: str) -> None:
    training = {"algorithm": "scaffold", **others.get("training", {})}
    with pytest.raises(SettingError, match="scaffold: ") as caught:
        resolve_settings({**others, "training": training})
    assert caught.value.where == where


def test_tff_whose_worker_anybody_can_reach_is_refused_for_private_data() -> None:
    with pytest.raises(SettingError, match="listens on all network interfaces") as caught:
        load_settings(DIGITS, ["executor=tff", "privacy.randomness=secure"])
    assert caught.value.where == "executor"


EXAMPLES = {"mechanism": "dp_sgd", "unit": "example", "clip_norm": 1.0, "epsilon": 3.0, "example_rate": 0.1}


@pytest.mark.parametrize(
    ("others", "where", "words"),
    [
        ({"privacy": {**EXAMPLES, "example_rate": None}}, "privacy", "example_rate is missing"),
        ({"training": {}}, "training.local_steps", "draws the examples of each step"),
        ({"training": {"algorithm": "fedsgd"}}, "training.local_steps", "draws the examples"),
        ({"training": {"local_steps": 1, "algorithm": "fedsgd"}}, "training.algorithm", "draws the examples"),
        ({"executor": "tff"}, "executor", "no DP-SGD"),
        ({"executor": "ray"}, "executor", "no DP-SGD"),
        ({"secure_aggregation": {"mode": "ring"}}, "secure_aggregation.mode", "no bound"),
        ({"training": {"local_steps": 3, "weighted": True}}, "training.weighted", "private"),
        ({"cohort": {"sampling": "round_robin", "size": 2}}, "cohort.sampling", "not accounted for round-robin"),
    ],
)
def test_example_level_noise_is_refused_where_it_has_no_meaning(
    others: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(SettingError) as caught:
        resolve_settings({"privacy": EXAMPLES, "training": {"local_steps": 3}, **others})
    assert caught.value.where == where
    assert words in str(caught.value)


def test_masking_needs_a_bound() -> None:
    with pytest.raises(SettingError, match=r"privacy\.clip_norm: .*ring of fixed width.*Set privacy\.clip_norm"):
        resolve_settings({"secure_aggregation": {"mode": "ring"}})


def test_fixed_cohort_larger_than_the_population() -> None:
    with pytest.raises(SettingError, match=r"cohort\.size: there are 10 clients \(got 11\)"):
        resolve_settings({"cohort": {"sampling": "fixed", "size": 11}})


def test_overrides_win_and_create_tables() -> None:
    changed = load_settings(DIGITS, ["privacy.epsilon=4", "audit.membership=[]", 'model.name="lenet"'])
    assert (changed.privacy.epsilon, changed.audit.membership, changed.model.name) == (4.0, [], "lenet")
    assert changed.fingerprint() != load_settings(DIGITS).fingerprint()


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[privacy]\nepsilon = 1\nepsilon = 2\n"])
def test_broken_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"broken\.toml"):
        load_settings(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such experiment file"):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(SettingError, match="cannot be read"):
        load_settings(tmp_path)


def test_settings_cannot_be_changed_after_checking() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().training.rounds = 3  # type: ignore[misc]  # the point of the test


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c, max_size=3)
    )
)
def test_any_value_anywhere_is_accepted_or_refused_in_words(value: object) -> None:
    for section, key in (("privacy", "epsilon"), ("data", "source"), ("model", "hidden"), ("cohort", "rate")):
        message = ""
        try:
            resolve_settings({section: {key: value}})
        except SettingError as error:
            message = str(error)
        assert "\n" not in message


def test_rings_are_8_to_64_bits_or_chosen_but_not_for_integer_noise() -> None:
    bounded = {"clip_norm": 1.0}
    for bits in (8, 26, 64, "auto"):
        settings = resolve_settings(
            {"privacy": bounded, "secure_aggregation": {"mode": "ring", "ring_bits": bits}}
        )
        assert settings.secure_aggregation.ring_bits == bits
    noised = {**bounded, "mechanism": "skellam", "noise_multiplier": 1.0}
    with pytest.raises(SettingError, match=r"skellam noise takes the finest grid.*Give a number") as caught:
        resolve_settings({"privacy": noised, "secure_aggregation": {"mode": "protocol", "ring_bits": "auto"}})
    assert caught.value.where == "secure_aggregation.ring_bits"


def test_ray_has_its_parts_recorded_and_may_go_on_elsewhere() -> None:
    plain = Settings()
    assert {"ray", "sum_parts"}.isdisjoint(plain.model_dump())  # as runs older than these settings have it
    here = Settings.model_validate({"executor": "ray"})
    assert here.sum_parts == len(os.sched_getaffinity(0))
    there = Settings.model_validate({"executor": "ray", "ray": {"address": "head:6379", "workers": 7}})
    assert here.fingerprint() == there.fingerprint()
    more = Settings.model_validate({"executor": "ray", "sum_parts": here.sum_parts + 1})
    assert more.fingerprint() != here.fingerprint()


def test_a_setting_that_came_later_leaves_older_fingerprints_as_they_were() -> None:
    plain = Settings()
    tree = plain.model_dump(mode="json", exclude={"ray"})
    del tree["attacks"]["auxiliary"]  # as it was before
    older = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    assert plain.fingerprint() == older
    assert Settings.model_validate({"attacks": {"auxiliary": 0}}).fingerprint() != older


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"ray": {"workers": 2}}, "executor"),
        ({"executor": "tff", "sum_parts": 2}, "sum_parts"),
        ({"executor": "ray", "ray": {"workers": 0}}, "workers"),
    ],
)
def test_ray_settings_that_mean_nothing_are_refused(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        resolve_settings(tree)
