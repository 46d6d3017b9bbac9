"""Row ``membership`` of ``benchmarks/attacks.py``: membership inference on models trained from Fashion-MNIST.

300 clients at random, by seed: 100 whose data the model is trained on, 100 who differ from them in membership
alone, and 100 others, on whom a model is trained that saw neither: there every attack must be at chance.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

THIRD = 100
OVERFITTED: dict[str, Any] = {"rounds": 60, "local_epochs": 5, "batch_size": 10, "learning_rate": 0.1}
DEFENDED: dict[str, Any] = {"mechanism": "gaussian", "clip_norm": 1.0, "epsilon": 8, "delta": 1e-3}


@dataclass(frozen=True)
class MembershipRow:
    """One setting.

    Attributes:
        examples: Of each client.
        shadow_models: Trained on halves of members and non-members together.
        targets: Draws of clients and models when nothing else is asked for.
        training: As in the settings.
    """

    examples: int
    shadow_models: int
    targets: int
    training: dict[str, Any]


ROWS = {"membership": MembershipRow(30, 8, 1, OVERFITTED)}


def run(row: MembershipRow, targets: int, data: Path) -> dict[str, Any]:
    """Train, attack and count, without a defence, under differential privacy, and on a model of other data."""
    figures: dict[str, dict[str, list[Any]]] = {}
    seconds, accuracies = [], {}
    for draw in range(targets):
        started = time.perf_counter()
        for defence, (found, accuracy) in _draw(row, draw, data).items():
            accuracies.setdefault(defence, []).append(accuracy)
            for result in found:
                by_method = figures.setdefault(f"{defence}, {result.unit}", {})
                by_method.setdefault(result.method, []).append(result)
        seconds.append(time.perf_counter() - started)
        print(f"draw {draw + 1} of {targets}", file=sys.stderr, flush=True)
    return {
        **asdict(row),
        "targets": targets,
        "seconds_median": statistics.median(seconds),
        "test_accuracy": {defence: statistics.fmean(values) for defence, values in accuracies.items()},
        "results": {
            setting: {name: _means(draws) for name, draws in methods.items()}
            for setting, methods in figures.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = []
    for setting, methods in result["results"].items():
        for name, found in methods.items():
            rates = (found["tpr_at_1_percent_fpr"], found["tpr_at_0_1_percent_fpr"])
            one, tenth = ("not resolvable" if rate is None else f"{rate:.1%}" for rate in rates)
            lines.append(f"{setting}, {name}: AUC {found['auc']:.3f}, TPR {one} at 1 % FPR, {tenth} at 0.1 %")
    return "\n".join(lines)


def _draw(row: MembershipRow, draw: int, data: Path) -> dict[str, Any]:
    """Results and test accuracy by defence."""
    import numpy as np

    from privfed.api import load_population
    from privfed.audit.pool import make_pool
    from privfed.audit.shadow_scores import METHODS
    from privfed.composition import compose
    from privfed.console import Console
    from privfed.data import take_clients
    from privfed.membership import judge_all, train_shadows
    from privfed.settings_file import resolve_settings

    everybody = load_population(
        "idx",
        folder=str(data),
        partition="iid",
        clients=3 * THIRD,
        examples_per_client=row.examples,
        seed=draw,
    )
    thirds = np.random.default_rng(draw).permutation(3 * THIRD).reshape(3, THIRD)
    members, others, strangers = (take_clients(everybody, np.sort(third)) for third in thirds)
    found: dict[str, Any] = {}
    for defence, privacy in (("none", {}), ("client-level DP", DEFENDED)):
        tables = {
            "model": {"name": "mlp"},
            "training": {**row.training, "seed": draw, "evaluate_every": 1000},
            "privacy": privacy,
        }
        experiment = replace(
            compose(resolve_settings({**tables, "data": {"clients": THIRD}}), members), held_out=others
        )
        shadows = train_shadows(experiment, make_pool(members, others), row.shadow_models, Console(quiet=True))
        trained = experiment.run(None, lambda report: None)
        result = judge_all(shadows, experiment, trained.weights, list(METHODS))
        found[defence] = (result, trained.final_evaluation.accuracy)
        if not privacy:
            stranger = replace(experiment, population=strangers).run(None, lambda report: None)
            result = judge_all(shadows, experiment, stranger.weights, list(METHODS))
            found["not trained on either"] = (result, stranger.final_evaluation.accuracy)
    return found


def _means(draws: list[Any]) -> dict[str, Any]:
    """Means over draws; rates that the non-members are too few for are ``None``."""

    def tpr(limit: float) -> float | None:
        points = [draw.points[limit] for draw in draws]
        return None if None in points else statistics.fmean(point.tpr for point in points)

    return {
        "members": draws[0].members,
        "non_members": draws[0].non_members,
        "auc": statistics.fmean(draw.auc for draw in draws),
        "auc_by_draw": [draw.auc for draw in draws],
        "tpr_at_1_percent_fpr": tpr(0.01),
        "tpr_at_0_1_percent_fpr": tpr(0.001),
    }
