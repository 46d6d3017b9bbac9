"""From a finished run to its evidence: every figure of the report, each from the object that measured it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privfed import __version__
from privfed.audit import evidence as ev
from privfed.audit.membership import OperatingPoint
from privfed.config import SecureAggregation as SecureAggregationSettings
from privfed.federated.aggregation import round_threshold
from privfed.federated.cohorts import abort_probability
from privfed.federated.streams import Purpose
from privfed.federated.training import TrainingResult, digest
from privfed.privacy.accounting import NO_CLIENT, Guarantee, marks
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import TRANSCRIPT, RunFolder
from privfed.transcript import Observer

if TYPE_CHECKING:
    from privfed.audit.empirical import ObserverFinding
    from privfed.experiment import Experiment
    from privfed.exposure import Exposure
    from privfed.membership import MembershipFindings

PACKAGES = ("tensorflow", "tensorflow-federated", "dp-accounting", "cryptography", "numpy")
HISTOGRAM_BINS = 24
UNNOISED = (
    ("training loss and accuracy", "means over the cohort's own examples; seen by the server, written to metrics"),
    ("clipped fraction, update norms, signal-to-noise", "computed from the updates before the noise"),
    ("cohort, survivors, non-finite clients, aborted rounds", "say who took part; an abort depends on the cohort"),
    ("membership scores", "computed on the training examples for this report"),
    ("originals in the gallery", "training examples, shown to judge reconstructions"),
)
LIMITS = (
    "Attacks give lower bounds: what these found nothing in, better ones may not.",
    "Central noise protects nobody against the server, which holds the sum before the noise.",
    "An active server may call clients dropped until the threshold of a round is left; that it crafts models, or "
    "fills the directory of identities, is not played here.",
    "The server sees who takes part; sampling amplifies privacy only against those who do not.",
    "Choosing settings by looking at results costs privacy that this ε does not hold.",
)


@dataclass(frozen=True, eq=False)
class Material:
    """What a run left."""

    experiment: Experiment
    folder: RunFolder
    result: TrainingResult
    baseline: TrainingResult | None
    exposures: list[Exposure]
    membership: MembershipFindings | None
    seconds: float
    control: TrainingResult | None = None


def assemble(m: Material) -> ev.Evidence:
    """The evidence of a finished run."""
    observers = tuple(_observer(m, observer) for observer in Observer)
    canaries = _canaries(m)
    return ev.Evidence(
        run=_run(m),
        verdict=verdict(observers, canaries, _readers_of_text(m)),
        observers=observers,
        accuracy=_accuracy(m),
        rounds=tuple(_rounds(m)),
        attacks=tuple(_attack(exposure) for exposure in m.exposures),
        secure_aggregation=_secure_aggregation(m),
        ledger=_ledger(m),
        membership=_membership(m.membership),
        canaries=canaries,
        unnoised=tuple(ev.UnnoisedQuantity(name=name, why=why) for name, why in UNNOISED),
        limits=(*LIMITS, *_abort_limit(m), *_canary_limits(canaries)),
    )


def _run(m: Material) -> ev.Run:
    e, settings = m.experiment, m.experiment.settings
    data = e.population
    secure = settings.privacy.randomness == "secure"
    return ev.Run(
        name=settings.name,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        privfed_version=__version__,
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        git_commit=_git_commit(),
        seed=None if secure else settings.training.seed,
        randomness=e.streams.describe(),
        executor=settings.executor,
        seconds=m.seconds,
        status="complete",
        settings=settings.model_dump(mode="json"),
        settings_fingerprint=settings.fingerprint(),
        data=ev.Data(
            dataset=data.name,
            fingerprint=data.fingerprint,
            clients=data.clients,
            examples=len(data.labels),
            test_examples=len(data.test_labels),
            model=e.model.name,
            parameters=e.model.dimension,
        ),
    )


def _git_commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _sees(m: Material, observer: Observer) -> str:
    masked = m.experiment.plan.mode == "protocol"
    settings = m.experiment.settings.secure_aggregation
    if observer is Observer.RELEASE:
        return "the public initial model and the final model"
    if observer is Observer.CLIENT:
        return "every broadcast model (worst case)"
    if not masked:
        return "every client's update"
    if observer is Observer.ACTIVE_SERVER:
        return f"the sum of as few clients as a round needs, less those of {settings.colluders} colluding clients"
    if observer is Observer.SERVER_WITH_COLLUDERS:
        return f"the survivors' sum less the updates of {settings.colluders} colluding clients"
    return "masked uploads and the survivors' sum"


def _observer(m: Material, observer: Observer) -> ev.ObserverEvidence:
    guarantee = _guarantees(m).get(observer.value)
    protected = guarantee is not None and guarantee.epsilon < math.inf
    if guarantee is not None:
        values = {**guarantee.as_json(), "why": "sees nothing that is not noised first"}
    else:
        noiseless = m.experiment.noise_multiplier is None
        values = {
            **_terms(m),
            "epsilon": math.inf,
            "accountant": "none: nothing is noised before this observer sees it",
            "cross_check_epsilon": None,
            "cross_check_accountant": None,
            "why": "no mechanism adds noise" if noiseless else "sees values from before the noise",
        }
    return ev.ObserverEvidence(
        observer=observer.value,
        sees=_sees(m, observer),
        protected=protected,
        guarantee=ev.Guarantee(**values),
        best_attack=_best(m, observer),
    )


def _guarantees(m: Material) -> Mapping[str, Guarantee]:
    """What the ledger proves, by observer."""
    return verify_ledger(m.folder.ledger).guarantees


def _terms(m: Material) -> dict[str, Any]:
    """What the ledger proves against whoever sees the released model, or the terms without a claim."""
    guarantee = _guarantees(m).get("release")
    if guarantee is not None:
        return guarantee.as_json()
    e = m.experiment
    return {
        "epsilon": math.inf,
        "delta": e.settings.privacy.delta,
        "unit": "client",
        "neighbouring": e.sampling.neighbouring,
        "sampling": e.sampling.describe(),
        "accountant": "none: no noise",
        "cross_check_epsilon": None,
        "cross_check_accountant": None,
        "noise_multiplier": 0.0,
        "rounds": e.rounds,
    }


def _best(m: Material, observer: Observer) -> ev.BestAttack | None:
    from privfed.exposure import AS_CONFIGURED

    tried = [
        x
        for x in m.exposures
        if x.outcome.observer is observer and x.defence == AS_CONFIGURED and x.outcome.margin_db is not None
    ]
    if not tried:
        return None
    best = max(tried, key=lambda x: x.outcome.margin_db or -math.inf)
    outcome = best.outcome
    assert outcome.best is not None and outcome.trivial is not None and outcome.margin_db is not None  # noqa: PT018 - all set together
    return ev.BestAttack(
        attack=outcome.attack,
        workload=best.workload,
        defence=best.defence,
        psnr=outcome.best.psnr,
        margin_db=outcome.margin_db,
        trivial_psnr=max(outcome.trivial.values()),
    )


def _readers_of_text(m: Material) -> set[str]:
    """Observers from whose view of the run as configured an attack read the tokens."""
    from privfed.exposure import AS_CONFIGURED

    return {
        x.outcome.observer.value
        for x in m.exposures
        if x.defence == AS_CONFIGURED and x.outcome.text and x.outcome.text.token_set >= ev.RECOVERED_TOKENS
    }


def verdict(
    observers: tuple[ev.ObserverEvidence, ...], canaries: ev.Canaries | None, readers: Set[str]
) -> ev.Verdict:
    """What a run comes to; ``readers`` are observers from whose view an attack read text."""
    protected = [o for o in observers if o.protected]
    leaking = [
        o.observer
        for o in observers
        if o.observer in readers or (o.best_attack and o.best_attack.margin_db >= ev.RECOVERY_MARGIN_DB)
    ]
    found = (
        f" Examples were reconstructed beyond a trivial guess, or their tokens read, by: {', '.join(leaking)}."
        if leaking
        else " No attack tried on the run as configured beat a trivial guess by 1 dB, or read a text's tokens."
    )
    if not protected:
        text = "No observer is protected: no noise is added before anybody sees the models, so ε = ∞ for all."
        return ev.Verdict(level="exposed", text=text + found)
    by_terms: dict[tuple[Any, ...], list[str]] = {}
    for o in protected:
        g = o.guarantee
        by_terms.setdefault((g.epsilon, g.delta, g.unit, g.neighbouring, g.sampling), []).append(o.observer)
    text = " ".join(
        f"Against {' and '.join(names)}: ε = {epsilon:.3g} at δ = {delta:g}, {unit}-level, neighbours: "
        f"{relation}, sampling: {sampling}."
        for (epsilon, delta, unit, relation, sampling), names in by_terms.items()
    )
    if open_to := [o.observer for o in observers if not o.protected]:
        text += f" Against {' and '.join(open_to)}: ε = ∞, since values reach them before the noise."
    if any(o.guarantee.unit == "example" for o in protected):
        text += f" {NO_CLIENT}"
    text += found
    refuted = [o.observer for o in canaries.observers if o.flagged] if canaries else []
    if refuted:
        text += (
            f" FLAGGED: canaries measure more than what is claimed against {' and '.join(refuted)}; "
            "do not trust the claim before the cause is found."
        )
    broken = {o.observer for o in protected} & {*leaking, *refuted}
    level = "exposed" if broken else "partly" if open_to else "protected"
    return ev.Verdict(level=level, text=text)


def _accuracy(m: Material) -> ev.Accuracy:
    mine, base = _final(m.result), _final(m.baseline)
    return ev.Accuracy(
        protected=_points(m.result),
        unprotected=_points(m.baseline) if m.baseline else (),
        final_protected=mine,
        final_unprotected=base,
        gap=base - mine if base is not None and mine is not None else None,
    )


def _final(result: TrainingResult | None) -> float | None:
    final = result.final_evaluation if result else None
    return final.accuracy if final else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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


def _rounds(m: Material) -> list[ev.RoundEvidence]:
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


def _attack(exposure: Exposure) -> ev.AttackEvidence:
    from privfed.runs import exposure_values

    outcome = exposure.outcome
    return ev.AttackEvidence(
        **exposure_values(exposure), original=_png(outcome.original), reconstruction=_png(outcome.reconstruction)
    )


def _png(image: Any) -> str | None:
    is_picture = image is not None and image.ndim in (2, 3) and (image.ndim == 2 or image.shape[-1] in (1, 3))
    return ev.png(image) if is_picture else None


def _secure_aggregation(m: Material) -> ev.SecureAggregation:
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
        assumptions=conditions if masking.mode == "protocol" else (),
    )


def _threshold_rule(masking: SecureAggregationSettings) -> str:
    rule = f"more than half of cohort and {masking.colluders} colluders together"
    return rule if masking.threshold is None else f"{masking.threshold}, and {rule}"


def _abort_limit(m: Material) -> list[str]:
    """Whether a round aborts depends on the cohort's size, which the mechanism does not noise."""
    e = m.experiment
    chance = _secure_aggregation(m).abort_probability
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


