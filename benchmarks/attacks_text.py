"""Rows of ``benchmarks/attacks.py`` on text: the few plays and posts that TFF bundles, windows without padding."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TextRow:
    """One setting.

    Attributes:
        attack: ``tokens`` or ``dager``.
        batch: Windows of 20 tokens behind an observation.
        width: Of the transformer of three blocks.
        rate: Share of targets that must succeed; 0 when the rate is only reported.
        targets: When nothing else is asked for.
    """

    attack: str
    batch: int
    width: int
    rate: float
    targets: int = 50


ROWS = {
    "tokens-1": TextRow("tokens", 1, 128, 1.0),
    "tokens-8": TextRow("tokens", 8, 128, 1.0),
    "tokens-32": TextRow("tokens", 32, 128, 1.0),
    "sequences-1": TextRow("dager", 1, 256, 0.0),
    "sequences-2": TextRow("dager", 2, 256, 0.0),
    "sequences-4": TextRow("dager", 4, 256, 0.0),
    "sequences-8": TextRow("dager", 8, 256, 0.0, targets=20),
    "sequences-16": TextRow("dager", 16, 256, 0.0, targets=10),
}


def run(row: TextRow, targets: int, draws: int, learning_rate: float) -> dict[str, Any]:
    """Attack updates on windows of text; a success has every token, or every sequence, right."""
    import tensorflow as tf

    from attacks import attempt, create
    from attacks.text_scoring import score_text
    from privfed.data.tff_sets import load_tff
    from privfed.models.functional import cross_entropy
    from privfed.models.transformer import transformer
    from privfed.transcript import Kind, Observation, Observer, Plan, View

    text = load_tff("shakespeare_synthetic")
    full = np.flatnonzero(text.train_features[:, 0] != 0)
    model = transformer((text.train_features.shape[1],), text.classes, width=row.width)
    plan = Plan(learning_rate, 1, row.batch, 1.0, None, 0.0, None, "off")
    scores, seconds, failures = [], [], {}
    for target in range(-1, targets):
        rng = np.random.default_rng([0x7E87, max(target, 0)])
        rows = rng.choice(full, row.batch, replace=False)
        x, y = text.train_features[rows].astype(np.float32) / np.float32(255), text.train_labels[rows]
        weights = model.initial_vector(max(target, 0) % draws)
        variables = [tf.constant(part) for part in model.unflatten(weights)]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            loss = cross_entropy(model.logits(variables, tf.constant(x)), tf.constant(y))
        gradient = model.flatten([part.numpy() for part in tape.gradient(loss, variables)])
        vector = (weights - np.float32(learning_rate) * gradient - weights).astype(np.float64)
        seen = Observation(1, Kind.CLIENT_UPDATE, weights, vector, 1.0, ())
        view = View(Observer.SERVER, plan, model, (seen,))
        found = attempt(create(row.attack), view, 0, np.random.default_rng(target + 1))
        if target < 0:  # for tracing alone
            continue
        scores.append(score_text(found.images, found.tokens if found.failure is None else np.zeros(0), x))
        seconds.append(found.seconds)
        if found.failure:
            failures[found.failure] = failures.get(found.failure, 0) + 1
    complete = [s.token_set == 1 if row.attack == "tokens" else s.exact == 1 for s in scores]
    rate = statistics.fmean(complete)
    means = {key: statistics.fmean(getattr(s, key) for s in scores) for key in asdict(scores[0])}
    return {
        **asdict(row),
        "targets": len(scores),
        "draws": min(draws, len(scores)),
        "success_rate": rate,
        **means,
        "seconds_median": statistics.median(seconds),
        "seconds_longest": max(seconds),
        "failures": failures,
        "required": {"success_rate": row.rate},
        "reached": rate >= row.rate,
    }
