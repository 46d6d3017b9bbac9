"""How the training went: accuracy, rounds, aggregation, and what its ledger says."""

from __future__ import annotations

import hashlib
import math

from privfed.audit import evidence as ev
from privfed.audit.assemble.material import Material, final_of, terms_of
from privfed.config import SecureAggregation as SecureAggregationSettings
from privfed.federated.aggregation import round_threshold
from privfed.federated.cohorts import abort_probability
from privfed.federated.training import TrainingResult, digest
from privfed.privacy.accounting import marks
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import TRANSCRIPT


def accuracy_of(m: Material) -> ev.Accuracy:
    """By round, as configured and without protection."""
    mine, base = final_of(m.result), final_of(m.baseline)
    return ev.Accuracy(
        protected=_points(m.result),
        unprotected=_points(m.baseline) if m.baseline else (),
        final_protected=mine,
        final_unprotected=base,
        gap=base - mine if base is not None and mine is not None else None,
    )


def _points(result: TrainingResult) -> tuple[ev.AccuracyPoint, ...]:
    return tuple(
        ev.AccuracyPoint(
            round=report.metrics.round,
            test_accuracy=report.evaluation.accuracy if report.evaluation else None,
            train_accuracy=report.metrics.train_accuracy,
            loss=_finite(report.evaluation.loss) if report.evaluation else None,
        )
        for report in result.reports
    )


def rounds_of(m: Material) -> list[ev.RoundEvidence]:
    """One entry a round, in order."""
    spent = _spent_by_round(m)
    return [
        ev.RoundEvidence(
            round=x.round,
            cohort=x.cohort,
            survivors=x.survivors,
            dropped=x.cohort - x.survivors - x.non_finite if x.aborted is None else 0,
            non_finite=x.non_finite,
            clipped_fraction=x.clipped_fraction,
            signal_to_noise=x.signal_to_noise,
            aborted=x.aborted,
            epsilon_spent=spent.get(x.round),
            seconds=x.seconds,
            upload_bytes=x.upload_bytes,
        )
        for x in (report.metrics for report in m.result.reports)
    ]


def _spent_by_round(m: Material) -> dict[int, float]:
    """Against the release, at some rounds; only where the ledger holds no other releases than one attempt's."""
    e = m.experiment
    if e.noise_multiplier is None or e.mechanism.whole_run:
        return {}
    if verify_ledger(m.folder.ledger).spent != len(m.result.reports):
        return {}
    return {n: e.guarantees(n)["release"].epsilon for n in marks(len(m.result.reports))}


def secure_aggregation_of(m: Material) -> ev.SecureAggregation:
    """The mode, the rule of its threshold, what the stages cost, and how likely a round aborts."""
    masking = m.experiment.settings.secure_aggregation
    on = masking.mode != "off"
    dropout = m.experiment.settings.cohort.dropout
    stages = tuple(
        ev.StageCost(stage=stage.replace("_", " "), upload_bytes=size, seconds=seconds)
        for stage, (size, seconds) in m.result.stage_costs.items()
    )
    conditions = (
        "clients have each other's identity keys from somebody else than the server",
        f"no more than {masking.colluders} clients of a cohort work with the server",
    )
    encrypted = (
        "the key holder, neither server nor client, works with no server and gives its key to nobody",
        "the server follows the protocol: it has the sum of all arrivals decrypted, and nothing else",
        "ring learning with errors is hard at 128 bits (SEAL's parameters)",
    )
    return ev.SecureAggregation(
        mode=masking.mode,
        threshold=_threshold_rule(masking) if on else None,
        ring_bits=max((r.metrics.ring_bits for r in m.result.reports if r.metrics.ring_bits), default=None),
        stages=stages or None,
        aborted_rounds=sum(report.metrics.aborted is not None for report in m.result.reports),
        abort_probability=abort_probability(
            m.experiment.population.clients,
            m.experiment.sampling,
            dropout,
            lambda cohort: round_threshold(cohort, masking.threshold, masking.colluders),
        )
        if on
        else None,
        assumptions={"protocol": conditions, "bfv": encrypted}.get(masking.mode, ()),
        **_bound(m),
    )


def _bound(m: Material) -> dict[str, str | int]:
    """At the expected cohort, on the complete graph that trainings use."""
    plan, masking = m.experiment.privacy_plan, m.experiment.settings.secure_aggregation
    if masking.mode != "protocol" or plan is None:
        return {}
    cohort = max(2, round(plan.expected_cohort))
    needed = round_threshold(cohort, masking.threshold, masking.colluders)
    smallest = max(0, needed - masking.colluders)
    words = (
        f"At the expected cohort of {cohort} on a complete graph, any {needed} survivors finish a round. With up "
        f"to {masking.colluders} of its clients, an active server learns one sum a round, over at least "
        f"{smallest} honest clients; no chance enters but that of breaking the cryptography"
    )
    return {"bound": words, "smallest_sum": smallest}


def _threshold_rule(masking: SecureAggregationSettings) -> str:
    rule = f"more than half of cohort and {masking.colluders} colluders together"
    return rule if masking.threshold is None else f"{masking.threshold}, and {rule}"


def abort_limit_of(m: Material) -> list[str]:
    """Whether a round aborts depends on the cohort's size, which the mechanism does not noise."""
    e = m.experiment
    chance = secure_aggregation_of(m).abort_probability
    promised = e.guarantees().get("release")
    if not chance or promised is None or not math.isfinite(promised.epsilon):
        return []
    # Neighbours whose runs do not abort are indistinguishable up to (ε, δ); runs that abort, at most so likely
    # (union bound over rounds), may tell them apart.
    rounds = min(1.0, e.settings.training.rounds * chance)
    added = min(1.0, (1 + math.exp(min(promised.epsilon, 700.0))) * rounds)
    return [
        f"An aborted round is visible and depends on the cohort, which δ = {promised.delta:g} leaves out: "
        f"with it δ grows by at most {added:.2g} (chance of an abort in the run: {rounds:.2g})."
    ]


def ledger_of(m: Material) -> ev.Ledger:
    """What the ledger's file says, and the hashes of the files beside it."""
    found, terms = verify_ledger(m.folder.ledger), terms_of(m)
    return ev.Ledger(
        **{key: terms[key] for key in ("epsilon", "delta", "unit", "neighbouring", "sampling")},
        observers=tuple(sorted(found.guarantees)),
        entries=found.entries,
        attempts=found.attempts,
        reserved=found.reserved,
        committed=found.committed,
        aborted=found.aborted,
        spent=found.spent,
        torn_bytes=found.torn_bytes,
        head_sha256=found.head,
        transcript_sha256=hashlib.sha256((m.folder.path / TRANSCRIPT).read_bytes()).hexdigest(),
        weights_sha256=digest(m.result.weights),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
