"""Whole trainings over gRPC and mutual TLS, both sides as the commands run them: the simulation's, bit by bit."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from loopback import eventually
from test_network_stateful import CASES, CLIENTS, ROUNDS, settings_of

from privfed.composition import compose
from privfed.config import Settings
from privfed.console import Console
from privfed.errors import DataError
from privfed.federated.training import digest
from privfed.network.join import Joining, run_client
from privfed.network.limits import Limits
from privfed.network.remote import Deadlines
from privfed.network.replay import replay
from privfed.network.serve import Serving, _offer, run_server
from privfed.settings_file import dump_toml

pytestmark = pytest.mark.slow

OPEN = Limits(allow_unmasked=True, allow_research=True)


class Hearing(Console):
    """Shows nothing, and passes on what is said."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(quiet=True)
        self.say = hear  # type: ignore[method-assign]


@dataclass
class Trained:
    """What became of a training."""

    summary: dict[str, Any]
    clients: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    events: list[dict[str, Any]]
    out: Path


@dataclass
class Town:
    """A server in this thread, its clients in others."""

    folder: Path
    url: str = ""
    limits: dict[int, Limits] = field(default_factory=dict)
    hear: Mapping[int, Callable[[str], None]] = field(default_factory=dict)

    def train(self, settings: Settings) -> Trained:
        out, data, authority = self.folder / "run", self.folder / "data.toml", self.folder / "ca"
        data.write_text(dump_toml(settings), encoding="utf-8")
        serving = Serving(
            "127.0.0.1:0",
            authority / "server-127.0.0.1.pem",
            authority / "revoked.pem",
            Deadlines(20, 60),
            ready=CLIENTS,
            status_port=0,
            clients=authority / "clients.pem",
        )

        def join(client: int) -> dict[str, Any]:
            events = out / "events.jsonl"
            assert eventually(lambda: events.exists() and "listening" in events.read_text("utf-8"), 60)
            port = json.loads(events.read_text("utf-8").splitlines()[0])["port"]
            identity, limits = authority / f"client-{client}.pem", self.limits.get(client, OPEN)
            joining = Joining(f"127.0.0.1:{port}", identity, str(data), limits, patience=30)
            return run_client(joining, Hearing(self.hear.get(client, lambda text: None)))

        def hear_server(text: str) -> None:
            if "http://" in text:
                self.url = text.split()[-1]

        with ThreadPoolExecutor(CLIENTS) as pool:
            joined = [pool.submit(join, client) for client in range(CLIENTS)]
            summary = run_server(settings, out, serving, Hearing(hear_server))
            clients = [future.result(60) for future in joined]
        rounds, events = (
            [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]
            for name in ("metrics.jsonl", "events.jsonl")
        )
        return Trained(summary, clients, rounds, events, out)


@pytest.fixture
def town(authority_folder: Path, tmp_path: Path) -> Town:
    shutil.copytree(authority_folder, tmp_path / "ca")
    return Town(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_every_round_are_the_simulations(town: Town, case: str) -> None:
    settings = settings_of(case)
    simulated = compose(settings).run(None, lambda report: None)
    found = town.train(settings)
    assert [line["weights_sha256"] for line in found.rounds] == [r.weights_sha256 for r in simulated.reports]
    assert found.summary["weights_sha256"] == digest(simulated.weights)
    assert (found.summary["refused"], found.summary["late"]) == ({}, 0)
    drawn = [tuple(event["cohort"]) for event in found.events if event["event"] == "round"]
    assert drawn == [compose(settings).sample(number).clients for number in range(1, ROUNDS + 1)]
    assert [counts["rounds"] for counts in found.clients] == [
        sum(client in cohort for cohort in drawn) for client in range(CLIENTS)
    ]


def test_a_client_that_forbids_a_rounds_clip_norm_is_counted_by_its_cause(town: Town) -> None:
    """The plan begins at the client's own limit and then moves above it: it declines those rounds, one by one."""
    settings = settings_of("adaptive, masked")
    privacy = settings.privacy.model_copy(update={"clip_norm": 0.02, "quantile": 0.9})
    settings = settings.model_copy(update={"privacy": privacy})
    cohorts = {number: compose(settings).sample(number).clients for number in range(1, ROUNDS + 1)}
    later = [client for number, cohort in cohorts.items() if number > 1 for client in cohort]
    declining = max(range(CLIENTS), key=later.count)
    declined, metrics = list[str](), list[str]()

    def hear(text: str) -> None:
        if text.startswith("declined: "):
            declined.append(text)
            if len(declined) == 2:  # the server has counted the first one
                with urllib.request.urlopen(f"{town.url}metrics", timeout=5) as response:
                    metrics.extend(response.read().decode().splitlines())

    town.limits[declining] = replace(OPEN, max_clip_norm=0.02)
    town.hear = {declining: hear}
    found = town.train(settings)
    times = later.count(declining)
    assert found.summary["refused"] == {"declined by client: max-clip-norm": times}
    assert 'privfed_refused_total{cause="declined by client: max-clip-norm"} 1' in metrics
    refused = [event for event in found.events if event["event"] == "refused"]
    assert [event["client"] for event in refused] == [declining] * times
    for event, text in zip(refused, declined, strict=True):
        assert event["cause"] == "declined by client: max-clip-norm"
        assert "is above --max-clip-norm 0.02" in event["reason"]
        assert text == f"declined: {event['reason']}"
    assert found.clients[declining]["declined"] == times
    survivors = [len(cohort) - (number > 1 and declining in cohort) for number, cohort in cohorts.items()]
    assert [line["survivors"] for line in found.rounds] == survivors
    assert digest(replay(found.out).weights) == found.summary["weights_sha256"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run": '])
def test_a_damaged_note_of_the_run_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "served.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"served\.json: names no run"):
        _offer(compose(settings_of("tree")), path)
