"""The code blocks of README and docs/, and how they are run: as they stand, but for what is said here.

A fence may say more than its language: ``skip="reason"`` for what one machine cannot run, ``exit=2`` for a command
that is refused, ``slow`` for what takes long. ``ADDED`` makes trainings short. ``FOLDER`` stands for the folder of
Fashion-MNIST's IDX files: the variable ``FASHION_MNIST``, without which such lines are left out.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from privfed import cli
from privfed.settings_file import load_settings, resolve_settings, tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml", "json", "ini", "yaml", "text"}

SHORT = ("--set", "training.rounds=2", "--set", "attacks.targets=1", "--set", "attacks.iterations=5")
ADDED: dict[str, tuple[str, ...]] = {
    "train": SHORT,
    "audit": SHORT,
    "attack": SHORT,
    "attack --grid": (*SHORT, "--time", "1"),
    "sweep": ("--set", "training.rounds=1", "--seeds", "1", "--jobs", "1"),
    "tune": ("--set", "training.rounds=1", "--budget", "1", "--jobs", "1"),
    "serve": ("--set", "training.rounds=2"),
}
"""What is put behind commands that take long; of an option that is there twice, the last one counts."""
SLOW = {"audit", "train", "attack", "sweep", "tune", "serve", "join", "doctor", "datasets"}
"""Commands that import TensorFlow."""
PROGRAMS = {
    "privfed",
    "python",
    "make",
    "openssl",
    "sh",
    "uv",
    "pip",
    "kubectl",
    "helm",
    "ray",
    "docker",
    "podman",
}
PROGRAMS |= {
    "systemctl",
    "cat",
    "curl",
    "echo",
    "kill",
    "cp",
    "rm",
    "ls",
    "sleep",
    "wait",
    "timeout",
    "export",
    "cd",
}
PROGRAMS |= {"git", "ssh", "scp", "apt-get", "eval", "pip-audit", "mkdir", "sed", "env", "nohup", "source"}
INSTALLED = Path(sys.executable).parent
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<rest>[^`]*)$")
_SHELL = re.compile(r"[|&;<>$`()]")
_STATE = re.compile(r"(cd|export|source|set) |\w+=")
"""Lines that later ones of the block rest on, so that one bash must run them all."""


@dataclass(frozen=True)
class Block:
    """A block of code: where it is, in which language, and what its fence says of its running."""

    page: str
    line: int
    language: str
    text: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """Commands of a shell block: continued lines joined, prompts and comments taken off."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        bare = [re.sub(r"^\$ ", "", line.strip()).split(" #")[0].rstrip() for line in joined.splitlines()]
        return [line for line in bare if line and not line.startswith("#")]

    @property
    def slow(self) -> bool:
        """Whether it takes more than a second or two."""
        if self.language == "python":
            return bool(re.search(r"privfed\.api|tensorflow|^train\(", self.text, re.MULTILINE))
        commands = {command_of(privfed_words(line)) for line in self.lines}
        return self.language == "sh" and ("slow" in self.options or bool(commands & SLOW))


def collect(page: str, markdown: str) -> list[Block]:
    """Fenced blocks, and indented ones whose first word is a program."""
    found: list[Block] = []
    lines = iter(enumerate(markdown.splitlines(), 1))
    for number, line in lines:
        if fence := _FENCE.match(line):
            inside = []
            for _, text in lines:
                if text.strip() == "```":
                    break
                inside.append(text.removeprefix(fence["indent"]))
            options = {word.partition("=")[0]: word.partition("=")[2] for word in shlex.split(fence["rest"])}
            found.append(Block(page, number, fence["language"], "\n".join(inside) + "\n", options))
        elif line.startswith("    ") and program(line.strip()) in PROGRAMS:
            text = line.strip() + "\n"
            before = found[-1] if found else None
            if before and before.options.get("indented") == str(number - 1):
                found.pop()
                text, number = before.text + text, before.line
            found.append(Block(page, number, "sh", text, {"indented": str(number + text.count("\n") - 1)}))
    return found


def program(line: str) -> str:
    """The program that a line of a shell calls."""
    words = re.sub(r"^(\$ |uv run |[A-Z_]+=\S+ )*", "", line).split()
    return words[0].rpartition("/")[2] if words else ""


def privfed_words(line: str) -> list[str]:
    """``privfed`` and its arguments, if that is what the line calls."""
    if program(line) != "privfed":
        return []
    return ["privfed", *shlex.split(line[line.index("privfed") + len("privfed") :])]


def command_of(words: list[str]) -> str:
    """Which of ``privfed``'s commands is called; options of all commands may stand before it."""
    return next((word for word in words[1:] if not word.startswith("-")), "")


