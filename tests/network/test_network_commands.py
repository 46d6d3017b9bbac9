"""``privfed serve`` and ``privfed join`` as processes, killed and started again, beside the simulation."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privfed.federated.training import digest
from privfed.network import pki
from privfed.network.replay import replay
from privfed.transcript import Observer, Transcript
from privfed.verification import verify_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLIENTS, ROUNDS = 4, 6


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    text = (ROOT / "examples" / "network.toml").read_text(encoding="utf-8")
    text = re.sub("clients = 20", f"clients = {CLIENTS}", text)
    text = re.sub("rounds = 10", f"rounds = {ROUNDS}", text)
    text = re.sub("threshold = 9", "threshold = 2", text)
    text = re.sub("colluders = 2", "colluders = 1", text).replace('"poisson"\nrate = 0.64', '"all"')
    text = re.sub("over_selection = .*\n", "", text)
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


class Commands:
    """Processes of one test; whatever is left of them is killed."""

    def __init__(self, command: list[str], folder: Path, experiment: Path) -> None:
        self._command, self.folder, self.experiment = command, folder, experiment
        self.authority, self.out = folder / "ca", folder / "run"
        self._processes: list[subprocess.Popen[str]] = []
        pki.create(self.authority)
        pki.issue(self.authority, server="127.0.0.1")
        self.identities = [pki.issue(self.authority, client=client) for client in range(CLIENTS)]

    def start(self, *words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self._command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._processes.append(process)
        return process

    def serve(self, port: int, ready: int, *more: object) -> subprocess.Popen[str]:
        return self.start(
            *("serve", self.experiment, "--listen", f"127.0.0.1:{port}", "--out", self.out, "--ready", ready),
            *("--identity", self.authority / "server-127.0.0.1.pem", "--revoked", self.authority / "revoked.pem"),
            *("--stage-seconds", 5, "--training-seconds", 60, "--patience", 60, *more),
        )

    def join(self, port: int, *more: object) -> subprocess.Popen[str]:
        identities = [word for path in self.identities for word in ("--identity", path)]
        return self.start(
            *("join", f"127.0.0.1:{port}", *identities, "--data", self.experiment, "--allow-research"),
            *more,
        )

    def events(self, what: str) -> list[dict[str, Any]]:
        path = self.out / "events.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == what]

    def wait_for(self, holds: Callable[[], bool], seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.1)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def commands(privfed_command: list[str], tmp_path: Path, experiment: Path) -> Any:
    made = Commands(privfed_command, tmp_path, experiment)
    yield made
    made.close()


def children(parent: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()]


def test_server_and_client_are_killed_and_the_weights_are_the_simulations(commands: Commands) -> None:
    """A client is killed after round 1, the server after round 3; it goes on from its checkpoint."""
    server = commands.serve(0, CLIENTS, "--status-port", 0)
    commands.wait_for(lambda: bool(commands.events("listening")))
    port = commands.events("listening")[0]["port"]
    clients = commands.join(port)
    commands.wait_for(lambda: len(commands.events("round")) >= 1)
    os.kill(children(clients.pid)[2], signal.SIGKILL)
    metrics = commands.out / "metrics.jsonl"
    commands.wait_for(lambda: len(metrics.read_text("utf-8").splitlines()) >= 3)
    server.kill()
    server.communicate()
    unfinished = subprocess.run(
        [*commands._command, "audit", str(commands.out)], capture_output=True, text=True, check=False, timeout=200
    )
    assert unfinished.returncode == 2
    assert "Go on with it by privfed serve" in unfinished.stderr
    server = commands.serve(port, CLIENTS - 1)
    said, _ = server.communicate(timeout=300)
    assert server.returncode == 0, said
    assert "going on after round" in said
    clients.wait(60)
    rounds = [json.loads(line) for line in (commands.out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["round"] for line in rounds] == list(range(1, ROUNDS + 1))
    assert rounds[0]["survivors"] == CLIENTS
    # A round lost with the server counts for the clients, who may then decline the last one: it was not accounted.
    assert [line["survivors"] for line in rounds[3:-1]] == [CLIENTS - 1] * (ROUNDS - 4)
    assert all(line["train_loss"] is None for line in rounds)  # nothing of training is told
    served = rounds[-1]["weights_sha256"]
    assert digest(replay(commands.out).weights) == served
    assert verify_run(commands.out).holds
    transcript = Transcript.load(commands.out / "transcript.npz")
    assert [record.updates for record in transcript.records] == [{}] * len(transcript.records)
    assert all(len(record.uploads) >= CLIENTS - 1 for record in transcript.records)
    from privfed.composition import compose
    from privfed.settings_file import load_settings

    model = compose(load_settings(commands.experiment)).model
    kinds = {observer: transcript.view(observer, model).observations for observer in Observer}
    assert kinds[Observer.SERVER]
    assert not kinds[Observer.SERVER_WITH_COLLUDERS]  # what they sent is theirs to know
    memory = json.loads((commands.authority / "client-0.memory" / "runs.json").read_text(encoding="utf-8"))
    (run,) = memory.values()
    assert run["rounds"] == ROUNDS
    assert run["contributed"] == ROUNDS
    audit = [*commands._command, "audit", str(commands.out)]
    subprocess.run(audit, capture_output=True, check=True, timeout=400)
    assert "The clients of this training were real" in (commands.out / "report.json").read_text(encoding="utf-8")
    verification = verify_run(commands.out)
    assert verification.holds, verification.as_text()


def test_a_server_told_to_stop_ends_the_round_under_way_and_goes_on_later(commands: Commands) -> None:
    """SIGTERM while a client keeps the round waiting: nobody's work of that round is lost."""
    server = commands.serve(0, CLIENTS, "--status-port", 0, "--stage-seconds", 30)
    assert server.stdout is not None
    lines = iter(server.stdout.readline, "")
    status = next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))

    def in_a_round() -> bool:
        with urllib.request.urlopen(f"{status}healthz", timeout=5) as answer:
            return answer.read() == b"in a round\n"

    commands.wait_for(lambda: bool(commands.events("listening")))
    port = commands.events("listening")[0]["port"]
    clients = commands.join(port)
    commands.wait_for(lambda: len(commands.events("round")) >= 1)
    slow = children(clients.pid)[1]

    def held_up() -> bool:
        """Whether the round waits for the client: it may have sent all that it had to, or not be asked yet."""
        os.kill(slow, signal.SIGSTOP)
        time.sleep(1.0)
        if in_a_round():
            return True
        os.kill(slow, signal.SIGCONT)
        return False

    commands.wait_for(held_up)
    before = len(commands.events("round"))
    server.terminate()
    time.sleep(1.0)
    assert in_a_round()
    os.kill(slow, signal.SIGCONT)
    said, _ = server.communicate(timeout=60)
    assert server.returncode == 143, said
    assert "the same command goes on" in said
    ended = [json.loads(line) for line in (commands.out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(ended) == before + 1 < ROUNDS
    assert [line["survivors"] for line in ended] == [CLIENTS] * len(ended)
    assert verify_run(commands.out).holds

    server = commands.serve(port, CLIENTS)
    said, _ = server.communicate(timeout=300)
    assert server.returncode == 0, said
    assert f"going on after round {len(ended)}" in said
    assert clients.wait(60) == 0
    rounds = [json.loads(line) for line in (commands.out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert rounds[: len(ended)] == ended
    assert [line["survivors"] for line in rounds] == [CLIENTS] * ROUNDS
    assert digest(replay(commands.out).weights) == rounds[-1]["weights_sha256"]
    assert verify_run(commands.out).holds


def test_clients_decline_a_plan_and_say_why_to_the_server(commands: Commands) -> None:
    server = commands.serve(0, CLIENTS, "--status-port", 0)
    commands.wait_for(lambda: bool(commands.events("listening")))
    port = commands.events("listening")[0]["port"]
    clients = commands.join(port, "--max-epsilon", 0.5)
    said, _ = clients.communicate(timeout=240)
    assert clients.returncode == 2
    assert said.count("is above --max-epsilon 0.5") == CLIENTS
    refused = commands.events("refused")
    assert {event["client"] for event in refused} == set(range(CLIENTS))
    assert all("above --max-epsilon 0.5" in event["reason"] for event in refused)
    assert {event["cause"] for event in refused} == {"declined by client: max-epsilon"}
    server.terminate()
    ended, _ = server.communicate(timeout=60)
    assert server.returncode == 143  # nobody came, and nothing was begun
    status = re.search(r"http://127\.0\.0\.1:\d+/", ended)
    assert status is not None
    with pytest.raises(OSError):
        urllib.request.urlopen(status[0], timeout=5)
