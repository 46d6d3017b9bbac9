"""The network demo: a server and 20 clients on loopback, two of them killed; then the same in simulation.

The final weights must be the simulation's with the same seeds, cohorts and dropouts, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PRIVFED = str(Path(sys.executable).with_name("privfed"))
KILLED_AFTER = {3: 1, 11: 4}
"""Clients, and the round after which each is killed."""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports/network"))
    parser.add_argument("--experiment", type=Path, default=Path("examples/network.toml"))
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    out, pki = arguments.out, arguments.out.with_name(f"{arguments.out.name}-pki")
    for folder in (out, pki):
        shutil.rmtree(folder, ignore_errors=True)  # data and identities are the demo's own
    run("pki", "init", pki)
    run("pki", "issue", pki, "--server", "127.0.0.1")
    run("pki", "issue", pki, "--client", 0, "--count", arguments.clients)
    started = time.monotonic()
    server = start(
        "serve", arguments.experiment, "--listen", f"127.0.0.1:{arguments.port}", "--out", out,
        "--identity", pki / "server-127.0.0.1.pem", "--revoked", pki / "revoked.pem",
        "--clients", pki / "clients.pem",
        "--ready", arguments.clients - len(KILLED_AFTER), "--stage-seconds", 8, "--training-seconds", 60,
        "--status-port", 0,
    )  # fmt: skip
    events = out / "events.jsonl"
    port = wait_for(events, "listening", server)["port"]
    identities = [pki / f"client-{client}.pem" for client in range(arguments.clients)]
    clients = start(
        "join", f"127.0.0.1:{port}", "--data", arguments.experiment, "--allow-research",
        *(word for identity in identities for word in ("--identity", identity)),
    )  # fmt: skip
    for client, number in KILLED_AFTER.items():
        wait_for(events, "round", server, round=number)
        kill(children(clients.pid)[client])
        print(f"client {client} was killed after round {number}", flush=True)
    if server.wait(600):
        print("the server failed", file=sys.stderr)
        return 1
    clients.wait(60)
    seconds = time.monotonic() - started
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    print(f"{len(rounds)} rounds in {seconds:.0f} s; test accuracy {rounds[-1]['test_accuracy']:.4f}")
    print(f"survivors: {', '.join(str(line['survivors']) for line in rounds)}")
    served = rounds[-1]["weights_sha256"]
    from privfed.federated.training import digest
    from privfed.network.replay import replay

    simulated = digest(replay(out).weights)
    print(f"served     {served}\nsimulated  {simulated}")
    if served != simulated:
        print("the weights differ", file=sys.stderr)
        return 1
    print("the weights are the simulation's, bit by bit")
    run("audit", out)
    run("verify", out)
    return 0


def run(*words: object) -> None:
    """Run ``privfed`` and wait."""
    subprocess.run([PRIVFED, *map(str, words)], check=True, stdout=sys.stderr)


def start(*words: object) -> subprocess.Popen[bytes]:
    """Start ``privfed``."""
    return subprocess.Popen([PRIVFED, *map(str, words)])


def wait_for(events: Path, what: str, server: subprocess.Popen[bytes], **values: object) -> dict[str, object]:
    """The first event that fits, as soon as it is there."""
    wanted = {"event": what, **values}
    while server.poll() is None:
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        for line in lines:
            event = json.loads(line)
            if wanted.items() <= event.items():
                return event
        time.sleep(0.1)
    raise SystemExit("the server ended early")


def children(parent: int) -> list[int]:
    """Processes of the clients, in the order in which they were started."""
    return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()]


def kill(pid: int) -> None:
    """Without a word to the client or the server."""
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
