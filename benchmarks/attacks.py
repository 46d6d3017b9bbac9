"""Success rates of the attacks on held-out Fashion-MNIST images, one row of the table by one command.

    python benchmarks/attacks.py --row sparse-decomposition-8 --json
    python benchmarks/attacks.py --peers breaching --targets 5 --json

Every target is drawn from the test images, which no model here was trained on, and the weight draws are gone
through in turn. Clients compute in single precision, as the executors do: an update is the difference of two
float32 models. Seconds are those of the attack alone, after one attack that traces and caches (not so searches of
minutes, for batches).
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import attacks_active
import attacks_membership
import attacks_peers
import attacks_text
import table
from attacks_rows import MODELS, ROWS, Row, matching

DATA = Path("/usr/share/datasets/fashion-mnist")
DRAWS = 5
LEARNING_RATE = 0.1


def images(folder: Path, split: str = "t10k") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Of the test split ``[10000, 28, 28, 1]`` and ``[10000]``, or as many as there are in ``train``."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return pixels, labels


def trained(row: Row, model: Any, draw: int, folder: Path) -> NDArray[np.float32]:
    """The weights that the update starts from: a draw, after ``row.trained`` steps of SGD."""
    weights = np.asarray(model.initial_vector(draw), np.float32)
    if not row.trained:
        return weights
    pixels, labels = images(folder, "train")
    order = np.random.default_rng(draw).permuted(np.arange(len(labels)))
    steps = Row("none", row.model, row.options, 64, 0, 0, None, step=64)
    picked = order[: 64 * row.trained]
    x = pixels[picked].astype(np.float32) / np.float32(255)
    return np.asarray(weights + local_update(steps, model, weights, x, labels[picked]), np.float32)


def local_update(row: Row, model: Any, start: NDArray[np.float32], x: Any, y: Any) -> NDArray[np.float64]:
    """One client's local SGD in single precision: new weights less old."""
    import tensorflow as tf

    from privfed.models.functional import cross_entropy

    weights, step = start.copy(), row.step or len(x)
    for _ in range(row.epochs):
        for first in range(0, len(x), step):
            variables = [tf.constant(part) for part in model.unflatten(weights)]
            with tf.GradientTape() as tape:
                tape.watch(variables)
                batch = slice(first, first + step)
                loss = cross_entropy(model.logits(variables, tf.constant(x[batch])), tf.constant(y[batch]))
            gradient = model.flatten([part.numpy() for part in tape.gradient(loss, variables)])
            weights = weights - np.float32(LEARNING_RATE) * gradient
    return (weights - start).astype(np.float64)


@dataclass(frozen=True)
class Outcome:
    """One target: whether it succeeded, the lowest PSNR of its images, and seconds on clock and CPU.

    ``verified`` is whether ``auto`` would call the answer verified; ``None`` for attacks that are not asked.
    """

    success: float
    psnr: float
    seconds: float
    cpu_seconds: float
    failure: str | None = None
    residual: float = float("nan")
    verified: bool | None = None


def attack_images(row: Row, model: Any, weights: Any, x: Any, y: Any, seed: int) -> Outcome:
    from attacks import GradientMatching, LocalTraining, attempt, create
    from attacks.auto import STEP_PROOF, is_verified, unexplained
    from attacks.base import Guess
    from attacks.published_matching import DLG, IDLG
    from attacks.scoring import score
    from privfed.transcript import Kind, Observation, Observer, Plan, View

    plan = Plan(LEARNING_RATE, row.epochs, row.step or row.batch, 1.0, row.clip, 0.0, None, "off")
    inputs = x.astype(np.float32) / np.float32(row.white)
    shares = [slice(i, None, row.clients) for i in range(row.clients)]
    vector = sum(local_update(row, model, weights, inputs[s], y[s]) for s in shares)
    if row.clip is not None:
        vector = vector * min(1.0, row.clip / float(np.linalg.norm(vector)))
    kind = Kind.SUM if row.clients > 1 else Kind.CLIENT_UPDATE
    seen = Observation(1, kind, weights, np.asarray(vector), float(row.clients), ())
    makers: dict[str, Callable[..., Any]] = {
        "gradient_matching": GradientMatching,
        "local_training": LocalTraining,
        "dlg": DLG,
        "idlg": IDLG,
    }
    attack = makers[row.attack](**row.settings) if row.attack in makers else create(row.attack)
    start = time.process_time()
    view = View(Observer.SERVER, plan, model, (seen,))
    found = attempt(attack, view, 0, np.random.default_rng(seed))
    cpu = time.process_time() - start
    if found.failure is not None:
        return Outcome(0.0, 0.0, found.seconds, cpu, found.failure)
    scores = score(found.images, found.labels, x / row.white, y)
    lowest = min(s.psnr for s in scores) if len(scores) == row.batch else 0.0
    success = sum(s.psnr >= row.psnr for s in scores) / row.batch if row.each else float(lowest >= row.psnr)
    verified = None
    if row.attack in STEP_PROOF:
        guess = Guess(found.images, found.labels, found.residual, found.evaluations)
        verified = is_verified(view, seen, row.attack, guess, unexplained(view, seen, guess)[0])
    return Outcome(success, lowest, found.seconds, cpu, None, found.residual, verified)