def _ledger(m: Material) -> ev.Ledger:
    found, terms = verify_ledger(m.folder.ledger), _terms(m)
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


def _canaries(m: Material) -> ev.Canaries | None:
    from privfed.audit.canaries import Tally
    from privfed.audit.empirical import findings
    from privfed.privacy.ledger_report import spent_releases

    e = m.experiment
    if e.canaries is None or e.noise_multiplier is None or not m.result.mechanism_state:
        return None
    tally, terms = Tally(m.result.mechanism_state[-1]), _terms(m)
    found = findings(
        e.canaries,
        tally,
        m.result.weights.astype("float64") - e.initial_weights,
        spent_releases(m.folder.ledger)[1],
        {observer: guarantee.epsilon for observer, guarantee in _guarantees(m).items()},
        terms["delta"],
        masked=e.plan.mode == "protocol",
        rng=np.random.default_rng(e.streams.key(Purpose.CANARIES, 3)),
    )
    return ev.Canaries(
        kind=e.settings.audit.canary_kind,
        count=e.canaries.count,
        included=int(e.canaries.included.sum()),
        participations=int(tally.participations.sum()),
        rounds=int(tally.rounds.max(initial=0)),
        noise_share=e.canaries.noise_share(e.noise_multiplier),
        accuracy=_final(m.result),
        accuracy_without=_final(m.control),
        **{key: terms[key] for key in ("delta", "unit", "neighbouring", "sampling")},
        observers=tuple(_canary_observer(finding, e.canaries.included) for finding in found),
    )


