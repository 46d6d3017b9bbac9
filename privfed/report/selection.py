"""What of a long run fits on a page; whoever shows a selection says so, and ``report.json`` has everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from privfed.audit.evidence import AttackEvidence, PrivacyLoss
from privfed.report.numbers import words

T = TypeVar("T")
FIGURE_POINTS = 400
TABLE_ROWS = 200
ATTACK_ROWS = 120
SETTINGS_ROWS = 300
PAIRS_PER_GROUP = 5
MAX_GROUPS = 24
IMAGE_BUDGET = 900_000
"""Characters of images on the page, of 2 MB in all."""
TEXT_LIMIT = 1200


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``key.path`` and value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shared_terms(losses: Iterable[tuple[str, PrivacyLoss]]) -> list[tuple[list[str], PrivacyLoss]]:
    """What the observers' ε depend on, once for all observers that share it."""
    shared: dict[tuple[object, ...], tuple[list[str], PrivacyLoss]] = {}
    for observer, loss in losses:
        key = (loss.unit, loss.neighbouring, loss.sampling, loss.delta)
        observers = shared.setdefault(key, ([], loss))[0]
        if observer not in observers:
            observers.append(observer)
    return list(shared.values())


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def foremost(items: Sequence[T], limit: int, leak: Callable[[T], float]) -> list[T]:
    """At most ``limit`` items, those that leak most, in their old order: no selection may hide a leak."""
    order = sorted(range(len(items)), key=lambda i: -leak(items[i]))[:limit]
    return [items[i] for i in sorted(order)]


def margin(attack: AttackEvidence) -> float:
    """How far an attack got; below everything else when it came to nothing."""
    return -math.inf if attack.margin_db is None else attack.margin_db


def selection_note(shown: int, total: int, what: str, how: str) -> str:
    """What is missing from the page, in words; empty when nothing is."""
    if shown >= total:
        return ""
    return f"Shown: {shown:,} of {total:,} {what}, {how}; report.json has them all."


def shortened(text: str, limit: int = TEXT_LIMIT) -> str:
    """Text of a bounded length, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Group:
    """Attacks on one observer's view of one workload under one defence, the best for the attacker first.

    Attributes:
        workload: What was attacked.
        defence: What stood in between.
        observer: Who looked.
        scored: Attacks with a reconstruction.
        shown: Those of ``scored`` whose images are on the page.
        failures: Reasons of the others, with how often each was given.
    """

    workload: str
    defence: str
    observer: str
    scored: tuple[AttackEvidence, ...]
    shown: tuple[AttackEvidence, ...]
    failures: tuple[tuple[str, int], ...]


def label_groups(attacks: Sequence[AttackEvidence]) -> dict[tuple[str, str, str], list[AttackEvidence]]:
    """Attacks that counted labels, by observer, defence and workload."""
    groups: dict[tuple[str, str, str], list[AttackEvidence]] = {}
    for attack in attacks:
        if attack.labels is not None:
            groups.setdefault((attack.observer, attack.defence, attack.workload), []).append(attack)
    return groups


def group_attacks(attacks: Sequence[AttackEvidence]) -> list[Group]:
    """Sort attacks into groups in their order of appearance, and choose the images that fit on the page.

    The images are dealt out in turns, so that each group has its best one before any has its second.
    """
    members: dict[tuple[str, str, str], list[AttackEvidence]] = {}
    for attack in attacks:
        members.setdefault((attack.workload, attack.defence, attack.observer), []).append(attack)
    kept = foremost(list(members), MAX_GROUPS, lambda key: max(margin(attack) for attack in members[key]))
    ranked = {key: _ranked(members[key]) for key in kept}
    shown = _deal(ranked)
    return [
        Group(*key, tuple(scored), tuple(shown[key]), _failures(members[key])) for key, scored in ranked.items()
    ]


def _ranked(found: Sequence[AttackEvidence]) -> list[AttackEvidence]:
    scored = [attack for attack in found if attack.margin_db is not None]
    return sorted(scored, key=margin, reverse=True)


def _deal(ranked: dict[Any, list[AttackEvidence]]) -> dict[Any, list[AttackEvidence]]:
    """At most ``PAIRS_PER_GROUP`` for each group and ``IMAGE_BUDGET`` characters in all."""
    pictured = {
        key: [attack for attack in scored if attack.reconstruction is not None] for key, scored in ranked.items()
    }
    shown: dict[Any, list[AttackEvidence]] = {key: [] for key in ranked}
    left = IMAGE_BUDGET
    for turn in range(PAIRS_PER_GROUP):
        for key, candidates in pictured.items():
            if turn < len(candidates):
                attack = candidates[turn]
                cost = len(attack.original or "") + len(attack.reconstruction or "")
                if cost <= left:
                    left -= cost
                    shown[key].append(attack)
    return shown


def _failures(found: Sequence[AttackEvidence]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for attack in found:
        if attack.failure is not None:
            reason = f"{words(attack.attack)}: {attack.failure}"
            counts[reason] = counts.get(reason, 0) + 1
    return tuple(sorted(counts.items(), key=lambda item: -item[1]))
