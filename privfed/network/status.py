"""What goes on in a server, on loopback: a page for people, metrics for Prometheus, health for an orchestrator."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from privfed.errors import OutputError
from privfed.network.tally import Tally

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}table{border-collapse:collapse;width:100%}td,th{text-align:left;"
    "padding:.25rem .75rem .25rem 0;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}td,th{border-color:#444}}"
)


class Status:
    """A small HTTP server at ``127.0.0.1:port``: ``/``, ``/metrics``, ``/healthz``.

    Raises:
        OutputError: The port cannot be had.
    """

    def __init__(self, port: int, tally: Tally, name: str) -> None:
        class Handler(_Handler):
            pass

        Handler.tally, Handler.name = tally, name
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise OutputError(
                f"cannot be listened at: {error.strerror}", where="--status-port", value=port
            ) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    tally: Tally
    name: str
    timeout = 5
    protocol_version = "HTTP/1.0"
    server_version, sys_version = "privfed", ""

    def do_GET(self) -> None:
        found = {
            "/": ("text/html; charset=utf-8", page),
            "/metrics": ("text/plain; version=0.0.4; charset=utf-8", lambda tally, name: metrics(tally)),
            "/healthz": ("text/plain", lambda tally, name: f"{tally.now['state']}\n"),
        }.get(self.path)
        if found is None:
            self.send_error(404)
            return
        kind, render = found
        body = render(self.tally, self.name).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody wants a line a scrape."""


def metrics(tally: Tally) -> str:
    """In Prometheus' text format."""
    lines, counts = list[str](), tally.counts()

    def add(name: str, kind: str, text: str, rows: Sequence[tuple[dict[str, str], float]]) -> None:
        lines.append(f"# HELP privfed_{name} {text}")
        lines.append(f"# TYPE privfed_{name} {kind}")
        for labels, value in rows:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"privfed_{name}{f'{{{inside}}}' if inside else ''} {value!r}")

    add("round", "gauge", "Round under way, from 1.", [({}, tally.now["round"])])
    add("cohort", "gauge", "Clients drawn for it.", [({}, tally.now["cohort"])])
    add("survivors", "gauge", "Clients in the newest sum.", [({}, tally.now["survivors"])])
    add("present", "gauge", "Clients that are there.", [({}, tally.present)])
    add("rounds_total", "counter", "Rounds by outcome.", [({"outcome": k}, v) for k, v in counts.rounds.items()])
    seconds = [({"stage": stage}, value) for stage, value in counts.stage_seconds.items()]
    add("stage_seconds_total", "counter", "Time by stage.", seconds)
    add("stages_total", "counter", "Stages closed.", [({"stage": k}, v) for k, v in counts.stages.items()])
    add("refused_total", "counter", "Refusals by cause.", [({"cause": k}, v) for k, v in counts.refused.items()])
    add("late_total", "counter", "Messages after their stage.", [({}, tally.late)])
    add("repeated_total", "counter", "Messages that were there already.", [({}, tally.repeated)])
    add("received_bytes_total", "counter", "Of taken messages.", [({}, tally.received_bytes)])
    add("sent_bytes_total", "counter", "Of messages to clients.", [({}, tally.sent_bytes)])
    if tally.accuracy is not None:
        add("test_accuracy", "gauge", "Of the newest model on held-out examples.", [({}, tally.accuracy)])
    spent = [({"observer": who, **labels}, value) for who, (value, labels) in tally.epsilon.items()]
    add("epsilon_spent", "gauge", "By observer; others are not protected at all.", spent)
    return "\n".join(lines) + "\n"


def page(tally: Tally, name: str) -> str:
    """The status page; it loads itself again every two seconds."""
    now, counts = tally.now, tally.counts()
    rows = [
        ("State", now["state"]),
        ("Round", now["round"]),
        ("Stage", now["stage"] or "–"),
        ("Clients there", tally.present),
        ("Cohort", now["cohort"]),
        ("Survivors of the last sum", now["survivors"]),
        ("Rounds", ", ".join(f"{count} {what}" for what, count in counts.rounds.items()) or "none yet"),
        ("Test accuracy", "–" if tally.accuracy is None else f"{tally.accuracy:.4f}"),
        ("Late messages", tally.late),
        ("Up for", f"{time.time() - tally.started:.0f} s"),
    ]
    spent = [
        (who, f"{value:.4g}", labels["delta"], f"{labels['unit']}; {labels['neighbouring']}; {labels['sampling']}")
        for who, (value, labels) in tally.epsilon.items()
    ]
    refused = sorted(counts.refused.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        f"<title>{html.escape(name)} – PrivFed</title><style>{_STYLE}</style><h1>{html.escape(name)}</h1>"
        + _table("now", ("", ""), rows)
        + "<h2>ε spent</h2>"
        + (_table("spent", ("Observer", "ε", "δ", "Terms"), spent) if spent else "<p>Nothing yet.</p>")
        + "<h2>Refused</h2>"
        + (_table("refused", ("Cause", "Times"), refused) if refused else "<p>Nobody.</p>")
        + "</html>\n"
    )


def _table(name: str, head: tuple[str, ...], rows: list[Any]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head) if any(head) else ""
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<table id="{name}"><tr>{titles}</tr>{cells}</table>'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