def _canary_observer(finding: ObserverFinding, included: NDArray[np.bool_]) -> ev.CanaryObserver:
    scores, known = finding.scores, bool(np.isfinite(finding.scores).all())
    edges = np.histogram_bin_edges(scores, HISTOGRAM_BINS) if known else np.zeros(1)
    present, absent = (
        tuple(int(n) for n in np.histogram(scores[which], edges)[0]) if known else ()
        for which in (included, ~included)
    )
    return ev.CanaryObserver(
        observer=finding.observer.value,
        sees=finding.sees,
        claim=finding.claim,
        estimates=tuple(ev.CanaryEstimate(**asdict(estimate)) for estimate in finding.estimates),
        bound=finding.bound.epsilon,
        bound_confidence=finding.bound.confidence,
        guesses=finding.bound.guesses,
        right=finding.bound.right,
        flagged=finding.flagged,
        histogram_low=float(edges[0]) if known else None,
        histogram_high=float(edges[-1]) if known else None,
        present=present,
        absent=absent,
    )


def _canary_limits(canaries: ev.Canaries | None) -> list[str]:
    if canaries is None:
        return []
    return [
        f"{canaries.included} canary clients of the audit are in this training and its model. They are nobody: "
        "they hold no data, and no ε counts them; cohorts, survivors, clipped fraction and norms do."
    ]


def _membership(found: MembershipFindings | None) -> ev.Membership | None:
    if found is None:
        return None
    return ev.Membership(
        non_members_from=found.non_members_from,
        shadow_models=found.shadow_models,
        attacks=tuple(
            ev.MembershipAttack(
                method=attack.method,
                unit=attack.unit,
                members=attack.members,
                non_members=attack.non_members,
                assumption=attack.assumption,
                auc=attack.auc,
                at_1_percent_fpr=_operating_point(attack.points[0.01]),
                at_0_1_percent_fpr=_operating_point(attack.points[0.001]),
                roc=attack.shown_roc(),
            )
            for attack in found.attacks
        ),
    )


def _operating_point(point: OperatingPoint | None) -> ev.OperatingPoint | None:
    if point is None:
        return None
    return ev.OperatingPoint(
        fpr_at_most=point.limit,
        fpr=point.fpr,
        fpr_interval=point.fpr_interval,
        tpr=point.tpr,
        tpr_interval=point.tpr_interval,
    )
