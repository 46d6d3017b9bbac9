"""An authority and a federation on loopback, for all tests of the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import CLIENTS, Federation, serve

from privfed.network import pki


@pytest.fixture(scope="session")
def authority_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "ca"
    pki.create(folder)
    pki.issue(folder, server="127.0.0.1")
    for client in range(CLIENTS):
        pki.issue(folder, client=client)
    return folder


@pytest.fixture
def federation(authority_folder: Path, tmp_path: Path) -> Iterator[Federation]:
    folder = tmp_path / "ca"
    shutil.copytree(authority_folder, folder)
    yield from serve(folder, tmp_path)
