"""Mutations of files, and the command line run on them in this process: done, or one line and exit code 2."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from privfed.cli import main


def mutated_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    at, to = sorted(int(i) for i in rng.integers(len(content), size=2))
    to = min(to, at + 40)
    ways = (
        content[:at] + rng.bytes(1) + content[at + 1 :],
        content[:at] + content[to:],
        content[:to] + content[at:],
        content[:at],
        content[:at] + rng.bytes(8) + content[at:],
    )
    return ways[int(rng.integers(len(ways)))]


class Commands:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.refused = self.taken = 0

    def __call__(self, mutant: bytes, *arguments: object) -> None:
        """Run one; whatever else than done or one line is an ``AssertionError`` that shows the mutant."""
        self._monkeypatch.setattr(sys, "argv", ["privfed", *map(str, arguments)])
        self._capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        except Exception as error:
            raise AssertionError(f"a traceback, of {mutant[-3000:]!r}") from error
        lines = self._capsys.readouterr().err.splitlines()
        if caught.value.code in (0, None):
            self.taken += 1
            return
        assert caught.value.code == 2, (mutant, lines)
        assert len(lines) == 1, (mutant, lines)
        assert lines[0].startswith("privfed: "), (mutant, lines)
        assert len(lines[0]) < 2000, mutant
        self.refused += 1
