"""Computes a report's figures again from what they were computed from, and names those that come out otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from privfed.audit import evidence as ev
from privfed.empirical_evidence import canary_observers, membership_evidence
from privfed.measurements import Image, Measurements, Picture
from privfed.privacy.accounting import Guarantee, ObservedRelease
from privfed.verdict import best_attack, counters_of_labels, readers_of_text, verdict

CLOSE = 1e-6
"""Relative and absolute: other libraries add up in another order."""
PERFECT = 1e-20
"""Mean squared error at which PSNR is cut off."""


def misjudged(evidence: ev.Evidence) -> Iterator[str]:
    """What does not follow from the rest of the report itself."""
    stated = {row.observer: row.best_attack for row in evidence.observers}
    for observer, best in stated.items():
        if best != best_attack(evidence.attacks, observer):
            yield f"the best attack of {observer}"
    found = readers_of_text(evidence.attacks), counters_of_labels(evidence.attacks)
    if evidence.verdict != verdict(evidence.observers, evidence.canaries, evidence.membership, *found):
        yield "the verdict"
    for number, a in enumerate(evidence.attacks, 1):
        if a.psnr is not None and a.margin_db is not None and a.trivial_psnr:
            margin = a.psnr - max(a.trivial_psnr.values())
            if not _close(a.margin_db, margin):
                yield f"the margin of attack {number}"
        if a.labels is not None and not _counted(a.labels):
            yield f"the counts of labels of attack {number}"
    accuracy = evidence.accuracy
    for final, points in (
        (accuracy.final_protected, accuracy.protected),
        (accuracy.final_unprotected, accuracy.unprotected),
    ):
        measured = [point.test_accuracy for point in points if point.test_accuracy is not None]
        if final != (measured[-1] if measured else None):
            yield "the accuracy in the end"
    both = (accuracy.final_unprotected, accuracy.final_protected)
    gap = None if None in both else both[0] - both[1]  # type: ignore[operator]  # neither is None
    if not _close(accuracy.gap, gap):
        yield "the cost in accuracy"


def _counted(labels: ev.LabelScores) -> bool:
    found, true = (np.array(counts) / sum(counts) for counts in (labels.found, labels.true))
    occur = [set(np.flatnonzero(shares)) for shares in (found, true)]
    overlap, alike = float(np.minimum(found, true).sum()), float(np.minimum(1 / len(true), true).sum())
    return (
        _close(labels.overlap, overlap)
        and _close(labels.trivial.get("all alike"), alike)
        and _close(labels.occurring, 2 * len(occur[0] & occur[1]) / (len(occur[0]) + len(occur[1])))
        and labels.exact == bool(np.allclose(found, true, rtol=0, atol=CLOSE))
    )


def misscored(evidence: ev.Evidence, found: Measurements) -> Iterator[str]:
    """Attacks whose scores or pictures are not those of the images kept; text has none."""
    for number, (a, picture) in enumerate(zip_longest(evidence.attacks, found.pictures), 1):
        if a is None or (a.psnr is None) != (picture is None):
            yield f"attack {number}"
            continue
        if picture is not None and (wrong := ", ".join(_wrong_scores(a, picture, found.mean))):
            yield f"attack {number}, {a.attack} on {a.observer}'s view ({wrong})"


def _wrong_scores(a: ev.AttackEvidence, picture: Picture, mean: Image) -> Iterator[str]:
    mse = float(np.mean((picture.reconstruction - picture.original) ** 2))
    trivial = {
        name: _psnr(float(np.mean((_guess(name, mean) - picture.fitted[name]) ** 2))) for name in picture.fitted
    }
    again = {
        "mse": mse,
        "psnr": _psnr(mse),
        "ssim": _ssim(picture.reconstruction, picture.original),
        "trivial_psnr": trivial,
        "margin_db": _psnr(mse) - max(trivial.values(), default=math.inf),
    }
    for name, value in again.items():
        if not _close(getattr(a, name), value):
            yield name
    for name, image in (("original", picture.original), ("reconstruction", picture.reconstruction)):
        shown = getattr(a, name)
        if shown is not None and shown != ev.png(image):
            yield f"picture of the {name}"


def _guess(name: str, mean: Image) -> Image:
    if name == "dataset mean":
        return np.clip(mean, 0, 1)
    return np.full_like(mean, {"black": 0.0, "grey": 0.5}.get(name, math.nan))


def _psnr(mse: float) -> float:
    return -10 * math.log10(max(mse, PERFECT))


def _ssim(image: Image, truth: Image) -> float | None:
    from skimage.metrics import structural_similarity

    if truth.ndim not in (2, 3) or min(truth.shape[:2]) < 3:
        return None
    side = min(7, (min(truth.shape[:2]) - 1) // 2 * 2 + 1)
    channels = -1 if truth.ndim == 3 else None
    return float(structural_similarity(image, truth, win_size=side, data_range=1.0, channel_axis=channels))


def mismeasured(
    evidence: ev.Evidence,
    found: Measurements,
    claims: Mapping[str, Guarantee],
    spent: Sequence[Sequence[ObservedRelease]],
) -> Iterator[str]:
    """Figures of membership inference and of canaries that are not those of the scores kept and the ledger."""
    stated = evidence.membership
    if (stated is None) == bool(found.membership):
        yield "membership inference"
    elif stated is not None:
        again = membership_evidence(found.membership, stated.non_members_from, stated.shadow_models, claims)
        yield from _differences(stated.model_dump(), again.model_dump(), "membership")
    canaries = evidence.canaries
    if (canaries is None) != (found.canaries is None):
        yield "canaries"
    elif canaries is not None and found.canaries is not None:
        included = found.canaries.included
        if (canaries.count, canaries.included) != (len(included), int(included.sum())):
            yield "canaries.count"
        observers = canary_observers(found.canaries, spent, claims, canaries.delta)
        stated_rows = [row.model_dump() for row in canaries.observers]
        yield from _differences(stated_rows, [row.model_dump() for row in observers], "canaries.observers")


def _differences(left: Any, right: Any, where: str) -> Iterator[str]:
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        for key in left:
            yield from _differences(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True), 1):
            yield from _differences(one, other, f"{where}.{number}")
    elif not _close(left, right):
        yield where


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=CLOSE, abs_tol=CLOSE)
    return bool(left == right)
