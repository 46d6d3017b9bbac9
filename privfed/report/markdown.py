"""``report.md``: the verdict and its tables for a pull request, in GitHub's Markdown; hostile text stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from privfed.audit.evidence import Evidence
from privfed.report.numbers import against_guess, count, epsilon, epsilon_from, percent, points, power, words
from privfed.report.selection import shared_terms, shortened

LEVELS = {"protected": "Protected", "partly": "Partly protected", "exposed": "Exposed"}
RESULTS = ("passed", "failed", "not checked")


def render_markdown(evidence: Evidence) -> str:
    """The short form of the report."""
    return "\n".join(_lines(evidence)).rstrip() + "\n"


def _lines(e: Evidence) -> Iterator[str]:
    yield f"## Privacy report: {_text(e.run.name)}"
    yield ""
    yield f"**{LEVELS[e.verdict.level]}.** {_text(e.verdict.text)}"
    yield ""
    if e.run.status == "partial":
        yield "**Partial report**: the run did not get to its end."
        yield ""
    yield from _table(
        ("Observer", "ε", "Best attack", "Sees"),
        [
            (
                row.observer,
                _bound(row.guarantee.epsilon),
                "none scored"
                if row.best_attack is None
                else f"{words(row.best_attack.attack)}: {against_guess(row.best_attack.margin_db)}",
                row.sees,
            )
            for row in e.observers
        ],
    )
    for observers, loss in shared_terms((row.observer, row.guarantee) for row in e.observers):
        yield (
            f"ε against {_text(', '.join(observers))}: δ = {power(loss.delta)}, unit: {_text(loss.unit)}, "
            f"neighbours: {_text(loss.neighbouring)}, sampling: {_text(loss.sampling)}."
        )
        yield ""
    yield from _accuracy(e)
    yield from _measured(e)
    yield from _checks(e)
    yield (
        f"<sub>PrivFed {_text(e.run.privfed_version)}, {e.run.created[:16]} UTC, commit "
        f"{_text((e.run.git_commit or 'unknown')[:12])}, ledger {e.ledger.head_sha256[:16]}. The whole report is "
        "report.html; `privfed verify` checks it.</sub>"
    )


def _accuracy(e: Evidence) -> Iterator[str]:
    a = e.accuracy
    if a.final_protected is None:
        yield "Accuracy was not measured."
    elif a.final_unprotected is None or a.gap is None:
        yield f"Test accuracy {percent(a.final_protected)}; what protection costs was not measured."
    else:
        yield (
            f"Test accuracy {percent(a.final_protected)}, {percent(a.final_unprotected)} without protection: "
            f"it costs {points(a.gap)}."
        )
    yield ""


def _measured(e: Evidence) -> Iterator[str]:
    if e.canaries is not None:
        rows = []
        for o in e.canaries.observers:
            estimates = "; ".join(
                f"{epsilon(x.epsilon)} ({epsilon_from(x.low)} to {epsilon(x.high)})" for x in o.estimates
            )
            result = "**flagged**" if o.flagged else "not refuted"
            rows.append((o.observer, _bound(o.claim), estimates or "none", f"≥ {epsilon_from(o.bound)}", result))
        yield f"Canaries ({count(e.canaries.included)} of {count(e.canaries.count)} took part):"
        yield ""
        yield from _table(("Observer", "Claim", "Estimates of ε", "Lower bound", "Result"), rows)
    if e.membership is not None:
        yield "Membership in the released model (0.5 is a coin):"
        yield ""
        yield from _table(
            ("Attack", "Unit", "Area under the curve", "It shows"),
            [
                (
                    words(a.method),
                    a.unit,
                    f"{a.auc:.3f}",
                    f"ε ≥ {epsilon_from(a.floor.epsilon)}" if a.floor else "–",
                )
                for a in e.membership.attacks
            ],
        )
        if e.membership.claims:
            claims = (f"{c.observer} {_bound(c.epsilon)}{' **flagged**' * c.flagged}" for c in e.membership.claims)
            yield f"Claimed against: {', '.join(claims)}."
            yield ""


def _checks(e: Evidence) -> Iterator[str]:
    if not e.checks:
        return
    counts = {name: sum(check.result == name for check in e.checks) for name in RESULTS}
    said = ", ".join(f"{number} {name}" for name, number in counts.items())
    yield f"<details><summary>Checklist: {said}</summary>"
    yield ""
    yield from _table(("Check", "Result", "Why"), [(check.name, check.result, check.why) for check in e.checks])
    yield "</details>"
    yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell if cell.startswith("**") else _text(cell) for cell in row) + " |"
    yield ""


def _bound(value: float) -> str:
    return "∞" if epsilon(value) == "∞" else f"≤ {epsilon(value)}"


def _text(value: str) -> str:
    """One line that no renderer takes for markup, a mention or a cell's end."""
    line = shortened(" ".join(value.split()), 600)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")
    line = re.sub(r"(?i)\b(https?|ftp):", "\\1\u200b:", line)
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", line)
