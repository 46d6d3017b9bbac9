"""``docs/secure-aggregation.md`` names tests that exist, all of the catalogue, and figures that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from privfed.secagg import Adversary, guarantee_for, wire

FOLDER = Path(__file__).parent
PAGE = (FOLDER.parent.parent / "docs" / "secure-aggregation.md").read_text()


def test_the_page_and_the_catalogue_name_the_same_tests() -> None:
    files = sorted(FOLDER.glob("test_secagg_attacks_*.py"))
    catalogue = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    # Not attacks: why a defence is there, how it is bound, and what an honest round shows.
    besides = {
        "test_without_the_commitment_the_corruption_would_pass",
        "test_sealing_is_bound_to_the_session_and_its_parameters",
        "test_what_the_server_may_not_learn_is_not_in_a_clients_messages",
    }
    assert named == catalogue - besides
    assert len(named) > 40


def test_the_pages_figures_are_the_codes() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (\d+)%, \d+% \| (\d+), (\d+) \| (\d+), (\d+) \| ([\d,]+) \|$", PAGE, re.M)
    assert len(rows) == 7
    for row in rows:
        n, percent, *expected = (int(cell.replace(",", "")) for cell in row)
        semi = guarantee_for(n, percent / 100, percent / 100, adversary=Adversary.SEMI_HONEST)
        active = guarantee_for(n, percent / 100, percent / 100)
        assert [semi.neighbours, semi.threshold, active.neighbours, active.threshold] == expected[:4]
        assert active.smallest_sum == expected[4]


def test_the_pages_kinds_and_fields_are_the_codes() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| (.*) \|$", PAGE, re.M)
    assert [(int(number), name) for number, name, _ in rows] == [
        (number, kind.__name__) for kind, number in wire._NUMBERS.items()
    ]
    for (_, _, text), fields in zip(rows, wire._FIELDS.values(), strict=True):
        at = [text.index(name) for name in fields]
        assert at == sorted(at)


def test_the_pages_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example, "docs/secure-aggregation.md", "exec"), {})
    assert "against the active server with up to 50 of 1000 clients" in capsys.readouterr().out
    assert len(list((tmp_path / "used-sessions").iterdir())) == 1
