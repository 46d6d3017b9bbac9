"""The dispatcher: the attacks on recorded rounds, cheapest first, until one verifies itself.

A guess is verified by taking the gradients of its examples again: the observed vector has to be a combination of
them with weights that are not negative (Lawson & Hanson 1974, chapter 23), which is what one local step on them,
clipping, and sums over clients amount to. Where several local steps have bent the gradients, attacks that do not
depend on their number may vouch for themselves. There is no truth in either.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from attacks.base import Attack, Attempt, Guess, NotInvertible, ThreatModel
from attacks.dager import Dager
from attacks.dense_layer import DenseLayer
from attacks.example_gradient import example_gradient
from attacks.feature_inversion import FeatureInversion
from attacks.gradient import estimate_gradient, noise_variance
from attacks.gradient_matching import GradientMatching
from attacks.imprint import Imprint
from attacks.inconsistency import ModelInconsistency
from attacks.local_training import LocalTraining
from attacks.recursive_analytic import RecursiveAnalytic
from attacks.sparse_decomposition import SparseDecomposition
from attacks.tokens import Tokens
from privfed.models.functional import Model
from privfed.transcript import Kind, Observation, Observer, Plan, View

EXPLAINED = 1e-3
"""Share of the vector's length that verified examples may leave over, beside what the known noise explains."""
TRUSTED_NOISE = 0.1
"""Share of noise in the vector's length above which nothing is verified: it would explain too much."""
STEP_PROOF = ("dense_layer", "sparse_decomposition")
"""Attacks whose own check holds after several local steps as well."""
RANK = 1e-13
"""Eigenvalues of the gradients' products below this share of the largest are rounding."""
MOST_GRADIENTS = 256
"""Gradients taken to verify one guess."""
LARGEST_BATCH = 8
"""Images that gradient matching searches for at once."""
CRAFTED = "needs a model that the server crafted before the round; the recorded rounds are of the agreed model"


@dataclass(frozen=True)
class Auto:
    """Tries what suits the model and the observer, and says what became of each.

    Attributes:
        iterations: Budget of the gradient matching, which comes last.
    """

    iterations: int = 300

    name: ClassVar[str] = "auto"
    threat: ClassVar[ThreatModel] = ThreatModel(
        observers=tuple(Observer),
        knowledge=("what the attacks that it tries use", "the noise in the vector"),
        assumptions=("those of the attack that fired",),
        inputs=("images", "tokens"),
    )

    def invert(self, view: View, index: int, rng: np.random.Generator) -> Guess:
        """As ``Attack.invert``; every attack gets a stream of its own from ``rng``.

        Raises:
            NotInvertible: None of them came to a guess; the message has all their reasons.
        """
        seen = view.observations[index]
        tried: list[Attempt] = []
        best: tuple[float, Guess] | None = None
        evaluations, seeds = 0, rng.integers(2**63, size=16)
        for number, attack in enumerate(self.candidates(view.model, view.plan, seen.kind)):
            words = skipped(attack, view.observer, seen.kind)
            if words is not None:
                tried.append(Attempt(attack.name, words, 0.0, 0))
                continue
            start = time.perf_counter()
            try:
                guess = attack.invert(view, index, np.random.default_rng(int(seeds[number])))
            except NotInvertible as reason:
                tried.append(Attempt(attack.name, str(reason), time.perf_counter() - start, 0))
                continue
            left, taken = unexplained(view, seen, guess)
            verified = is_verified(view, seen, attack.name, guess, left)
            evaluations += guess.evaluations + taken
            doubt = None if verified else _doubt(guess, left)
            tried.append(Attempt(attack.name, doubt, time.perf_counter() - start, guess.evaluations + taken))
            found = replace(guess, residual=left, fired=attack.name, assumed=attack.threat.assumptions)
            if best is None or left < best[0]:
                best = (left, replace(found, verified=verified))
            if verified:
                best = (left, replace(found, verified=True))
                break
        if best is None:
            raise NotInvertible("; ".join(f"{one.attack}: {one.failure}" for one in tried))
        return replace(best[1], evaluations=evaluations, tried=tuple(tried))

    def candidates(self, model: Model, plan: Plan, kind: Kind) -> Sequence[Attack]:
        """What may suit such a vector, by cost."""
        if model.embedding is not None:
            # The search in [0, 1] has nothing to say about tokens.
            return Dager(), Tokens()
        batch, steps = plan.batch_size, plan.local_steps or plan.local_epochs
        matching: list[Attack] = [GradientMatching(self.iterations)]
        if kind is Kind.CLIENT_UPDATE and steps == 1 and 1 < batch <= LARGEST_BATCH:
            matching.append(GradientMatching(self.iterations, batch=batch))
        if steps > 1:
            matching.append(LocalTraining(self.iterations))
        exact = (DenseLayer(), RecursiveAnalytic(), SparseDecomposition(), FeatureInversion())
        return *exact, Imprint(), ModelInconsistency(), *matching


