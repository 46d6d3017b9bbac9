"""Isolated environments: a peer's script says what it needs (PEP 723), and uv installs that, once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 1800


class InstallError(Exception):
    """A peer's environment cannot be installed; the message is uv's."""


def find_uv() -> str:
    """The uv on the PATH, or the checkout's own, which ``make setup`` installs."""
    uv = shutil.which("uv") or shutil.which(str(ROOT / ".tools" / "uv"))
    if uv is None:
        raise InstallError("there is no uv on the PATH and none in .tools: run `make setup`")
    return uv


def interpreter(script: Path) -> str:
    """A Python that has what ``script`` declares, of this Python's version; installs it at the first call.

    PyTorch is wanted as its CPU build: from a folder of wheels that pip is told of (``PIP_FIND_LINKS``), or from
    PyTorch's own index, which the script names; and failing both from PyPI, whose build brings CUDA's libraries.
    """
    uv, faults = find_uv(), []
    for options, variables in _ways():
        command = [uv, "sync", "--quiet", "--script", str(script), "--python", sys.executable, *options]
        done = subprocess.run(
            command, env={**_environment(), **variables}, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode == 0:
            found = subprocess.run(
                [uv, "python", "find", "--script", str(script)],
                env=_environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            return found.stdout.strip()
        faults.append(done.stderr.strip())
    raise InstallError(f"{script.name}: " + " | ".join(dict.fromkeys(faults)))


def _ways() -> list[tuple[list[str], dict[str, str]]]:
    """Options and variables of uv, in the order in which they are tried."""
    folders = [part for part in os.environ.get("PIP_FIND_LINKS", "").split() if Path(part).is_dir()]
    links = [option for folder in folders for option in ("--find-links", folder)]
    by_index: tuple[list[str], dict[str, str]] = ([], {"UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "0"})
    without = (["--no-sources", *links], {})
    has_torch = any(list(Path(folder).glob("torch-*cpu*")) for folder in folders)
    return [without, by_index] if has_torch else [by_index, without]


def _environment() -> dict[str, str]:
    """This process's environment without what would point uv or Python elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
