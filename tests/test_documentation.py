"""Every block of README and docs/ is run, or says why not; pages that are made from the code are complete."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blocks import PAGES, ROOT, Block, Session, before_slow, blocks_of, check_form, collect, lengthened, parsed
from pydantic import BaseModel
from typer.main import get_command

from privfed.cli import app
from privfed.config import Settings

BLOCKS = {page.relative_to(ROOT).as_posix(): blocks_of(page) for page in PAGES}
LONG = [page for page, blocks in BLOCKS.items() if any(b.slow and "skip" not in b.options for b in blocks)]


def site() -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", BLOCKS)
def test_blocks_are_of_the_right_form(page: str) -> None:
    for block in BLOCKS[page]:
        check_form(block)


@pytest.mark.parametrize("page", BLOCKS)
def test_quick_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top of the page to the first block that takes long."""
    session = Session(tmp_path, monkeypatch)
    for block in before_slow(BLOCKS[page]):
        session.run(block)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # README's alone is a dozen trainings, and other work may share the cores
@pytest.mark.parametrize("page", LONG)
def test_all_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tmp_path, monkeypatch)
    for block in BLOCKS[page]:
        session.run(block)


def test_most_blocks_are_run() -> None:
    """So that a reason to skip stays an exception."""
    runnable = [b for blocks in BLOCKS.values() for b in blocks if b.language in ("sh", "python")]
    skipped = [b for b in runnable if "skip" in b.options]
    assert len(runnable) > 20
    assert len(skipped) < len(runnable) / 3
    assert all(b.options["skip"] for b in skipped)


@pytest.mark.parametrize(
    "line",
    [
        "privfed trian examples/digits.toml --out x",
        "privfed train examples/digits.toml --colour red --out x",
        "privfed train examples/digits.toml",
        "privfed account --noise-multiplier much --sampling poisson --rounds 3 --delta 1e-5",
        "privfed account --noise-multiplier 1 --sampling weekly --rounds 3 --delta 1e-5",
        "privfed pki isue authority",
        "privfed --silent verify reports/reference",
    ],
)
def test_a_command_that_is_none_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|valid number|is not one of"):
        parsed(line)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (Block("page", 1, "sh", "privfed account --rounds 3\n"), Exception),
        (Block("page", 1, "sh", "if true\n"), Exception),
        (Block("page", 1, "", "words\n"), AssertionError),
        (Block("page", 1, "sh", "frobnicate it\n", {"skip": "why"}), AssertionError),
        (Block("page", 1, "toml", "name =\n"), Exception),
    ],
)
def test_a_faulty_block_is_noticed(block: Block, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_form(block)


@pytest.mark.parametrize(
    "block",
    [
        Block("page", 1, "python", "assert 1 + 1 == 3\n"),
        Block("page", 1, "sh", "privfed verify nowhere\n"),
        Block("page", 1, "sh", "privfed verify reports/reference\n", {"exit": "2"}),
        Block("page", 1, "sh", "cat nothing | true\n"),
        Block("page", 1, "sh", "make nonsense\n"),
    ],
)
def test_a_block_that_fails_is_noticed(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        Session(tmp_path, monkeypatch).run(block)


def test_blocks_are_found_fenced_and_indented() -> None:
    indented, fenced = "    privfed a  # why\n    make b\n", '```sh skip="no cluster"\n$ privfed \\\n  c\n```\n'
    text = f"privfed no\n\n{indented}\n{fenced}\n    tree\n"
    first, second = collect("page", text)
    assert (first.line, first.lines) == (3, ["privfed a", "make b"])
    assert (second.lines, second.options) == (["privfed c"], {"skip": "no cluster"})


def test_options_of_all_commands_may_come_first() -> None:
    words = ["privfed", "--quiet", "train", "examples/digits.toml", "--out", "x"]
    assert lengthened(words)[:6] == words
    assert "training.rounds=2" in lengthened(words)
    assert parsed(" ".join(words))[0] == "train"


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{key}.")
        else:
            yield prefix + key


def test_every_setting_is_in_the_reference_with_type_default_and_meaning() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*?) \|$", site().settings_page(), re.MULTILINE)
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=list(keys(Settings)).index)
    assert {row[0] for row in rows} == set(keys(Settings))
    assert [row for row in rows if not all(cell.strip() for cell in row)] == []


def test_every_command_and_option_is_in_the_reference() -> None:
    page, group = site().cli_page(), get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # it is a group
        section = page.split(f"## `privfed {name}`\n")[1].split("\n## `privfed ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.opts[0] in section


def test_links_out_of_docs_are_led_to_the_site() -> None:
    hook = site()
    assert hook.outside("deploy.md", "../deploy/Containerfile") == "deploy/Containerfile"
    assert hook.outside("howto/train.md", "../concepts/units.md") is None
    assert hook.outside("howto/train.md", "../../examples/digits.toml") == "examples/digits.toml"


def test_pages_that_the_navigation_forgot_are_listed(tmp_path: Path) -> None:
    for page in ("index.md", "new.md"):
        (tmp_path / page).touch()
    nav: list[dict[str, Any]] = [{"Start": "index.md"}, {"Topics": [{"Attacks": "attacks.md"}]}]
    site().on_config({"docs_dir": str(tmp_path), "nav": nav})
    assert nav[1]["Topics"] == [{"Attacks": "attacks.md"}, "new.md"]


def test_make_targets_that_are_named_are_there() -> None:
    named = {m for page in PAGES for m in re.findall(r"`make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo-network", "check"} <= named <= set(targets)
