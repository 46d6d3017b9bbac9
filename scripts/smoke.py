"""Build wheel and sdist, install each into an empty environment, and use it there from an empty folder.

    python scripts/smoke.py UV

``UV`` is the uv to build and install with. Dependencies are the locked ones of ``requirements.txt``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = "import attacks, privfed.api, privfed.secagg; assert 'smoke' in attacks.__file__, attacks.__file__"


def main(uv: str) -> None:
    """Raise ``CalledProcessError`` at the first command that fails."""
    # The name is what tells the installed packages from those of the checkout.
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        built = Path(folder) / "dist"
        _run([uv, "build", "--quiet", "--out-dir", str(built), str(ROOT)], ROOT)
        for kind, pattern in (("wheel", "*.whl"), ("sdist", "*.tar.gz")):
            (archive,) = built.glob(pattern)
            _use(uv, archive, Path(folder) / kind)
            print(f"{archive.name}: installed in an empty environment; doctor, train and verify pass", flush=True)


def _use(uv: str, archive: Path, folder: Path) -> None:
    environment, away = folder / "environment", folder / "away"
    away.mkdir(parents=True)
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], away)
    python = str(environment / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", python, "--no-deps"]
    _run([*install, "-r", str(ROOT / "requirements.txt")], away)
    _run([*install, str(archive)], away)
    privfed = str(environment / "bin" / "privfed")
    _run([python, "-c", IMPORTS], away)
    _run([privfed, "init", "experiment.toml"], away)
    _run([privfed, "doctor"], away)
    short = ["--set", "training.rounds=2", "--set", "data.clients=40"]
    _run([privfed, "--quiet", "train", "experiment.toml", "--out", "run", *short], away)
    _run([privfed, "verify", "run"], away)


def _run(command: list[str], folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        sys.exit(1)


if __name__ == "__main__":
    main(os.path.abspath(shutil.which(sys.argv[1]) or sys.argv[1]))