def lengthened(words: list[str]) -> list[str]:
    """The command with what makes it short."""
    command = command_of(words)
    return [*words, *ADDED.get("attack --grid" if command == "attack" and "--grid" in words else command, ())]


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """A command's name and its parameters, checked as a call would check them, but nothing is run."""
    command: Any = get_command(cli.app)
    words = shlex.split(line)
    before = words[1 : words.index(command_of(words))] if command_of(words) else []
    unknown = set(before) - {name for parameter in command.params for name in parameter.opts}
    assert not unknown, f"no such options of all commands: {unknown}"
    name, rest = "privfed", words[1 + len(before) :]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, command, rest = command.resolve_command(typer.Context(command), rest)
    return name, command.make_context(name, list(rest)).params


def check_form(block: Block) -> None:
    """What must hold of every block, whether it is run or not."""
    assert block.language in LANGUAGES, f"{block}: the fence must name a language of {sorted(LANGUAGES)}"
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "ini":
        started = re.findall(r"^ExecStart=\S*/(privfed .*)$", block.text, re.MULTILINE)
        for line in started:
            parsed(line)
    elif block.language == "sh":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=20)
        for line in block.lines:
            if "skip" in block.options:
                assert program(line) in PROGRAMS, f"{block}: {program(line)} is no known program"
            words = privfed_words(re.split(r" (?:\|\|?|&&?|\d?>) ?", line)[0])
            if words:
                _, parameters = parsed(shlex.join(words))
                experiment = parameters.get("experiment")
                if experiment and (ROOT / experiment).is_file() and "exit" not in block.options:
                    load_settings(ROOT / experiment, parameters["overrides"])


class Session:
    """One page's blocks, run from top to bottom in one folder that looks like the checkout."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.names = folder, monkeypatch, {"__name__": "page"}
        for name in ("benchmarks", "deploy", "examples", "scripts", "Makefile", "privfed", "attacks"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "reports" / "reference", folder / "reports" / "reference")
        programs = folder / ".bin"
        programs.mkdir()
        wrapper = programs / "privfed"
        wrapper.write_text(_WRAPPER.format(python=sys.executable, tests=str(Path(__file__).parent)))
        wrapper.chmod(0o755)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PATH", f"{programs}:{INSTALLED}:{os.environ['PATH']}")
        monkeypatch.setenv("COLUMNS", "120")

    def run(self, block: Block) -> None:
        """Run ``block``, or fail with where it stands."""
        if "skip" in block.options or block.language not in ("sh", "python"):
            if block.language == "toml":
                self._settings(block)
            return
        if block.language == "python":
            shortened = re.sub(r'("rounds": )\d+', r"\g<1>1", block.text)
            exec(compile("\n" * block.line + shortened, block.page, "exec"), self.names)
            return
        lines = [line for line in map(_with_data, block.lines) if line]
        expected = int(block.options.get("exit", 0))
        alone = not any(_SHELL.search(line) or _STATE.match(line) for line in lines)
        for script in lines if alone else ["\n".join(map(_dry, lines))]:
            words = privfed_words(script) if alone else []
            code, said = _call(lengthened(words)) if words else _bash(_dry(script))
            assert code == (expected if words or not alone else 0), f"{block}: {script}\n{said}"

    def _settings(self, block: Block) -> None:
        tables = tomllib.loads(block.text)
        if "name" in tables:  # a whole experiment
            resolve_settings(tables)
            (self.folder / f"{tables['name']}.toml").write_text(block.text)


def _with_data(line: str) -> str | None:
    """The line, with the folder of Fashion-MNIST; ``None`` where it needs that and there is none."""
    if not re.search(r"\bFOLDER\b", line) and not ("fashion" in line and "examples/" in line):
        return line
    folder = os.environ.get("FASHION_MNIST")
    if folder is None:
        return None
    return re.sub(r"\bFOLDER\b", folder, line) if "FOLDER" in line else f"{line} --set data.folder={folder}"


def _dry(line: str) -> str:
    """``make`` only says what it would do: its targets are CI's own stages, or start these tests."""
    return f"make -n -C {ROOT} {line.removeprefix('make ')} >/dev/null" if program(line) == "make" else line


def _bash(script: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, check=False, timeout=500, capture_output=True, text=True)
    return done.returncode, done.stdout[-1500:] + done.stderr[-3000:]


def _call(words: list[str]) -> tuple[int, str]:
    """Exit code of ``privfed`` with these arguments, in this process; pytest keeps what it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            cli.main()
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else 0), ""
    return 0, ""


_WRAPPER = """#!{python}
import sys
sys.path.insert(0, {tests!r})
from blocks import lengthened
from privfed.cli import main
sys.argv = lengthened(["privfed", *sys.argv[1:]])
main()
"""


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, from top to bottom."""
    return collect(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))


def before_slow(blocks: list[Block]) -> Iterator[Block]:
    """Blocks from the top to the first slow one: what follows may rest on its results."""
    return itertools.takewhile(lambda block: not block.slow or "skip" in block.options, blocks)
