"""An authority, a federation on loopback and a table, for all tests of the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import CLIENTS, Federation, serve
from roundtable import Table

from privfed.network import pki
from privfed.network.limits import Limits


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


@pytest.fixture
def make_table(authority_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Table]]:
    made: list[Table] = []

    def make(limits: Limits | None = None, folder: Path = authority_folder) -> Table:
        made.append(Table(folder, tmp_path / f"memories {len(made)}", limits or Limits()))
        return made[-1]

    yield make
    for table in made:
        table.close()


@pytest.fixture
def table(make_table: Callable[..., Table]) -> Table:
    return make_table()
