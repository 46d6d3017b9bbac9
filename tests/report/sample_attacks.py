"""Attacks as a report has them, made up: reconstructions, counts of labels, and failures."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.audit import evidence as ev

PROBE, OWN = "one step on one example", "the run's own updates"


@cache
def digit(seed: int) -> NDArray[np.float64]:
    """A ring or a stroke on 8×8 pixels, ``[8, 8]`` in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8] - 3.5
    radius = np.hypot(x / rng.uniform(0.7, 1.1), y)
    ring = np.exp(-((radius - rng.uniform(2, 3)) ** 2))
    stroke = np.exp(-((x - rng.uniform(-1, 1) - y * rng.uniform(-0.4, 0.4)) ** 2) / 1.4) * (abs(y) < 3.6)
    picture: NDArray[np.float64] = np.clip(ring if seed % 2 else stroke, 0, 1)
    return picture


def attack(
    index: int, *, observer: str, workload: str = OWN, defence: str = "as configured", **changes: Any
) -> Any:
    """One outcome; on the probe it is exact, else a blur."""
    truth = digit(index)
    rng = np.random.default_rng(index)
    exact = workload == PROBE
    guess = truth if exact else np.clip(0.3 + 0.12 * rng.standard_normal((8, 8)), 0, 1)
    values: dict[str, Any] = {
        "observer": observer,
        "defence": defence,
        "workload": workload,
        "kind": {"client": "difference of models", "release": "difference of models"}.get(
            observer, "client update" if defence == "none" else "sum of updates"
        ),
        "attack": "dense_layer" if index % 2 else "gradient_matching",
        "round": 1 if index % 2 else 40,
        "contributors": 1 if defence == "none" else 25 if observer == "active server" else 53,
        "failure": None,
        "mse": 1e-16 if exact else 0.11,
        "psnr": 156.2 + index if exact else 9.1 + rng.uniform(-1, 0.4),
        "ssim": 1.0 if exact else 0.12,
        "label_correct": bool(index % 2),
        "trivial_psnr": {"black": 8.1, "grey": 7.4, "dataset mean": 10.9},
        "margin_db": 145.3 + index if exact else -1.8 + rng.uniform(-1, 0.4),
        "seconds": 0.8,
        "evaluations": 300,
        "original": ev.png(truth),
        "reconstruction": ev.png(guess),
    }
    return ev.AttackEvidence(**values | changes)


def counted_labels(observer: str, *, right: bool = True, **changes: Any) -> ev.AttackEvidence:
    scores = dict.fromkeys(("mse", "psnr", "ssim", "label_correct", "trivial_psnr", "margin_db"))
    labels = ev.LabelScores(
        overlap=1.0 if right else 0.5,
        exact=right,
        occurring=1.0 if right else 0.5,
        trivial={"all alike": 0.5, "held-out labels": 0.45},
        found=(2, 0, 2) if right else (2, 2, 0),
        true=(2, 0, 2),
    )
    none = {"original": None, "reconstruction": None, "attack": "label_inference"}
    return attack(1, observer=observer, **scores, **none, labels=labels, **changes)


def failed_attack(observer: str, **changes: Any) -> ev.AttackEvidence:
    scores = dict.fromkeys(("mse", "psnr", "ssim", "label_correct", "trivial_psnr", "margin_db"))
    words = "the rank of the update is above one: it holds more than one example"
    return attack(
        1, observer=observer, **scores, failure=words, original=None, reconstruction=None, evaluations=0, **changes
    )
