"""What trials on one population spend together, read off the ledgers of all that ever ran in a sweep's folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from privfed.audit.evidence import Count, Part, PrivacyLoss
from privfed.config import Settings
from privfed.errors import PrivFedError
from privfed.privacy.accounting import Guarantee, ObservedRelease, by_observer
from privfed.privacy.errors import LedgerError, PrivacyError
from privfed.privacy.ledger_report import spent_releases
from privfed.report.numbers import epsilon
from privfed.rundir import LEDGER, SETTINGS
from privfed.settings_file import load_settings
from privfed.sweep.trial import OBSERVERS, TrialResult, losses_of

ADVICE = (
    "Choosing by held-out accuracy on real data spends the ε of all trials together, not that of the chosen one "
    "alone: the choice depends on every trial."
)


class Composition(Part):
    """What several trials spend together."""

    trials: Count
    """Runs with a ledger: finished, failed or killed, of this sweep or left in its folder by an earlier one."""
    privacy: dict[str, PrivacyLoss]
    """By observer, at one δ in all; empty when no ε can be stated."""
    why: str = ""
    """Why ε is infinite, or cannot be stated."""


class SearchCost(Part):
    """The privacy that the sweep itself spends."""

    together: Composition
    protected: Composition | None
    """Without the trials that have no mechanism; ``None`` when there are none of those, or of the others."""
    selected: TrialResult | None
    """The trial that was chosen; its ε are its own alone."""
    statement: str


@dataclass(frozen=True)
class Spent:
    """One run's part.

    Attributes:
        settings: Of the run.
        releases: What counts; ``None`` when its ledger cannot be read.
        secure: Whether its noise came from the operating system.
    """

    settings: Settings
    releases: list[list[ObservedRelease]] | None
    secure: bool

    @property
    def protected(self) -> bool:
        """Whether any privacy is claimed."""
        return self.settings.privacy.mechanism != "none"


def search_cost(out: Path, chosen: TrialResult | None) -> SearchCost:
    """What everything below ``out`` spends, and what the ``chosen`` trial spends by itself."""
    spent = list(read_spent(out / "trials"))
    together = compose(spent)
    protected = [one for one in spent if one.protected]
    apart = compose(protected) if 0 < len(protected) < len(spent) else None
    return SearchCost(
        together=together,
        protected=apart,
        selected=chosen,
        statement=_statement(together, apart, chosen),
    )


def read_spent(trials: Path) -> Iterable[Spent]:
    """The part of every run in the folder that has begun."""
    for folder in sorted(trials.iterdir()) if trials.is_dir() else ():
        if not (folder / LEDGER).exists():
            continue  # ended before anything was spent
        try:
            settings = load_settings(folder / SETTINGS)
        except PrivFedError:
            yield Spent(Settings(), None, secure=False)
            continue
        try:
            header, releases = spent_releases(folder / LEDGER)
        except LedgerError:
            yield Spent(settings, None, secure=False)
        else:
            yield Spent(settings, releases, header is not None and header.secure)


def compose(spent: Sequence[Spent]) -> Composition:
    """All runs as one mechanism on one population, at the smallest δ of any of them: it is not multiplied."""
    if not spent:
        return Composition(trials=0, privacy={}, why="nothing was trained")
    if any(one.settings.data != spent[0].settings.data for one in spent):
        why = "the trials' data settings differ, so that a client is not the same in all of them"
        return Composition(trials=len(spent), privacy={}, why=why)
    delta = min(one.settings.privacy.delta for one in spent)
    reference = next((one.settings for one in spent if one.protected), spent[0].settings)
    try:
        guarantees, why = _together(spent, delta)
    except PrivacyError as error:
        return Composition(trials=len(spent), privacy={}, why=str(error))
    reference = reference.model_copy(
        update={"privacy": reference.privacy.model_copy(update={"delta": delta})},
    )
    as_json = {observer: guarantee.as_json() for observer, guarantee in guarantees.items()}
    return Composition(trials=len(spent), privacy=losses_of(reference, as_json), why=why)


def _together(spent: Sequence[Spent], delta: float) -> tuple[dict[str, Guarantee], str]:
    """By observer, and why nobody is protected when nobody is."""
    if any(one.releases is None for one in spent):
        return {}, "a trial's ledger cannot be read"
    bare = sum(not one.protected for one in spent)
    if bare:
        return (
            {},
            f"{bare} of the trials {'has' if bare == 1 else 'have'} no mechanism, so that nothing bounds them",
        )
    seeds = [one.settings.training.seed for one in spent if not one.secure]
    if len(set(seeds)) < len(seeds):
        return {}, "trials share a seed, and with it their noise, which falls out of the difference of their sums"
    every = [release for one in spent for release in one.releases or ()]
    try:
        return by_observer(every, delta), ""
    except PrivacyError:
        return _sum_of_each(spent, delta), "by basic composition: no accountant composes trials of such kinds"


def _sum_of_each(spent: Sequence[Spent], delta: float) -> dict[str, Guarantee]:
    """Basic composition: the sum of the ε of each trial, at its share of δ.

    Raises:
        PrivacyError: The trials' neighbouring relations differ.
    """
    parts = [by_observer(one.releases or (), delta / len(spent)) for one in spent]
    found = {}
    for observer in frozenset.intersection(*(frozenset(part) for part in parts)):
        each = [part[observer] for part in parts]
        if len({g.neighbouring for g in each}) > 1:
            raise PrivacyError("the trials' neighbouring relations differ, so that their ε do not add up")
        found[observer] = Guarantee(
            sum(g.epsilon for g in each),
            delta,
            each[0].unit,
            each[0].neighbouring,
            " and ".join(dict.fromkeys(g.sampling for g in each)),
            "basic composition",
            sum(g.cross_check_epsilon for g in each),
            "basic composition",
            sum(g.rounds for g in each),
            None,
        )
    return found


def select(results: Sequence[TrialResult]) -> TrialResult | None:
    """The most accurate on held-out examples: of those with a finite ε for anybody, if there are any."""
    scored = [result for result in results if result.test_accuracy is not None]
    finite = [r for r in scored if any(math.isfinite(loss.epsilon) for loss in r.privacy.values())]
    return max(finite or scored, key=lambda result: result.test_accuracy or 0.0, default=None)


def _statement(together: Composition, apart: Composition | None, chosen: TrialResult | None) -> str:
    said = [_of_all(f"All {_runs(together.trials)} together", together)]
    if apart is not None:
        said.append(_of_all(f"The {_runs(apart.trials)} with a mechanism together", apart))
    if chosen is not None:
        said.append(f"Trial {chosen.id} alone: {bounds(chosen.privacy)}.")
    return " ".join([*said, ADVICE])


def _of_all(who: str, part: Composition) -> str:
    if not part.privacy:
        return f"{who}: no ε can be stated ({part.why})."
    return f"{who}: {bounds(part.privacy)}{f' ({part.why})' if part.why else ''}."


def _runs(number: int) -> str:
    return f"{number} trial{'' if number == 1 else 's'}"


def bounds(losses: dict[str, PrivacyLoss]) -> str:
    """ε for each group of observers that shares it, with all that it depends on."""
    groups: dict[PrivacyLoss, list[str]] = {}
    for observer in OBSERVERS:
        groups.setdefault(losses[observer], []).append(observer)
    parts = []
    for loss, observers in groups.items():
        against = ", ".join(observers)
        if math.isinf(loss.epsilon):
            parts.append(f"ε = ∞ against {against}")
        else:
            parts.append(
                f"ε ≤ {epsilon(loss.epsilon)} at δ = {loss.delta:g} in all against {against} (unit: {loss.unit}; "
                f"neighbours: {loss.neighbouring}; sampling: {loss.sampling})"
            )
    return "; ".join(sorted(parts, key=lambda part: part.startswith("ε = ∞")))