def public_examples(folder: Path, count: int) -> Any:
    """Of the training split: no target, and only for rows whose models are not trained on it."""
    from attacks import Auxiliary

    pixels, labels = images(folder, "train")
    picked = np.random.default_rng(0xA1).permuted(np.arange(len(labels)))[:count]
    return Auxiliary(pixels[picked].astype(np.float32) / np.float32(255), labels[picked])


def attack_labels(row: Row, model: Any, weights: Any, x: Any, y: Any, seed: int, auxiliary: Any = None) -> Outcome:
    from attacks import infer_label_counts, infer_labels

    update = local_update(row, model, weights, x.astype(np.float32) / np.float32(255), y)
    if row.clip is not None:
        update = update * min(1.0, row.clip / float(np.linalg.norm(update)))
    gradient, scale = -update / LEARNING_RATE, (1.0, 1.0) if row.clip is None else (0.0, 1.0)
    start, cpu = time.perf_counter(), time.process_time()
    if row.settings.get("rule") == "llg":
        labels = infer_labels(model.unflatten(gradient)[model.output_bias], row.batch)
        counts = np.bincount(labels, minlength=model.classes)
    else:
        counts = infer_label_counts(model, weights, gradient, row.batch, auxiliary, scale=scale)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    right = float(np.minimum(counts, np.bincount(y, minlength=model.classes)).sum()) / row.batch
    return Outcome(right if row.partial else float(right == 1), float("nan"), seconds, cpu)


