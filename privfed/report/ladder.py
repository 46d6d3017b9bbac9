"""The same examples behind one defence after the other: which of them takes the picture away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privfed.audit.evidence import NO_DEFENCE, AttackEvidence
from privfed.report.selection import margin

MAX_ROWS = 6
MAX_STEPS = 6
BUDGET = 500_000
"""Characters of images in all ladders together, of 2 MB for the page."""


@dataclass(frozen=True)
class Step:
    """One defence.

    Attributes:
        defence: Its name.
        cells: By row, the best reconstruction of that row's original; ``None`` where no attack came to one.
        whole: In place of ``cells`` where the examples are in one sum: the best reconstructions of any of them.
        contributors: Clients in what was attacked.
    """

    defence: str
    cells: tuple[AttackEvidence | None, ...]
    whole: tuple[AttackEvidence, ...]
    contributors: float


@dataclass(frozen=True)
class Ladder:
    """Reconstructions of the same originals, a row each, a column for each defence.

    Attributes:
        workload: What was attacked.
        originals: The rows.
        steps: The columns, the undefended one first.
        total: Originals in all.
    """

    workload: str
    originals: tuple[str, ...]
    steps: tuple[Step, ...]
    total: int


def ladders(attacks: Sequence[AttackEvidence]) -> list[Ladder]:
    """One for each workload that was attacked undefended and behind two defences at least, with pictures."""
    found: list[Ladder] = []
    left = BUDGET
    for workload in dict.fromkeys(attack.workload for attack in attacks):
        of_it = [attack for attack in attacks if attack.workload == workload]
        by_defence: dict[str, list[AttackEvidence]] = {}
        for attack in of_it:
            by_defence.setdefault(attack.defence, []).append(attack)
        originals = list(_best(by_defence.get(NO_DEFENCE, [])))
        if originals and len(by_defence) > 2:
            for count in range(min(MAX_ROWS, len(originals)), 0, -1):  # as many rows as the page has room for
                rows = tuple(originals[:count])
                steps = tuple(_step(name, tried, rows) for name, tried in [*by_defence.items()][:MAX_STEPS])
                cost = _characters(rows, steps)
                if cost <= left:
                    left -= cost
                    found.append(Ladder(workload, rows, steps, len(originals)))
                    break
    return found


def _characters(rows: Sequence[str], steps: Sequence[Step]) -> int:
    cells = sum(len(cell.reconstruction or "") for step in steps for cell in step.cells if cell is not None)
    whole = sum(len(a.original or "") + len(a.reconstruction or "") for step in steps for a in step.whole)
    return sum(map(len, rows)) + cells + whole


def _step(defence: str, tried: Sequence[AttackEvidence], rows: Sequence[str]) -> Step:
    best, together = _best(tried), max(attack.contributors for attack in tried)
    if together > 1:
        ranked = sorted(best.values(), key=margin, reverse=True)
        return Step(defence, (), tuple(ranked[:2]), together)
    return Step(defence, tuple(best.get(original) for original in rows), (), together)


def _best(tried: Sequence[AttackEvidence]) -> dict[str, AttackEvidence]:
    """By original, the reconstruction that came nearest."""
    best: dict[str, AttackEvidence] = {}
    for attack in tried:
        if attack.original is not None and attack.reconstruction is not None:
            known = best.get(attack.original)
            if known is None or margin(attack) > margin(known):
                best[attack.original] = attack
    return best
