"""Run attacks on an observer's view, and only then look at the truth to score them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.base import Attack, Attempt, Image, Images, Reconstruction, attempt
from attacks.label_scoring import LabelScores, score_labels
from attacks.scoring import Scores, compare, nearest, score
from attacks.text_scoring import TextScores, score_text
from privfed.transcript import Kind, Observation, Observer, View

Truth = Callable[[Observation], tuple[Images, NDArray[np.int64]]]
"""From an observation to the examples behind it: ``images [n, *shape]`` in [0, 1] and ``labels [n]``."""
Progress = Callable[[int, int, "AttackOutcome"], None]
"""Called with how many outcomes there are, how many there will be, and the newest."""


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """One attack on one observation, scored.

    Attributes:
        observer: Whose view it was.
        kind: What was attacked.
        round: Its round.
        contributors: Weight of the clients' updates in it.
        attack: Name of the attack.
        failure: Why there is no reconstruction, in words; then all that follows from one is empty or ``None``.
        seconds: Wall time of the attack.
        evaluations: Gradients of the model that it took.
        residual: The attack's own check, 0 when its guess explains the observation; NaN after a failure.
        examples: How many true examples are behind the observation; ``None`` after a failure.
        best: Scores of the reconstruction with the highest PSNR.
        scores: Of all reconstructions, in the attack's order.
        trivial: PSNR of each trivial guess, each on the true example that it fits best, in dB.
        margin_db: PSNR of ``best`` less the best of ``trivial``: both chose from the same examples.
        target_margin_db: The same with the trivial guesses held to the example that ``best`` was matched to.
        original: That example ``[*shape]``.
        reconstruction: The image behind ``best`` ``[*shape]``.
        text: Of text; then all from ``best`` to ``reconstruction`` is empty or ``None``.
        labels: Of an attack that counts labels and gives no examples; then likewise.
        fired: Of several attacks tried (``attacks.auto``), the one that the guess is from.
        assumed: What that one assumes.
        verified: Whether its guess explains the observation, without the truth; ``None`` when not asked.
        tried: All that were tried, with their reasons.
        identified: Whether the true example is nearer to the reconstruction than any held-out one; ``None`` when
            there are none to choose from.
        fitted: By the name of a trivial guess, the true example that it fits best ``[*shape]``.
    """

    observer: Observer
    kind: Kind
    round: int
    contributors: float
    attack: str
    failure: str | None
    seconds: float
    evaluations: int
    residual: float
    examples: int | None = None
    best: Scores | None = None
    scores: tuple[Scores, ...] = ()
    trivial: dict[str, float] | None = None
    margin_db: float | None = None
    target_margin_db: float | None = None
    original: Image | None = None
    reconstruction: Image | None = None
    text: TextScores | None = None
    labels: LabelScores | None = None
    fired: str | None = None
    assumed: tuple[str, ...] = ()
    verified: bool | None = None
    tried: tuple[Attempt, ...] = ()
    identified: bool | None = None
    fitted: dict[str, Image] | None = None


def run_attacks(
    view: View,
    attacks: Sequence[Attack],
    truth: Truth,
    mean_image: Image,
    rng: np.random.Generator,
    *,
    max_observations: int = 5,
    progress: Progress | None = None,
    held_out: NDArray[Any] | None = None,
    public_labels: NDArray[Any] | None = None,
) -> list[AttackOutcome]:
    """Run every attack whose threat model names the view's observer on a selection of its observations.

    Args:
        view: What the observer saw.
        attacks: As built by ``attacks.create``.
        truth: Asked for an observation's examples only after all attacks on it have returned.
        mean_image: Of held-out data, ``[*shape]`` in [0, 1]; one of the trivial guesses.
        rng: Every attack on every observation gets a stream of its own, so none disturbs another.
        max_observations: How many are attacked, spread over kinds and rounds (``choose``).
        progress: Told about each outcome.
        held_out: Examples that nobody trained on, ``[m, *shape]`` in [0, 1]; the true one has to be nearer.
        public_labels: Theirs, ``[m]``, whose distribution is one of the trivial guesses of labels.

    Raises:
        RuntimeError: An attack broke on an observation: a fault of the program, never a result.
    """
    suited = [attack for attack in attacks if view.observer in attack.threat.observers]
    chosen = choose(view, max_observations)
    seed = int(rng.integers(2**63))
    outcomes: list[AttackOutcome] = []
    for index in chosen:
        found = [
            _run(attack, view, index, np.random.default_rng([seed, index, i])) for i, attack in enumerate(suited)
        ]
        examples = None
        for reconstruction in found:
            if reconstruction.failure is None and examples is None:
                examples = truth(view.observations[index])
            outcomes.append(_outcome(view, reconstruction, examples, mean_image, held_out, public_labels))
            if progress is not None:
                progress(len(outcomes), len(chosen) * len(suited), outcomes[-1])
    return outcomes


def _run(attack: Attack, view: View, index: int, rng: np.random.Generator) -> Reconstruction:
    try:
        return attempt(attack, view, index, rng)
    except Exception as error:
        seen = view.observations[index]
        raise RuntimeError(
            f"attack {attack.name} broke on observation {index} ({seen.kind.value}, round {seen.round}) of "
            f"{view.observer.value}: {error}"
        ) from error


def _outcome(
    view: View,
    found: Reconstruction,
    examples: tuple[Images, NDArray[np.int64]] | None,
    mean_image: Image,
    held_out: NDArray[Any] | None,
    public_labels: NDArray[Any] | None,
) -> AttackOutcome:
    seen = view.observations[found.observation]
    who = (view.observer, seen.kind, seen.round, seen.contributors, found.attack)
    cost = (found.failure, found.seconds, found.evaluations, found.residual)
    if found.failure is not None or examples is None:
        return AttackOutcome(*who, *cost)
    images = np.asarray(examples[0], np.float64)
    how: dict[str, Any] = {
        "fired": found.fired,
        "assumed": found.assumed,
        "verified": found.verified,
        "tried": found.tried,
    }
    if view.model.embedding is not None:
        text = score_text(found.images, found.tokens, images)
        return AttackOutcome(*who, *cost, len(images), text=text, **how)
    if not len(found.images) and found.labels is not None:
        labels = score_labels(found.labels, examples[1], view.model.classes, public_labels)
        return AttackOutcome(*who, *cost, len(images), labels=labels, **how)
    scores = score(found.images, found.labels, images, examples[1])
    comparison = compare(scores, images, mean_image)
    best = scores[comparison.best]
    identified = None if held_out is None else nearest(found.images[comparison.best], best.mse, held_out)
    return AttackOutcome(
        *who,
        *cost,
        len(images),
        best,
        tuple(scores),
        comparison.trivial,
        comparison.margin_db,
        comparison.target_margin_db,
        images[best.target].copy(),
        found.images[comparison.best].copy(),
        identified=identified,
        fitted={name: images[index].copy() for name, index in comparison.fitted.items()},
        **how,
    )


def choose(view: View, count: int) -> list[int]:
    """Indices of at most ``count`` observations, spread over kinds and rounds; the same for the same view."""
    if count < 1:
        raise ValueError(f"max_observations is {count}: at least one observation has to be attacked")
    kinds: dict[Kind, dict[int, deque[int]]] = {}
    for index, seen in enumerate(view.observations):
        kinds.setdefault(seen.kind, {}).setdefault(seen.round, deque()).append(index)
    queues = [deque(_interleave([rounds[r] for r in sorted(rounds)])) for rounds in kinds.values()]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.popleft() for queue in queues if queue]
    return sorted(chosen[:count])


def _interleave(rounds: list[deque[int]]) -> list[int]:
    """One of each round in turn, the rounds in an order whose every beginning is spread out."""
    order, taken = [rounds[i] for i in _spread(len(rounds))], []
    while any(order):
        taken += [queue.popleft() for queue in order if queue]
    return taken


def _spread(count: int) -> list[int]:
    """The numbers below ``count``: the first, the last, then middles of what lies between."""
    order = [0, count - 1] if count > 1 else list(range(count))
    gaps = deque([(0, count - 1)])
    while gaps:
        low, high = gaps.popleft()
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order
