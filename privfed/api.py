"""Federated training from Python, in a notebook or a program.

::

    from privfed.api import load_population, train

    population = load_population("digits", clients=359)
    run = train(
        population,
        "softmax",
        training={"rounds": 40, "local_epochs": 5, "batch_size": 2, "learning_rate": 0.5},
        cohort={"sampling": "poisson", "rate": 0.15},
        privacy={"mechanism": "gaussian", "clip_norm": 0.5, "epsilon": 3, "delta": 1e-4},
    )
    run.metrics["test_accuracy"].plot()
    print(run)

The keyword tables are those of the settings file, with the same keys, defaults and refusals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfed.audit.evidence import AS_CONFIGURED
from privfed.composition import compose, load_population_of
from privfed.config import Settings
from privfed.console import Console
from privfed.data import Population
from privfed.experiment import Experiment
from privfed.exposure import attack_all, own_updates
from privfed.federated.training import TrainingResult
from privfed.privacy.accounting import Guarantee, statements
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import RunFolder
from privfed.runs import train_protected
from privfed.settings_file import resolve_settings
from privfed.transcript import Observer

if TYPE_CHECKING:
    import pandas

    from attacks import AttackOutcome
    from privfed.models.functional import Vector

__all__ = ["Population", "Run", "load_population", "train"]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished training.

    Attributes:
        experiment: The objects that the settings stand for.
        result: What the training left.
        guarantees: By observer; whoever is not named has ε = ∞. From the ledger when there is a folder.
    """

    experiment: Experiment
    result: TrainingResult
    guarantees: Mapping[str, Guarantee]

    def __repr__(self) -> str:
        final = self.result.final_evaluation
        score = f"test accuracy {final.accuracy:.4f}" if final else "not evaluated"
        rounds = len(self.result.reports)
        return "\n".join([f"{rounds} rounds, {score}", *statements(self.guarantees)])

    @property
    def weights(self) -> Vector:
        """The released model, ``[d]``."""
        return self.result.weights

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row a round, indexed by the round, as in ``metrics.jsonl``. None of it is noised."""
        import pandas

        rows = [report.as_json() for report in self.result.reports]
        return pandas.DataFrame(rows).set_index("round") if rows else pandas.DataFrame()

    def attack(self, observer: str = "server") -> list[AttackOutcome]:
        """Run the attacks of the settings on what ``observer`` saw of the recorded rounds."""
        seen = own_updates(self.experiment, self.result.transcript, AS_CONFIGURED, [Observer(observer)])
        return [exposure.outcome for exposure in attack_all(self.experiment, [seen], Console(quiet=True))]


def load_population(source: str = "digits", **data: Any) -> Population:
    """Read a dataset and spread it over clients; ``data`` are further keys of the settings' table ``[data]``."""
    return load_population_of(resolve_settings({"data": {"source": source, **data}}))


def train(
    population: Population,
    model: str | Mapping[str, Any] = "softmax",
    *,
    out: str | Path | None = None,
    quiet: bool = True,
    **tables: Mapping[str, Any] | str,
) -> Run:
    """Train ``model`` on ``population``.

    Args:
        population: Of any source.
        model: Its name, or the table ``[model]``.
        out: Folder for ledger, checkpoints and metrics; nothing is written without one.
        quiet: Whether progress stays unseen.
        tables: ``training``, ``cohort``, ``privacy``, ``secure_aggregation``, ``attacks``; ``executor``, ``name``.

    Raises:
        PrivFedError: A setting is unknown, out of range or contradicts another, or the data does not fit.
    """
    settings = _settings(population, {"name": model} if isinstance(model, str) else dict(model), tables)
    experiment = compose(settings, population)
    folder = RunFolder(Path(out), settings) if out is not None else None
    result = train_protected(experiment, folder, Console(quiet=quiet))
    spent = verify_ledger(folder.ledger).guarantees if folder else experiment.guarantees()
    return Run(experiment, result, spent)


def _settings(population: Population, model: dict[str, Any], tables: Mapping[str, Any]) -> Settings:
    taken: Sequence[str] = [name for name in ("data", "model") if name in tables]
    if taken:
        raise TypeError(f"{taken[0]} is given by an argument of its own")
    data = {"source": f"given:{population.name}:{population.fingerprint}", "clients": population.clients}
    return resolve_settings({"data": data, "model": model, **tables})
