"""Outcomes of attacks as plain values, and what they come to over many targets, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy import stats

from attacks import AttackOutcome

EXACT = 1e-8
"""Mean squared error below which a reconstruction is exact: far below half a level of a byte."""
CONFIDENCE = 0.95


def outcome_values(outcome: AttackOutcome) -> dict[str, Any]:
    """One outcome without its images, ready for strict JSON."""
    best, trivial = outcome.best, outcome.trivial
    exact = {score.target for score in outcome.scores if score.mse < EXACT}
    return {
        "observer": outcome.observer.value,
        "kind": outcome.kind.value,
        "round": outcome.round,
        "contributors": outcome.contributors,
        "examples": outcome.examples,
        "attack": outcome.attack,
        "fired": outcome.fired,
        "assumed": list(outcome.assumed),
        "verified": outcome.verified,
        "failure": outcome.failure,
        "tried": [asdict(attempt) for attempt in outcome.tried],
        "residual": outcome.residual if math.isfinite(outcome.residual) else None,
        "mse": best.mse if best else None,
        "psnr": best.psnr if best else None,
        "ssim": best.ssim if best else None,
        "label_correct": best.label_correct if best else None,
        "exact": bool(best and best.mse < EXACT),
        "exact_examples": len(exact) / outcome.examples if outcome.scores and outcome.examples else None,
        "identified": outcome.identified,
        "trivial_psnr": trivial,
        "margin_db": outcome.margin_db,
        "text": asdict(outcome.text) if outcome.text else None,
        "labels": asdict(outcome.labels) if outcome.labels else None,
        "seconds": outcome.seconds,
        "evaluations": outcome.evaluations,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of ``outcome_values``, one entry for each observer, kind of vector and attack.

    Shares are of all targets, failures included, with Wilson's interval (1927); means of PSNR are over the targets
    that have a reconstruction, with Student's t-interval.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["observer"], row["kind"], row["attack"]), []).append(row)
    return [
        {"observer": observer, "kind": kind, "attack": attack, **_summary(group)}
        for (observer, kind, attack), group in groups.items()
    ]


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [row for row in rows if row["psnr"] is not None]
    texts = [row["text"] for row in rows if row["text"] is not None]
    labels = [row["labels"] for row in rows if row.get("labels") is not None]
    no_images = bool(texts or labels)
    fired = [row["fired"] or row["attack"] for row in rows if row["failure"] is None]
    judged = [row["identified"] for row in rows if row["identified"] is not None or row["failure"]]
    return {
        "targets": len(rows),
        "failed": sum(row["failure"] is not None for row in rows),
        "fired": {name: fired.count(name) for name in sorted(set(fired))},
        "verified": sum(row["verified"] is True for row in rows),
        "exact": None if no_images else share(sum(row["exact"] for row in rows), len(rows)),
        "identified": share(sum(map(bool, judged)), len(judged)) if judged and not no_images else None,
        "psnr": mean([row["psnr"] for row in scored]),
        "trivial_psnr": mean([max(row["trivial_psnr"].values()) for row in scored]),
        "margin_db": mean([row["margin_db"] for row in scored]),
        "text": {name: mean([text[name] for text in texts], most=1.0) for name in texts[0]} if texts else None,
        "labels": _labels(labels, len(rows)) if labels else None,
        "seconds_median": float(np.median([row["seconds"] for row in rows])),
        "evaluations": sum(row["evaluations"] for row in rows),
    }


def _labels(found: list[dict[str, Any]], targets: int) -> dict[str, Any]:
    return {
        "overlap": mean([one["overlap"] for one in found], most=1.0),
        "trivial": mean([max(one["trivial"].values()) for one in found], most=1.0),
        "occurring": mean([one["occurring"] for one in found], most=1.0),
        "exact": share(sum(one["exact"] for one in found), targets),
    }


def share(successes: int, count: int) -> dict[str, float]:
    """``successes / count`` with Wilson's interval."""
    low, high = stats.binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": successes / count, "low": float(low), "high": float(high)}


def mean(values: Sequence[float], *, most: float | None = None) -> dict[str, float | None] | None:
    """Mean with Student's t-interval, which a single value does not have; ``None`` of nothing.

    Args:
        values: What the mean is of.
        most: Of values from 0 to this the interval does not go beyond.
    """
    if not values:
        return None
    centre = float(np.mean(values))
    if len(values) < 2:
        return {"value": centre, "low": None, "high": None}
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * stats.sem(values))
    low, high = centre - half, centre + half
    if most is not None:
        low, high = max(low, 0.0), min(high, most)
    return {"value": centre, "low": low, "high": high}
