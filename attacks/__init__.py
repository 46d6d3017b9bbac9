"""Attacks on what an observer saw of a training, and the scoring of what they get.

A new attack is one file with one class (see ``attacks.base.Attack``), one line in ``ATTACKS`` and one line in
the contract suite, ``tests/attacks/test_attacks_contract.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from attacks.auto import Auto
from attacks.base import Attack, NotInvertible, Reconstruction, ThreatModel, attempt
from attacks.dager import Dager
from attacks.dense_layer import DenseLayer
from attacks.feature_inversion import FeatureInversion
from attacks.gradient_matching import GradientMatching
from attacks.imprint import Imprint
from attacks.inconsistency import ModelInconsistency
from attacks.label_counts import infer_label_counts
from attacks.label_inference import LabelInference
from attacks.labels import infer_labels
from attacks.local_training import LocalTraining
from attacks.recursive_analytic import RecursiveAnalytic
from attacks.runner import AttackOutcome, run_attacks
from attacks.scoring import Scores
from attacks.sparse_decomposition import SparseDecomposition
from attacks.tokens import Tokens
from privfed.auxiliary import Auxiliary

ATTACKS: dict[str, Callable[[int], Attack]] = {
    "auto": Auto,
    "dense_layer": lambda iterations: DenseLayer(),
    "sparse_decomposition": lambda iterations: SparseDecomposition(),
    "recursive_analytic": lambda iterations: RecursiveAnalytic(),
    "feature_inversion": lambda iterations: FeatureInversion(),
    "tokens": lambda iterations: Tokens(),
    "label_inference": lambda iterations: LabelInference(),
    "dager": lambda iterations: Dager(),
    "imprint": lambda iterations: Imprint(),
    "model_inconsistency": lambda iterations: ModelInconsistency(),
    "local_training": lambda iterations: LocalTraining(iterations),
    "gradient_matching": lambda iterations: GradientMatching(iterations),
}
"""From an attack's name to its builder: ``iterations -> Attack``, for those that search within a budget."""


def create(name: str, *, iterations: int = 300) -> Attack:
    """The attack called ``name``.

    Args:
        name: A key of ``ATTACKS``.
        iterations: Budget per observation of the attacks that search; the others do not use it.

    Raises:
        ValueError: No attack has this name.
    """
    if name not in ATTACKS:
        raise ValueError(f"there is no attack {name!r}: choose from {', '.join(sorted(ATTACKS))}")
    return ATTACKS[name](iterations)


__all__ = [
    "ATTACKS",
    "Attack",
    "AttackOutcome",
    "Auto",
    "Auxiliary",
    "Dager",
    "DenseLayer",
    "FeatureInversion",
    "GradientMatching",
    "Imprint",
    "LabelInference",
    "LocalTraining",
    "ModelInconsistency",
    "NotInvertible",
    "Reconstruction",
    "RecursiveAnalytic",
    "Scores",
    "SparseDecomposition",
    "ThreatModel",
    "Tokens",
    "attempt",
    "create",
    "infer_label_counts",
    "infer_labels",
    "run_attacks",
]
