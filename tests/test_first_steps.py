"""``privfed init`` and ``privfed doctor``: what somebody runs first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privfed import doctor
from privfed.cli import app
from privfed.config import Settings
from privfed.errors import SettingError
from privfed.secagg import prg
from privfed.settings_file import load_settings, resolve_settings
from privfed.starter import FIRST, starter, write_starter


def test_a_starter_reads_back_as_what_it_sets_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert CliRunner().invoke(app, ["init", str(path)]).exit_code == 0
    assert load_settings(path) == resolve_settings({"name": "mine", **FIRST})


def test_a_starter_has_every_setting_and_its_default_is_the_one() -> None:
    """Uncommented, every line with a value is still what it says."""
    lines = starter("mine").splitlines()
    values = {
        line.lstrip("# ") for line in lines if " = " in line and line.lstrip("# ").split(" = ")[0].isidentifier()
    }
    for key, field in Settings.model_fields.items():
        for name, inner in getattr(field.annotation, "model_fields", {}).items():
            assert any(v.startswith(f"{name} =") for v in [line.lstrip("# ") for line in lines]), (key, name)
            if name not in FIRST.get(key, {}) and isinstance(inner.default, bool | int | float | str):
                assert f"{name} = {json.dumps(inner.default, ensure_ascii=False)}" in values


def test_a_starter_is_never_written_over_anything(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    with pytest.raises(SettingError, match="exists already"):
        write_starter(path)
    assert path.read_text() == "precious"
    with pytest.raises(SettingError, match="cannot be written"):
        write_starter(tmp_path / "nowhere" / "mine.toml")
    with pytest.raises(SettingError, match="1 to 80 letters"):
        write_starter(tmp_path / "no*name.toml")


def test_a_sound_installation_is_found_sound() -> None:
    got = CliRunner().invoke(app, ["doctor", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(got.stdout)["findings"]}
    assert got.exit_code == 0
    assert [name for name, finding in findings.items() if finding["sound"] is not None] == [
        name for name, _ in doctor._CHECKS
    ]
    assert "δ = 1e-05" in findings["accounting"]["found"]


@pytest.mark.parametrize("broken", ["randomness", "keystream", "secure noise", "accounting"])
def test_a_broken_part_is_found(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "randomness":
        monkeypatch.setattr("os.urandom", lambda size: b"\x0f" * size)
    elif broken == "keystream":
        real = prg.keystream
        monkeypatch.setattr("privfed.secagg.prg.keystream", lambda key: real(bytes([1]) * 32))
    elif broken == "secure noise":
        from privfed.privacy import noise

        whole = noise.discrete_gaussian
        monkeypatch.setattr(noise, "discrete_gaussian", lambda stddev, *more: whole(stddev // 2, *more))
    else:
        monkeypatch.setattr(doctor, "EPSILON", 1.9)
    monkeypatch.setattr(doctor, "_CHECKS", tuple(check for check in doctor._CHECKS if check[0] == broken))
    got = CliRunner().invoke(app, ["doctor"])
    assert got.exit_code == 1
    assert f"✗ {broken}" in got.stdout
