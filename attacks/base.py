"""What an attack is: a class with a name, a threat model and ``invert``, which never sees the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfed.transcript import Observer, View

Image = NDArray[np.float64]
"""One example ``[*input_shape]`` in [0, 1]."""
Images = NDArray[np.float64]
"""Several examples ``[k, *input_shape]`` in [0, 1]."""


class NotInvertible(Exception):  # noqa: N818 - an honest answer of an attack, not an error of the program
    """The attack cannot work on this model or observation; the message says why, in words for the report."""


@dataclass(frozen=True)
class ThreatModel:
    """Who mounts the attack, knowing what, assuming what.

    Attributes:
        observers: Those whose views the attack can work on.
        knowledge: What it uses beside the observed vector.
        assumptions: What must hold for it to succeed.
        inputs: What the attacked model may be of: ``images``, ``tokens``.
    """

    observers: tuple[Observer, ...]
    knowledge: tuple[str, ...]
    assumptions: tuple[str, ...]
    inputs: tuple[str, ...] = ("images",)


@dataclass(frozen=True)
class Attempt:
    """What became of one attack of several that were tried on the same observation.

    Attributes:
        attack: Its name.
        failure: Why it gave nothing that can be relied on, in words; ``None`` for the one that verified itself.
        seconds: Wall time.
        evaluations: How many gradients of the model it took.
    """

    attack: str
    failure: str | None
    seconds: float
    evaluations: int


@dataclass(frozen=True, eq=False)
class Guess:
    """What an attack believes to be behind an observation.

    Attributes:
        images: ``[k, *input_shape]`` in [0, 1], the most plausible first; of text, token ids over 255.
        labels: One class number per image, ``[k]``, or of all examples, in no order, from an attack that gives no
            images; ``None`` when the attack does not say.
        residual: The attack's own check, with no truth in it: 0 when the guess explains the observation
            completely, about 1 when it explains nothing.
        evaluations: How many gradients of the model it took.
        tokens: Of text, the ids that occur, rising, each once; an attack that says this much may give no images.
        fired: Of several attacks tried, the one that the guess is from.
        assumed: What that one assumes; of one attack, what it assumes of this view.
        verified: Whether the guess explains the observation, by its gradients taken again; ``None``: not asked.
        tried: All that were tried, in order.
    """

    images: Images
    labels: NDArray[np.int64] | None
    residual: float
    evaluations: int
    tokens: NDArray[np.int64] | None = None
    fired: str | None = None
    assumed: tuple[str, ...] = ()
    verified: bool | None = None
    tried: tuple[Attempt, ...] = ()


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came of one attack on one observation: a guess, or a reason why there is none.

    Attributes:
        attack: Name of the attack.
        observation: Index in the view's observations.
        images: ``[k, *input_shape]`` float64 in [0, 1], the most plausible first; ``k = 0`` after a failure, and
            when all there is are ``tokens`` or ``labels``.
        labels: As in ``Guess``.
        residual: As in ``Guess``; NaN after a failure.
        evaluations: How many gradients of the model it took.
        seconds: Wall time.
        failure: Why there is no guess, in words; ``None`` when there is one.
        tokens: As in ``Guess``, like all below.
        fired: Which attack the guess is from, when several were tried.
        assumed: What that one assumes.
        verified: Whether the guess explains the observation.
        tried: All that were tried.
    """

    attack: str
    observation: int
    images: Images
    labels: NDArray[np.int64] | None
    residual: float
    evaluations: int
    seconds: float
    failure: str | None = None
    tokens: NDArray[np.int64] | None = None
    fired: str | None = None
    assumed: tuple[str, ...] = ()
    verified: bool | None = None
    tried: tuple[Attempt, ...] = ()


class Attack(Protocol):
    """One way to get examples out of an observation."""

    @property
    def name(self) -> str:
        """As in the registry and the report."""
        ...

    @property
    def threat(self) -> ThreatModel:
        """Who can do this, and what it takes."""
        ...

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """Guess the examples behind ``view.observations[index]``, which ``attempt`` has found fit for use.

        Raises:
            NotInvertible: There is nothing to be got this way; the message says why.
        """
        ...


def attempt(attack: Attack, view: View, index: int, rng: np.random.Generator) -> Reconstruction:
    """Run ``attack`` on one observation, time it, and hold it to its contract.

    Unusable observations (zero, not finite, of the wrong length, moved by control variates) and models of other
    inputs than the attack is made for are turned away here for all attacks alike.

    Raises:
        ValueError: The attack broke its contract: shape, range or NaN in its guess.
    """
    start = time.perf_counter()
    try:
        _check_usable(view, index)
        _check_inputs(attack, view)
        guess = attack.invert(view, index, rng)
    except NotInvertible as reason:
        none = np.zeros((0, *view.model.input_shape))
        return Reconstruction(
            attack.name, index, none, None, float("nan"), 0, time.perf_counter() - start, str(reason)
        )
    seconds = time.perf_counter() - start
    _check_guess(attack.name, view, guess)
    return Reconstruction(
        attack.name,
        index,
        guess.images,
        guess.labels,
        guess.residual,
        guess.evaluations,
        seconds,
        tokens=guess.tokens,
        fired=guess.fired,
        assumed=guess.assumed,
        verified=guess.verified,
        tried=guess.tried,
    )


def _check_usable(view: View, index: int) -> None:
    observation, dimension = view.observations[index], view.model.dimension
    vectors: dict[str, NDArray[Any]] = {"vector": observation.vector, "model": observation.weights}
    for what, values in vectors.items():
        if values.shape != (dimension,):
            raise NotInvertible(
                f"the observed {what} has shape {values.shape}, model {view.model.name} has {dimension} weights"
            )
        if not np.isfinite(values).all():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise NotInvertible(f"{bad} of {dimension} entries of the observed {what} are not finite")
    if observation.corrected:
        raise NotInvertible(
            "the update is none of plain SGD: SCAFFOLD's control variates moved its steps, and this attack does "
            "not take them out. Who keeps the clients' control variates can, so this is no sign of protection"
        )
    if not observation.vector.any():
        raise NotInvertible("the observed vector is zero: it carries nothing about any example")


def _check_inputs(attack: Attack, view: View) -> None:
    if view.model.embedding is not None and "tokens" not in attack.threat.inputs:
        raise NotInvertible(f"the inputs of model {view.model.name} are tokens, and this attack is on images")


def _check_guess(name: str, view: View, guess: Guess) -> None:
    images, labels = guess.images, guess.labels
    if (
        images.ndim == 0
        or (len(images) == 0 and guess.tokens is None and (labels is None or labels.shape[:1] == (0,)))
        or images.shape[1:] != view.model.input_shape
    ):
        raise ValueError(
            f"attack {name}: images have shape {images.shape}, needed: [k, *{view.model.input_shape}], k ≥ 1"
        )
    if images.size and not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"attack {name}: pixels must be finite and within [0, 1], got {images.min()} to {images.max()}"
        )
    if labels is not None and (labels.ndim != 1 or len(images) not in (0, len(labels))):
        raise ValueError(f"attack {name}: labels have shape {labels.shape}, {len(images)} images need as many")
    if not np.isfinite(guess.residual):
        raise ValueError(f"attack {name}: the residual is {guess.residual}, a finite number is needed")
