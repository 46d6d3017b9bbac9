"""How ε depends on assumptions, rounds and δ; and the trade-off of a sweep beside it."""

from __future__ import annotations

import math
from pathlib import Path

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, terms_of
from privfed.errors import PrivFedError
from privfed.privacy.accounting import by_observer, marks
from privfed.privacy.assumptions import under_assumptions
from privfed.privacy.errors import PrivacyError
from privfed.privacy.ledger_report import spent_releases
from privfed.sweep.cost import SearchCost
from privfed.sweep.record import SWEEP_JSON, in_words, read_sweep
from privfed.sweep.statistics import summaries
from privfed.sweep.trial import TrialResult
from privfed.sweep.tune import TUNE_JSON, read_tune

OBSERVER = "release"
DELTAS = tuple(10.0**-power for power in range(3, 13))
POINTS = 16


def accounting_of(m: Material) -> ev.Accounting | None:
    """For whoever sees the released model; ``None`` where nothing is promised."""
    terms = terms_of(m)
    if not math.isfinite(terms["epsilon"]):
        return None
    return ev.Accounting(
        **{key: terms[key] for key in ("epsilon", "delta", "unit", "neighbouring", "sampling")},
        observer=OBSERVER,
        assumptions=tuple(_assumptions(m)),
        by_rounds=tuple(_by_rounds(m)),
        by_delta=tuple(_by_delta(m)),
    )


def _assumptions(m: Material) -> list[ev.AssumptionEvidence]:
    """Of central Gaussian noise alone: the other mechanisms fit one way to draw cohorts."""
    e, terms = m.experiment, terms_of(m)
    plan, noise = e.privacy_plan, terms["noise_multiplier"]
    if plan is None or plan.kind not in ("gaussian", "adaptive") or not noise or terms["unit"] != "client":
        return []
    rows = under_assumptions(
        noise, e.sampling, terms["rounds"], terms["delta"], e.population.clients, plan.expected_cohort
    )
    return [
        ev.AssumptionEvidence(
            sampling=row.sampling,
            neighbouring=row.neighbouring,
            amplified=row.amplified,
            pld=row.pld,
            rdp=row.rdp,
            standing="claimed" if row.met else "holds" if row.weaker else "does not apply",
        )
        for row in rows
    ]


def _by_rounds(m: Material) -> list[ev.EpsilonAt]:
    """As planned: twice as far as the run went, where the mechanism can go on."""
    e, delta = m.experiment, terms_of(m)["delta"]
    rounds = len(m.result.reports)
    found = []
    for number in marks(rounds if e.mechanism.whole_run else 2 * rounds, POINTS):
        try:
            planned = e.guarantees(number).get(OBSERVER)
        except PrivacyError:  # more rounds than its cohorts or its ring allow
            break
        if planned is not None:
            found.append(ev.EpsilonAt(rounds=number, delta=delta, epsilon=planned.epsilon))
    return found


def _by_delta(m: Material) -> list[ev.EpsilonAt]:
    """From the ledger."""
    header, spent = spent_releases(m.folder.ledger)
    unit, own = header.unit if header else None, terms_of(m)["delta"]
    found = []
    for delta in sorted({*DELTAS, own}, reverse=True):
        guarantee = by_observer(spent, delta, unit).get(OBSERVER)
        if guarantee is not None:
            rounds = len(m.result.reports)
            found.append(ev.EpsilonAt(rounds=rounds, delta=delta, epsilon=guarantee.epsilon))
    return found


def read_search(folder: Path) -> tuple[str, tuple[TrialResult, ...], SearchCost, dict[str, object]]:
    """Name, trials, cost and settings of a sweep or of a tuning in ``folder``.

    Raises:
        PrivFedError: It holds neither, or one that cannot be read.
    """
    if (folder / SWEEP_JSON).is_file():
        sweep = read_sweep(folder / SWEEP_JSON)
        return sweep.name, sweep.trials, sweep.cost, dict(sweep.settings)
    if (folder / TUNE_JSON).is_file():
        tune = read_tune(folder / TUNE_JSON)
        return tune.name, tuple(searched.trial for searched in tune.trials), tune.cost, dict(tune.settings)
    raise PrivFedError(
        f"holds neither {SWEEP_JSON} nor {TUNE_JSON}",
        where=f"--sweep {folder}",
        remedy="Name the folder of a finished `privfed sweep` or `privfed tune`",
    )


def sweep_of(m: Material) -> ev.SweepEvidence | None:
    """The curve and the cost of the sweep that was named; ``None`` where none was."""
    if m.sweep is None:
        return None
    name, trials, cost, settings = read_search(m.sweep)
    own = m.experiment.settings.model_dump(mode="json")
    loss = cost.together.privacy.get(OBSERVER)
    terms = terms_of(m)
    return ev.SweepEvidence(
        epsilon=math.inf if loss is None else loss.epsilon,
        delta=terms["delta"] if loss is None else loss.delta,
        unit=terms["unit"] if loss is None else loss.unit,
        neighbouring=terms["neighbouring"] if loss is None else loss.neighbouring,
        sampling=terms["sampling"] if loss is None else loss.sampling,
        name=name,
        observer=OBSERVER,
        points=tuple(
            ev.SweepPoint(
                label=in_words(summary.values) or "as configured",
                epsilon=summary.epsilon.get(OBSERVER, math.inf),
                accuracy=summary.accuracy.value,
                low=None
                if summary.accuracy.half_width is None
                else summary.accuracy.value - summary.accuracy.half_width,
                high=None
                if summary.accuracy.half_width is None
                else summary.accuracy.value + summary.accuracy.half_width,
                trainings=summary.accuracy.n,
            )
            for summary in summaries(trials)
        ),
        trials=cost.together.trials,
        same_data=settings.get("data") == own["data"],
        statement=cost.statement,
    )
