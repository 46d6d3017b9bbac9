"""Puts the package manager uv into a project-local folder, with nothing but Python's standard library.

Debian and Ubuntu ship Python without pip and venv, and forbid pip to touch the system's packages (PEP 668). So it
tries a virtual environment, then pip into a folder, then the wheel from PyPI itself, checked against its SHA-256.

    python3 scripts/bootstrap_uv.py FOLDER      prints the path of the uv program
"""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

VERSION = "0.13.9"
REQUIREMENT = f"uv=={VERSION}"
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691


def by_virtual_environment(folder):
    """A virtual environment with pip; fails where Debian's python3-venv is missing."""
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", REQUIREMENT)
    return folder / "venv/bin/uv"


def by_pip(folder):
    """The system's pip into a folder of ours, which leaves the system's packages alone."""
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--target", folder / "pip", REQUIREMENT)
    run(*command, env={**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1"})
    return folder / "pip/bin/uv"


def by_wheel(folder):
    """The wheel from PyPI: a zip archive that holds the program."""
    wanted = {"x86_64": "manylinux_2_17_x86_64", "aarch64": "manylinux_2_17_aarch64"}.get(platform.machine())
    if sys.platform == "darwin":
        wanted = {"x86_64": "macosx_10_12_x86_64", "arm64": "macosx_11_0_arm64"}.get(platform.machine())
    index = urllib.request.Request("https://pypi.org/simple/uv/", headers={"Accept": SIMPLE_JSON})
    with urllib.request.urlopen(index, timeout=60) as answer:
        files = json.load(answer)["files"]
    names = [f for f in files if f["filename"].startswith(f"uv-{VERSION}-") and wanted and wanted in f["filename"]]
    if not names:
        raise OSError(f"PyPI has no wheel of uv {VERSION} for {sys.platform} on {platform.machine()}")
    with urllib.request.urlopen(urllib.parse.urljoin(index.full_url, names[0]["url"]), timeout=300) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != names[0]["hashes"]["sha256"]:
        raise OSError(f"{names[0]['filename']} does not have the SHA-256 that PyPI states")
    program = folder / "wheel/uv"
    program.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        program.write_bytes(archive.read(f"uv-{VERSION}.data/scripts/uv"))
    program.chmod(0o755)
    return program


def run(*command, env=None):
    """Run a command; its output shows only when it fails."""
    subprocess.run(
        [str(part) for part in command], check=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def main(folder):
    """Try the ways in turn and leave the program at ``folder/uv``."""
    folder.mkdir(parents=True, exist_ok=True)
    faults = []
    for way in (by_virtual_environment, by_pip, by_wheel):
        try:
            program = way(folder)
            subprocess.run([str(program), "--version"], check=True, stdout=subprocess.PIPE)
        except (OSError, subprocess.CalledProcessError) as error:
            faults.append(f"  {way.__name__}: {getattr(error, 'output', None) or error}")
            continue
        link = folder / "uv"
        if link.is_symlink() or link.exists():
            link.unlink()
        link.symlink_to(program.resolve())
        print(link)
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    print("uv could not be installed into", folder, "by any of these ways:", *faults, sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
