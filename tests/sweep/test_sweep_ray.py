"""Trials on Ray: the same pool, with its processes minded by actors; a script stands for the trainings."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_sweep_pool import ends, pid, trials

from privfed.errors import PrivFedError
from privfed.sweep.pool import Event
from privfed.sweep.run import _pool

SCRIPT = (sys.executable, str(Path(__file__).parent / "worker_script.py"))


@pytest.mark.parametrize(
    ("executor", "address", "words"),
    [("local", "head:1", "--address: is of a Ray cluster"), ("slurm", None, "--executor: no such executor")],
)
def test_a_place_that_does_not_exist_is_refused(
    tmp_path: Path, executor: str, address: str | None, words: str
) -> None:
    with pytest.raises(PrivFedError, match=words):
        _pool(executor, address, 1, tmp_path)


@pytest.mark.slow
# Ray leaves files and processes to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_trials_train_on_ray_and_one_whose_actor_is_lost_goes_on_elsewhere(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from privfed.sweep.ray_pool import RayPool

    events: list[Event] = []
    with RayPool(2, tmp_path / "logs", None, SCRIPT) as pool:
        pool.run(trials(tmp_path, ["a", "killed", "b", "fails"]), events.append)
        assert ends(events) == {"0-a": "done", "1-killed": "failed", "2-b": "done", "3-fails": "failed"}
        events.clear()

        def interrupt() -> None:
            first = pid(tmp_path, "0-long")
            host = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(host, signal.SIGKILL)  # the actor, whose process notices, and ends
            while pid(tmp_path, "0-long") == first:
                time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            pool.run(trials(tmp_path, ["long"]), events.append)
        assert ends(events) == {"0-long": "stopped"}
    assert not ray.is_initialized()
