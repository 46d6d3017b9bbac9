"""Status page, metrics and health: on loopback, complete, harmless; the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from privfed.network.status import Status, metrics, page
from privfed.network.tally import MOST_LINES, Tally
from privfed.privacy.accounting import Guarantee


@pytest.fixture
def tally() -> Tally:
    tally = Tally()
    tally.now.update(state="in a round", round=7, stage="masked_input", cohort=12, survivors=11)
    tally.rounds.update(completed=6, aborted=1)
    tally.refuse("revoked")
    tally.refuse("revoked")
    tally.refuse("declined by client: min-cohort", 3, "4 clients are below --min-cohort 5")
    tally.refuse('a "quoted" <cause>')
    tally.stage("masked_input", 1.5)
    tally.accuracy = 0.875
    tally.spend(
        {
            "server": Guarantee(
                1.25, 1e-5, "client", "add or remove", "Poisson, rate 0.1", "PLD", 1.3, "RDP", 6, 1.0
            )
        }
    )
    return tally


@pytest.fixture
def status(tally: Tally) -> Iterator[Status]:
    status = Status(0, tally, "a <b>run</b>")
    status.start()
    yield status
    status.stop()


def get(status: Status, path: str) -> tuple[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{status.port}{path}", timeout=5) as response:
        return response.headers["Content-Type"], response.read().decode()


LINE = re.compile(r'privfed_[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? -?[0-9.e+-]+')


def test_metrics_are_in_prometheus_format_and_epsilon_has_its_terms(status: Status) -> None:
    kind, text = get(status, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("#"))
    assert 'privfed_refused_total{cause="revoked"} 2' in lines
    assert 'privfed_refused_total{cause="declined by client: min-cohort"} 1' in lines
    assert 'privfed_refused_total{cause="a \\"quoted\\" <cause>"} 1' in lines
    assert 'privfed_stage_seconds_total{stage="masked_input"} 1.5' in lines
    (spent,) = [line for line in lines if line.startswith("privfed_epsilon_spent{")]
    assert spent.endswith("} 1.25")
    for label in ("observer", "delta", "unit", "neighbouring", "sampling"):
        assert f'{label}="' in spent
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")} <= named


def test_counters_are_gone_through_while_they_grow(tally: Tally) -> None:
    """A dictionary that grows in another thread meanwhile would end the scrape."""
    refused = tally.counts().refused
    for cause, _ in refused.items():
        tally.refuse(f"{cause} again")
    assert len(tally.counts().refused) == 2 * len(refused)


def test_a_client_fills_no_disk_with_events(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "events.jsonl")
    for _ in range(MOST_LINES + 50):
        tally.refuse("rate", 7)
    tally.refuse("rate", 8)
    tally.event("round", round=1)
    tally.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == MOST_LINES + 2
    assert (lines[-3]["event"], lines[-3]["client"]) == ("no more lines", 7)
    assert [line["event"] for line in lines[-2:]] == ["refused", "round"]
    assert tally.refused == {"rate": MOST_LINES + 51}


def test_health_says_how_it_stands(status: Status) -> None:
    assert get(status, "/healthz")[1] == "in a round\n"


def test_nothing_else_is_there_and_nobody_else_is_listened_to(status: Status) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(status, "/../../etc/passwd")
    assert status._server.server_address[0] == "127.0.0.1"


def test_the_page_takes_no_name_for_markup(tally: Tally) -> None:
    text = page(tally, "<script>alert(1)</script>")
    assert "<script>" not in text
    assert "<td>declined by client: min-cohort</td><td>1</td>" in text
    assert "&lt;cause&gt;" in text
    assert metrics(tally)


@pytest.mark.slow
def test_the_page_in_a_browser(status: Status, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *(f"--user-data-dir={tmp_path}", "--timeout=4000", "--dump-dom", f"http://127.0.0.1:{status.port}/"),
    ]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert got.returncode == 0, got.stderr[-500:]
    shown = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", got.stdout))
    for text in ("in a round", "masked_input", "6 completed, 1 aborted", "0.8750", "revoked", "1.25", "Poisson"):
        assert text in shown
    assert json.dumps("<b>run</b>") not in got.stdout
