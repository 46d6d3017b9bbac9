"""From evidence to one self-contained HTML page: pure, and the same for the same evidence on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment

from privfed.audit.evidence import LAYERS, RECOVERY_MARGIN_DB, Canaries, CanaryObserver, Evidence
from privfed.report import answers, selection
from privfed.report.environment import page_environment
from privfed.report.figures import (
    Figure,
    accuracy_figure,
    canary_figure,
    canary_roc_figure,
    clients_figure,
    clipping_figure,
    delta_figure,
    epsilon_figure,
    label_figure,
    membership_figures,
    noise_figure,
    reconstruction_figure,
    rounds_figure,
    survivors_figure,
    trade_off_figure,
)
from privfed.report.ladder import ladders
from privfed.report.script import hash_of, script_of

LEVELS = {"protected": "Protected", "partly": "Partly protected", "exposed": "Exposed"}
RESULTS = ("failed", "not checked", "passed")
LAYER_TITLES = {
    "guarantee": "The guarantee: ε, δ, and what they cover",
    "unit": "The unit: whose data counts as one",
    "implementation": "The implementation: what was run",
    "trust": "The trust: who could break it",
}
NO_CLIENTS = Figure("Accuracy client by client", None, "Missing: no client was evaluated by itself.")
MODES = {
    "off": "Off: the server sees every client's update.",
    "ring": "Ring: the encoded integers are summed without masks. A simulator's shortcut that hides nothing.",
    "protocol": "Protocol: the server receives masked updates and learns their sum.",
    "bfv": "BFV: the server adds ciphertexts that it cannot read, and a key holder decrypts their sum for it.",
}
# What HTML cannot carry; a carriage return would also come back as a line feed when the page is read again.
_UNPRINTABLE = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "\ufffd") | {13: "\n"}


def render_html(evidence: Evidence) -> str:
    """The page: no network request, complete without its script, at most 2 MB whatever the evidence holds."""
    rungs = ladders(evidence.attacks)
    script = script_of(_environment(), "sort.js", "report.js")
    own_epsilon = next((o.guarantee.epsilon for o in evidence.observers if o.observer == "release"), math.inf)
    groups = selection.group_attacks(evidence.attacks)
    rounds = selection.evenly(evidence.rounds, selection.TABLE_ROWS)
    attacks = selection.foremost(evidence.attacks, selection.ATTACK_ROWS, selection.margin)
    settings = [(key, _setting(value)) for key, value in selection.flat_settings(evidence.run.settings)]
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            e=evidence,
            level=LEVELS[evidence.verdict.level],
            mode=MODES[evidence.secure_aggregation.mode],
            recovery_margin=RECOVERY_MARGIN_DB,
            loss_terms=selection.shared_terms((o.observer, o.guarantee) for o in evidence.observers),
            **answers.answers(evidence),
            layers=LAYERS,
            layer_titles=LAYER_TITLES,
            check_counts=[(name, sum(c.result == name for c in evidence.checks)) for name in RESULTS],
            epsilon_rounds=rounds_figure(evidence.accounting, len(evidence.rounds))
            if evidence.accounting
            else None,
            epsilon_delta=delta_figure(evidence.accounting) if evidence.accounting else None,
            trade_off=trade_off_figure(evidence.sweep, (own_epsilon, evidence.accuracy.final_protected))
            if evidence.sweep
            else None,
            clients=clients_figure(evidence.clients) if evidence.clients else NO_CLIENTS,
            survivors=survivors_figure(evidence.rounds),
            ladders=rungs,
            laddered={ladder.workload for ladder in rungs},
            script=script,
            script_hash=hash_of(script),
            accuracy=accuracy_figure(evidence.accuracy),
            epsilons=epsilon_figure(evidence.observers),
            reconstructions=reconstruction_figure(groups),
            labels=label_figure(evidence.attacks),
            clipping=clipping_figure(evidence.rounds),
            noise=noise_figure(evidence.rounds),
            rocs=membership_figures(evidence.membership) if evidence.membership else [],
            canary_figures=_canary_figures(evidence.canaries),
            workloads=_by_workload(groups),
            groups_note=_groups_note(evidence, groups),
            rounds=rounds,
            rounds_note=selection.selection_note(len(rounds), len(evidence.rounds), "rounds", "evenly spaced"),
            aborted=sum(1 for entry in evidence.rounds if entry.aborted is not None),
            attacks=attacks,
            attacks_note=selection.selection_note(
                len(attacks), len(evidence.attacks), "attacks", "those that got most"
            ),
            settings=settings[: selection.SETTINGS_ROWS],
            settings_note=selection.selection_note(
                min(len(settings), selection.SETTINGS_ROWS), len(settings), "settings", "the first"
            ),
        )
    )
    return html.replace("\r\n", "\n").translate(_UNPRINTABLE)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return page_environment()


def _by_workload(groups: Sequence[selection.Group]) -> list[tuple[str, list[selection.Group]]]:
    found: dict[str, list[selection.Group]] = {}
    for group in groups:
        found.setdefault(group.workload, []).append(group)
    return list(found.items())


def _distinct(canaries: Canaries | None) -> list[CanaryObserver]:
    """Of observers that score canaries alike, the first."""
    found: dict[str, CanaryObserver] = {}
    for entry in canaries.observers if canaries else ():
        found.setdefault(entry.sees, entry)
    return list(found.values())


def _canary_figures(canaries: Canaries | None) -> list[Figure]:
    distinct = _distinct(canaries)
    return [*(canary_figure(o) for o in distinct), canary_roc_figure(distinct)] if distinct else []


def _groups_note(evidence: Evidence, groups: Sequence[selection.Group]) -> str:
    total = len({(a.workload, a.defence, a.observer) for a in evidence.attacks})
    return selection.selection_note(len(groups), total, "groups of attacks", "those that got most")


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_setting(item) for item in value) or "none"
    return str(value)
