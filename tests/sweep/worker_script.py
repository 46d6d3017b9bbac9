"""Stands for the worker process: speaks its protocol, and does to itself what the trial's name says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

stopped = False


def stop(number: int, frame: object) -> None:
    global stopped
    stopped = True


def send(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


signal.signal(signal.SIGTERM, stop)
send(event="ready")
for line in sys.stdin:
    message = json.loads(line)
    folder, name = Path(message["folder"]), message["settings"]["name"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pid").write_text(f"{os.getpid()} {sys.argv[1]}")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exits":
        sys.exit(3)
    if name == "fails":
        send(event="failed", error="no such data")
        continue
    if name == "garbage":
        sys.stdout.write("Hello\n")
        sys.stdout.flush()
        continue
    deadline = time.monotonic() + (20 if name in ("long", "deaf") else 0)
    while time.monotonic() < deadline and (name == "deaf" or not stopped):
        time.sleep(0.01)
    if stopped:
        send(event="stopped")
        stopped = False
        continue
    send(event="round", rounds=2, state="well")
    send(event="done", figures={"name": name})
