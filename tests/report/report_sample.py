"""Evidence of a run such as the demo's, made up: figures of a plausible size, images drawn by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sample_attacks import OWN, PROBE, attack, failed_attack

from privfed.audit import evidence as ev

CENTRAL = {
    "delta": 1e-4,
    "unit": "client",
    "neighbouring": "add or remove one client",
    "sampling": "Poisson, rate 0.15",
}
OBSERVERS = ("server", "server+colluders", "active server", "client", "release")
SEES = {
    "server": "Masked uploads, and the sum of each round's updates before noise is added.",
    "server+colluders": "The same, less the updates of 3 clients that work with it.",
    "active server": "The sum of as few clients as a round needs, less the updates of 3 colluding clients.",
    "client": "The global model at the start of each round it takes part in; here, of every round.",
    "release": "The initial model and the final one.",
}


def guarantee(epsilon: float, **changes: Any) -> ev.Guarantee:
    endless = math.isinf(epsilon)
    values: dict[str, Any] = {
        **CENTRAL,
        "epsilon": epsilon,
        "accountant": "none: no noise" if endless else "PLD",
        "cross_check_epsilon": None if endless else epsilon * 1.08,
        "cross_check_accountant": None if endless else "RDP",
        "noise_multiplier": 0 if endless else 1.4216,
        "rounds": 40,
        "why": "Central noise is added after the server has seen the sum."
        if endless
        else "It sees noised models only.",
    }
    return ev.Guarantee(**values | changes)


def round_evidence(number: int, rounds: int = 40, **changes: Any) -> ev.RoundEvidence:
    values: dict[str, Any] = {
        "round": number,
        "cohort": 54 + number % 5,
        "survivors": 51 + number % 5,
        "dropped": 3,
        "non_finite": 0,
        "clipped_fraction": 0.55 + 0.4 * math.exp(-number / rounds * 5),
        "signal_to_noise": 0.7 + 1.4 * math.exp(-number / rounds * 4) + 0.05 * math.sin(number),
        "aborted": None,
        "epsilon_spent": 3 * math.sqrt(number / rounds),
        "seconds": 0.21,
        "upload_bytes": 161_000,
    }
    return ev.RoundEvidence(**values | changes)


def accuracy_points(rounds: int, top: float, speed: float) -> list[ev.AccuracyPoint]:
    wave = 0.012 * (1 - top)
    return [
        ev.AccuracyPoint(
            round=n,
            test_accuracy=0.1 + (top - 0.1) * (1 - math.exp(-n / rounds * speed)) + wave * math.sin(n),
            train_accuracy=None,
            loss=2.3 * math.exp(-n / rounds * speed) + 0.2,
        )
        for n in range(1, rounds + 1)
    ]


def sample(number_of_rounds: int = 40, **changes: Any) -> ev.Evidence:
    """The whole evidence; ``changes`` replace sections."""
    values: dict[str, Any] = {
        "run": run(),
        "verdict": ev.Verdict(
            level="partly",
            text="Whoever gets the models (the clients, and everybody after the release) is kept from learning "
            "whether any one client took part. The server is not: masking hides single updates from it while it "
            "follows the protocol, and an active one sees each of them.",
        ),
        "observers": observers(),
        "accuracy": ev.Accuracy(
            protected=accuracy_points(number_of_rounds, 0.87, 5),
            unprotected=accuracy_points(number_of_rounds, 0.955, 8),
            final_protected=0.8692,
            final_unprotected=0.9547,
            gap=0.0855,
        ),
        "rounds": [round_evidence(n, number_of_rounds) for n in range(1, number_of_rounds + 1)],
        "attacks": attacks(),
        "secure_aggregation": ev.SecureAggregation(
            mode="protocol",
            threshold="a majority of each cohort",
            ring_bits=32,
            stages=[
                ev.StageCost(stage="advertise keys", upload_bytes=138_240, seconds=0.41),
                ev.StageCost(stage="share keys", upload_bytes=12_441_600, seconds=3.2),
                ev.StageCost(stage="masked input", upload_bytes=5_616_000, seconds=2.9),
                ev.StageCost(stage="unmask", upload_bytes=4_147_200, seconds=None),
            ],
            aborted_rounds=0,
            abort_probability=2.4e-9,
            assumptions=[
                "clients have each other's identity keys from somebody else than the server",
                "a majority of each cohort does not work with the server",
            ],
        ),
        "ledger": ev.Ledger(
            **CENTRAL,
            epsilon=2.9987,
            observers=["client", "release"],
            entries=82,
            attempts=1,
            reserved=40,
            committed=40,
            aborted=0,
            spent=40,
            torn_bytes=0,
            head_sha256="a1" * 32,
            transcript_sha256="b2" * 32,
            weights_sha256="c3" * 32,
        ),
        "membership": membership(),
        "canaries": canaries(),
        "accounting": accounting(),
        "clients": clients(),
        "sweep": sweep(),
        "statements": [
            ev.Statement(layer=layer, item=f"Item of the {layer}", says=f"what the {layer} says")
            for layer in ev.LAYERS
        ],
        "checks": [
            ev.PitfallCheck(layer="guarantee", name="δ is small", result="passed", why="1e-4 below 1/359"),
            ev.PitfallCheck(layer="implementation", name="The seed is secret", result="failed", why="seed 1"),
            ev.PitfallCheck(layer="unit", name="One person, one client", result="not checked", why="unknown"),
        ],
        "trust": [
            ev.TrustAssumption(who="The server", trusted_to="add the noise", otherwise="nothing is left"),
        ],
        "unnoised": [
            ev.UnnoisedQuantity(name="Cohort sizes", why="They tell how many clients took part, not which."),
            ev.UnnoisedQuantity(
                name="Training accuracy and loss", why="Means over clients' examples; a client can shift them."
            ),
        ],
        "limits": [
            "359 clients are few: noise that would hardly hurt a million of them costs accuracy here.",
            "An attack that failed shows what this attack could not do, not what none could.",
            "One seed was run; other seeds give other figures.",
        ],
    }
    return ev.Evidence(**values | changes)


def run(**changes: Any) -> ev.Run:
    values: dict[str, Any] = {
        "name": "digits",
        "created": "2026-01-15T09:30:00Z",
        "privfed_version": "0.1.0",
        "packages": {"tensorflow": "2.14.1", "dp-accounting": "0.4.3", "numpy": "1.26.4"},
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "git_commit": "0f" * 20,
        "seed": 1,
        "randomness": "seeded with 1 for every purpose: research mode, reproducible and not secret",
        "executor": "local",
        "seconds": 101.3,
        "status": "complete",
        "settings": {
            "name": "digits",
            "training": {"rounds": 40, "learning_rate": 0.5, "shuffle": True},
            "cohort": {"sampling": "poisson", "rate": 0.15, "size": None},
            "attacks": {"methods": ["dense_layer", "gradient_matching"], "rounds": []},
        },
        "settings_fingerprint": "d4" * 32,
        "data": ev.Data(
            dataset="digits",
            fingerprint="e5" * 32,
            clients=359,
            examples=1437,
            test_examples=360,
            model="softmax",
            parameters=650,
        ),
    }
    return ev.Run(**values | changes)


def observers() -> list[ev.ObserverEvidence]:
    best = ev.BestAttack(
        attack="gradient_matching",
        workload=OWN,
        defence="as configured",
        psnr=9.3,
        margin_db=-1.6,
        trivial_psnr=10.9,
    )
    found = []
    for name in OBSERVERS:
        protected = name in ("client", "release")
        seen = best.model_copy(update={"psnr": 24.0, "margin_db": 13.1}) if name == "active server" else best
        found.append(
            ev.ObserverEvidence(
                observer=name,
                sees=SEES[name],
                protected=protected,
                guarantee=guarantee(2.9987 if protected else math.inf),
                best_attack=None if name == "server+colluders" else seen,
            )
        )
    return found


def attacks() -> list[ev.AttackEvidence]:
    found = [attack(i, observer="server", workload=PROBE, defence="none") for i in range(5)]
    found += [attack(10 + i, observer="server", defence="none") for i in range(6)]
    for name in OBSERVERS:
        found += [attack(20 + i, observer=name) for i in range(5)] if name != "server+colluders" else []
        found.append(failed_attack(name))
    return found


def membership() -> ev.Membership:
    fpr = np.linspace(0, 1, 41)

    def found(method: str, power: float) -> ev.MembershipAttack:
        return ev.MembershipAttack(
            method=method,
            unit="example",
            members=1437,
            non_members=360,
            assumption="the candidate's examples with labels",
            auc=1 / (1 + power),
            at_1_percent_fpr=ev.OperatingPoint(
                fpr_at_most=0.01,
                fpr=0.0083,
                fpr_interval=(0.0017, 0.0242),
                tpr=0.014,
                tpr_interval=(0.0085, 0.0216),
            ),
            at_0_1_percent_fpr=None,
            roc=[(float(x), float(min(1, x**power))) for x in fpr],
        )

    return ev.Membership(
        non_members_from="the test set",
        shadow_models=4,
        attacks=[found("loss", 0.92), found("lira", 0.8), found("rmia", 0.84)],
    )


def canaries() -> ev.Canaries:
    def seen(name: str, sees: str, claim: float, low: float) -> ev.CanaryObserver:
        estimate = ev.CanaryEstimate(
            method="Gaussian fit", epsilon=low + 1, low=low, high=low + 3, confidence=0.99
        )
        return ev.CanaryObserver(
            observer=name,
            sees=sees,
            claim=claim,
            estimates=[estimate],
            bound=0.34,
            bound_confidence=0.95,
            guesses=40,
            right=31,
            flagged=low > claim,
            histogram_low=-2.0,
            histogram_high=3.0,
            present=[0, 2, 6, 9, 5, 2],
            absent=[3, 7, 6, 2, 1, 0],
            roc=[(0, 0), (0.1, 0.3), (0.4, 0.7), (1, 1)],
        )

    return ev.Canaries(
        kind="update",
        count=40,
        included=24,
        participations=149,
        rounds=40,
        noise_share=0.046,
        accuracy=0.869,
        accuracy_without=0.87,
        **CENTRAL,
        observers=[
            seen("server", "sums before the noise", math.inf, 0.5),
            seen("client", "all noised sums", 2.9987, 1.9),
            seen("release", "the final model", 2.9987, 0.2),
        ],
    )


def accounting() -> ev.Accounting:
    rows = [
        ("Poisson, rate 0.15", "add or remove one client", True, 2.9987, 3.44, "claimed"),
        ("fixed size, 54 of 359", "replace one client", True, None, 17.9, "does not apply"),
        ("cohorts known", "replace one client", False, 68.0, 71.9, "holds"),
    ]
    keys = ("sampling", "neighbouring", "amplified", "pld", "rdp", "standing")
    return ev.Accounting(
        **CENTRAL,
        epsilon=2.9987,
        observer="release",
        assumptions=[ev.AssumptionEvidence(**dict(zip(keys, row, strict=True))) for row in rows],
        by_rounds=[ev.EpsilonAt(rounds=n, delta=1e-4, epsilon=3 * math.sqrt(n / 40)) for n in range(5, 81, 5)],
        by_delta=[ev.EpsilonAt(rounds=40, delta=10.0**-k, epsilon=1 + 0.5 * k) for k in range(3, 13)],
    )


def clients() -> ev.ClientAccuracy:
    return ev.ClientAccuracy(
        whose="the clients that trained, on their own examples",
        clients=359,
        mean=0.925,
        percentiles={"5": 0.75, "25": 0.75, "50": 1.0, "75": 1.0, "95": 1.0},
        histogram=[0] * 10 + [9, 0, 0, 0, 0, 90, 0, 0, 0, 260],
        histogram_unprotected=[0] * 15 + [60, 0, 0, 0, 299],
        mean_unprotected=0.955,
        worst=[ev.WorstClient(client=17, examples=4, accuracy=0.5)],
    )


def sweep() -> ev.SweepEvidence:
    points = [(0.5, 0.6), (1.0, 0.75), (3.0, 0.87), (8.0, 0.93), (math.inf, 0.955)]
    return ev.SweepEvidence(
        **CENTRAL,
        epsilon=9.5,
        name="digits",
        observer="release",
        points=[
            ev.SweepPoint(
                label=f"epsilon {e:g}".replace("inf", "∞"),
                epsilon=e,
                accuracy=a,
                low=a - 0.01,
                high=a + 0.01,
                trainings=3,
            )
            for e, a in points
        ],
        trials=15,
        same_data=True,
        statement="All 15 trials together spend more than the chosen one alone.",
    )