def run(row: Row, targets: int, data: Path, progress: bool, first: int = 0) -> dict[str, Any]:
    from privfed.models.zoo import ZOO

    pixels, labels = images(data)
    if row.halved:
        pixels = np.round(pixels.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)))
    side = 14 if row.halved else 28
    model = (ZOO | MODELS)[row.model]((side, side, 1), 10, **row.options)
    chosen = np.random.default_rng(0x5EED).permuted(np.arange(len(labels)))
    attack: Callable[..., Outcome] = attack_labels if row.attack == "labels" else attack_images
    if "auxiliary" in row.settings:
        attack = partial(attack_labels, auxiliary=public_examples(data, row.settings["auxiliary"]))
    starts = [trained(row, model, draw, data) for draw in range(DRAWS)]
    outcomes: list[Outcome] = []
    for target in [first] * row.warmed + list(range(first, first + targets)):
        picked = np.take(chosen, np.arange(row.batch) + target * row.batch, mode="wrap")
        weights = starts[target % DRAWS]
        outcomes.append(attack(row, model, weights, pixels[picked], labels[picked], target + 1))
        if progress:
            print(f"\r{len(outcomes) - row.warmed} of {targets}", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return figures(row, outcomes[row.warmed :], first)


def figures(row: Row, outcomes: list[Outcome], first: int) -> dict[str, Any]:
    rate = statistics.fmean(o.success for o in outcomes)
    seconds = statistics.median(o.seconds for o in outcomes)
    psnr = [o.psnr for o in outcomes if o.psnr == o.psnr]
    verified = [o.verified for o in outcomes if o.verified is not None]
    failures: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.failure:
            failures[outcome.failure] = failures.get(outcome.failure, 0) + 1
    return {
        **asdict(row),
        "targets": len(outcomes),
        "first": first,
        "draws": min(DRAWS, len(outcomes)),
        "success_rate": rate,
        "psnr_median": statistics.median(psnr) if psnr else None,
        "psnr_lowest": min(psnr) if psnr else None,
        "seconds_median": seconds,
        "seconds_longest": max(o.seconds for o in outcomes),
        "cpu_seconds_median": statistics.median(o.cpu_seconds for o in outcomes),
        "cpu_seconds_longest": max(o.cpu_seconds for o in outcomes),
        "wrong": [
            {
                "target": first + i,
                "psnr": o.psnr,
                "residual": o.residual,
                "verified": o.verified,
                "seconds": o.seconds,
            }
            for i, o in enumerate(outcomes)
            if o.success < 1 and not o.failure
        ],
        "verified_rate": statistics.fmean(verified) if verified else None,
        "failures": failures,
        "required": {"psnr": row.psnr, "success_rate": row.rate, "seconds_median": row.seconds},
        "reached": rate >= row.rate and (row.seconds is None or seconds <= row.seconds),
    }


def measure(name: str, targets: int | None, data: Path, progress: bool, first: int = 0) -> dict[str, Any]:
    if name in attacks_text.ROWS:
        text = attacks_text.ROWS[name]
        return attacks_text.run(text, targets or text.targets, DRAWS, LEARNING_RATE)
    if name in attacks_active.ROWS:
        active = attacks_active.ROWS[name]
        return attacks_active.run(active, targets or active.targets, data, images(data), DRAWS, LEARNING_RATE)
    if name in attacks_membership.ROWS:
        membership = attacks_membership.ROWS[name]
        return attacks_membership.run(membership, targets or membership.targets, data)
    return run(ROWS[name], targets or ROWS[name].targets, data, progress, first)


def side_by_side(peers: list[str], batch: int, targets: int, data: Path, **options: Any) -> dict[str, Any]:
    """The attacks on LeNet's gradients, PrivFed's and the peers', on the same targets; options of ``compare``."""
    from privfed.models.zoo import ZOO

    pixels, labels = images(data)
    model, row = ZOO["lenet"]((28, 28, 1), 10), matching(batch, 0.0)
    chosen = np.random.default_rng(0x5EED).permuted(np.arange(len(labels)))
    weights = np.stack([trained(row, model, draw, data) for draw in range(min(DRAWS, targets))])
    picked = np.take(chosen, np.arange(targets * batch), mode="wrap").reshape(targets, batch)
    gradients = [
        -local_update(row, model, weights[i % DRAWS], pixels[p].astype(np.float32) / np.float32(255), labels[p])
        / LEARNING_RATE
        for i, p in enumerate(picked)
    ]
    return attacks_peers.compare(
        peers, weights, np.stack(gradients), pixels[picked] / 255, labels[picked], **options
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, *attacks_text.ROWS, *attacks_active.ROWS, *attacks_membership.ROWS]
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", choices=[*names, "all"], nargs="+", help="One or several; or all.")
    what.add_argument("--peers", choices=[*attacks_peers.PEERS, "none"], help="Side by side on LeNet's gradients.")
    parser.add_argument("--batch", type=int, default=1, help="Images behind a gradient, side by side.")
    parser.add_argument("--targets", type=int, help="Observations attacked; the row's own number by default.")
    parser.add_argument(
        "--first", type=int, default=0, help="Number of the first target, of rows on images: others are others."
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=attacks_peers.LIMIT_SECONDS,
        help="Seconds that all attacks get together, side by side.",
    )
    parser.add_argument("--data", type=Path, default=DATA, help="Folder with the idx files of Fashion-MNIST.")
    parser.add_argument("--json", action="store_true", help="Print figures as JSON alone.")
    parser.add_argument("--markdown", type=Path, help="Also put the table of --peers into this file.")
    arguments = parser.parse_args()
    if arguments.targets is not None and arguments.targets < 1:
        parser.error("--targets must be at least 1")
    if arguments.first < 0:
        parser.error("--first must be at least 0")
    if not (arguments.data / "t10k-images-idx3-ubyte.gz").is_file():
        parser.error(f"--data {arguments.data}: t10k-images-idx3-ubyte.gz is not there")
    if not arguments.limit > 0:
        parser.error("--limit must be above 0")
    if arguments.batch < 1:
        parser.error("--batch must be at least 1")
    if arguments.peers:
        peers = [] if arguments.peers == "none" else [arguments.peers]

        def keep(result: dict[str, Any]) -> None:
            if arguments.markdown:
                title = f"Attacks on gradients, batches of {arguments.batch}"
                table.replace_section(arguments.markdown, title, attacks_peers.markdown(result))

        targets = arguments.targets or 2 * DRAWS
        options = {"limit_seconds": arguments.limit, "finished": keep}
        compared = side_by_side(peers, arguments.batch, targets, arguments.data, **options)
        print(json.dumps(compared, indent=2) if arguments.json else attacks_peers.markdown(compared))
        return
    results = {}
    chosen = names if "all" in arguments.row else arguments.row
    for name in chosen:
        result = {
            "row": name,
            **measure(name, arguments.targets, arguments.data, not arguments.json, arguments.first),
        }
        results[name] = result
        if name in attacks_membership.ROWS:
            if not arguments.json:
                print(attacks_membership.table(result))
            continue
        # Whoever waits for several rows sees each as it comes.
        print(
            f"{name}: {result['success_rate']:.1%} of {result['targets']}, PSNR {result.get('psnr_median')}, "
            f"{result['seconds_median']:.3f} s{'' if result['reached'] else ', NOT REACHED'}",
            file=sys.stderr if arguments.json else sys.stdout,
            flush=True,
        )
    if arguments.json:
        print(json.dumps(results[chosen[0]] if len(chosen) == 1 else results, indent=2))


if __name__ == "__main__":
    main()