def skipped(attack: Attack, observer: Observer, kind: Kind) -> str | None:
    """Why an attack is not even tried, in words."""
    if isinstance(attack, Imprint | ModelInconsistency):
        return CRAFTED
    if observer not in attack.threat.observers:
        return f"is no attack of {observer.value}"
    if isinstance(attack, GradientMatching | LocalTraining) and kind is Kind.MASKED_UPLOAD:
        return "a search through gradients has nothing to match in a vector that its mask made uniform"
    return None


def is_verified(view: View, seen: Observation, attack: str, guess: Guess, left: float) -> bool:
    """Whether a guess explains the vector: by its gradients, or after several steps by the attack itself."""
    share = noise_variance(seen) ** 0.5
    if not len(guess.images) or share > TRUSTED_NOISE:
        return False
    if left <= EXPLAINED + 2 * share:
        return not _anything_goes(view.model, seen, guess)
    several_steps = (view.plan.local_steps or view.plan.local_epochs) > 1
    return several_steps and attack in STEP_PROOF and guess.residual <= EXPLAINED


def unexplained(view: View, seen: Observation, guess: Guess) -> tuple[float, int]:
    """Share of the vector's length that no combination of the examples' gradients gives, and gradients taken.

    Labels that the attack did not say are left open: each example may have any. A guess of tokens alone explains
    nothing in this sense.
    """
    count, classes = len(guess.images), view.model.classes
    if not count or (count if guess.labels is not None else count * classes) > MOST_GRADIENTS:
        return 1.0, 0
    if guess.labels is not None:
        pairs = list(zip(guess.images, guess.labels.tolist(), strict=True))
    else:
        pairs = [(image, label) for image in guess.images for label in range(classes)]
    gradient = example_gradient(view.model)
    weights = np.asarray(seen.weights, np.float64)
    columns = np.stack([gradient(weights, image[None], label).numpy() for image, label in pairs])
    lengths = np.linalg.norm(columns, axis=1)
    columns = columns[lengths > 0] / lengths[lengths > 0, None]
    if not len(columns) or not np.isfinite(columns).all():
        return 1.0, len(pairs)
    observed = estimate_gradient(seen, view.plan).vector
    observed = observed / np.linalg.norm(observed)
    # The same problem in as few rows as there are gradients. Alike ones leave no Cholesky factor: hence the roots.
    values, vectors = np.linalg.eigh(columns @ columns.T)
    roots = np.sqrt(np.maximum(values, RANK * values[-1]))
    shares, _ = nnls((vectors * roots).T, (vectors / roots).T @ (columns @ observed), maxiter=50 * len(columns))
    return float(np.linalg.norm(observed - columns.T @ shares)), len(pairs)


def _anything_goes(model: Model, seen: Observation, guess: Guess) -> bool:
    """Whether the negative of some image has the same gradient: where a network is dead, any image explains it."""
    if model.embedding is not None:
        return False  # a text has no negative, and other tokens move other rows
    gradient, weights = example_gradient(model), np.asarray(seen.weights, np.float64)
    labels = np.zeros(len(guess.images), np.int64) if guess.labels is None else guess.labels
    for image, label in zip(guess.images, labels.tolist(), strict=True):
        ours, other = (gradient(weights, x[None], label).numpy() for x in (image, 1 - image))
        if not np.linalg.norm(ours - other) > EXPLAINED * np.linalg.norm(ours):
            return True
    return False


def _doubt(guess: Guess, left: float) -> str:
    if not len(guess.images):
        return "says which tokens occur, but not in which order: not to be verified by gradients"
    return f"not verified: the gradients of its examples leave {left:.1%} of the vector unexplained"
