"""What no single table of the settings can know: whether they fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privfed.config import Settings


ENCRYPTED_BITS = 40
"""Of the widest ring in mode ``bfv``: it leaves 18 bits of the encrypted integers for the clients' number."""


class Contradiction(ValueError):  # noqa: N818 - it says what it is
    """Two settings that cannot both hold; pydantic wraps it, ``settings_file`` takes it out again."""

    def __init__(self, where: str, value: object, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.where, self.value, self.reason, self.remedy = where, value, reason, remedy


def check_together(settings: Settings) -> None:
    """Refuse settings of which each is right and that cannot all hold.

    Raises:
        Contradiction: Two that cannot, with what to change.
    """
    _check_cohort(settings)
    _check_masking(settings)
    _check_mechanism(settings)
    _check_training(settings)
    _check_canaries(settings)


def _check_canaries(settings: Settings) -> None:
    if not settings.audit.canaries:
        return
    reason = {
        "none": "they measure what is claimed, and without a mechanism nothing is",
        "dp_sgd": "they are whole clients, and dp_sgd promises nothing for these",
    }.get(settings.privacy.mechanism)
    if reason is not None:
        raise Contradiction(
            "audit.canaries", settings.audit.canaries, reason, "Remove them, or use a mechanism for clients"
        )


def _check_cohort(settings: Settings) -> None:
    clients, cohort = settings.data.known_clients, settings.cohort
    if cohort.size is None or cohort.drawn_size is None or clients is None:
        return
    if cohort.size > clients:
        raise Contradiction("cohort.size", cohort.size, f"there are {clients} clients", "Make it smaller")
    if cohort.drawn_size > clients:
        raise Contradiction(
            "cohort.over_selection",
            cohort.over_selection,
            f"it draws {cohort.drawn_size} of {clients} clients at size = {cohort.size}",
            "Make it or the size smaller",
        )


def _check_masking(settings: Settings) -> None:
    masking = settings.secure_aggregation
    if masking.mode == "off":
        return
    if settings.privacy.clip_norm is None:
        raise Contradiction(
            "privacy.clip_norm",
            None,
            f'secure_aggregation.mode = "{masking.mode}" encodes updates in a ring of fixed width, which '
            "needs a bound on each of them",
            "Set privacy.clip_norm",
        )
    if masking.mode == "bfv" and (masking.ring_bits == "auto" or masking.ring_bits > ENCRYPTED_BITS):
        raise Contradiction(
            "secure_aggregation.ring_bits",
            masking.ring_bits,
            "whole sums are encrypted as integers of at most 59 bits, and a wide ring leaves no room for them"
            if masking.ring_bits != "auto"
            else "what it takes, several coordinates in a ring of 64 bits, is too wide to be encrypted",
            f"Give a number from 8 to {ENCRYPTED_BITS}",
        )
    expected = settings.expected_cohort
    needed = masking.threshold or 2
    if expected is not None and needed > expected:
        raise Contradiction(
            "secure_aggregation.threshold",
            needed,
            f"the cohort has {expected:g} clients{' on average' if settings.cohort.rate else ''}",
            "Lower the threshold or enlarge the cohort",
        )
    if expected is not None and masking.colluders >= expected:
        raise Contradiction(
            "secure_aggregation.colluders",
            masking.colluders,
            f"the cohort has {expected:g} clients",
            "Leave at least one honest client",
        )


def _check_mechanism(settings: Settings) -> None:
    cohort, masking, mechanism = settings.cohort, settings.secure_aggregation, settings.privacy.mechanism
    if mechanism == "dp_sgd":
        _check_examples(settings)
    if masking.mode != "off" and mechanism in ("local", "dp_sgd"):
        raise Contradiction(
            "secure_aggregation.mode",
            masking.mode,
            f"{mechanism} noise has no bound, so it can leave a ring of fixed width, and it needs no masks",
            'Set mode = "off", or mechanism = "discrete_gaussian"',
        )
    correlated = mechanism in ("tree", "banded")
    if correlated != (cohort.sampling == "round_robin") and mechanism != "none":
        raise Contradiction(
            "cohort.sampling",
            cohort.sampling,
            f"{mechanism} noise "
            + ("needs cohorts in a fixed order" if correlated else "is not accounted for round-robin cohorts"),
            'Set sampling = "round_robin" and size' if correlated else 'Set mechanism = "banded" or "tree"',
        )
    if masking.mode == "off" and mechanism in ("discrete_gaussian", "skellam"):
        raise Contradiction(
            "secure_aggregation.mode",
            masking.mode,
            f"{mechanism} noise is summed as integers of a ring",
            'Set mode = "protocol" (or "ring", which protects from no server)',
        )
    if masking.ring_bits == "auto" and mechanism in ("discrete_gaussian", "skellam"):
        raise Contradiction(
            "secure_aggregation.ring_bits",
            masking.ring_bits,
            f"{mechanism} noise takes the finest grid that a ring of given width allows",
            "Give a number from 8 to 64",
        )
    if settings.training.weighted and mechanism != "none":
        raise Contradiction(
            "training.weighted",
            True,
            "example counts would scale each client's influence past the clip norm and are private themselves",
            "Set training.weighted = false with a privacy mechanism",
        )
    if mechanism != "none" and settings.training.rounds == 0:
        raise Contradiction("training.rounds", 0, "there is nothing to protect", "Train at least one round")


def _check_examples(settings: Settings) -> None:
    training = settings.training
    if training.local_steps is None:
        raise Contradiction(
            "training.local_steps",
            None,
            "dp_sgd draws the examples of each step, so that there are no epochs",
            "Give the steps of a client in a round",
        )
    if training.algorithm == "fedsgd":
        raise Contradiction(
            "training.algorithm", "fedsgd", "dp_sgd draws the examples of each step", 'Use "fedavg"'
        )
    if settings.executor != "local":
        raise Contradiction("executor", settings.executor, "it has no DP-SGD", 'Set executor = "local"')


def _check_training(settings: Settings) -> None:
    if settings.executor == "tff" and settings.privacy.randomness == "secure":
        raise Contradiction(
            "executor",
            "tff",
            "TFF's worker listens on all network interfaces and asks nobody who they are, and secure "
            "randomness is for data that are private",
            'Set executor = "local", or randomness = "research" for public data',
        )
    if settings.executor == "tff" and settings.sum_parts is not None:
        raise Contradiction(
            "sum_parts", settings.sum_parts, "tff sums no parts", 'Remove it, or use "local" or "ray"'
        )
    if settings.executor != "ray" and settings.ray != type(settings.ray)():
        raise Contradiction(
            "executor",
            settings.executor,
            "[ray] says where another one runs",
            'Set executor = "ray", or remove [ray]',
        )
    _check_algorithm(settings)
    _check_rates(settings)
    if settings.training.server_momentum and settings.training.server_optimizer != "sgd":
        raise Contradiction(
            "training.server_momentum",
            settings.training.server_momentum,
            f"{settings.training.server_optimizer} has a momentum of its own",
            'Set it to 0, or server_optimizer = "sgd"',
        )
    late = [r for r in settings.attacks.rounds or [] if r > settings.training.rounds]
    if late:
        raise Contradiction(
            "attacks.rounds",
            late,
            f"the training has {settings.training.rounds} rounds",
            "Name earlier rounds",
        )


def _check_algorithm(settings: Settings) -> None:
    training, algorithm = settings.training, settings.training.algorithm
    if (training.proximal is None) == (algorithm == "fedprox"):
        raise Contradiction(
            "training.proximal",
            training.proximal,
            f"{algorithm} {'needs' if algorithm == 'fedprox' else 'has no'} proximal term",
            "Give it a value, such as 0.01" if algorithm == "fedprox" else 'Set algorithm = "fedprox"',
        )
    if training.local_steps is not None and training.local_epochs != 1:
        raise Contradiction(
            "training.local_steps",
            training.local_steps,
            f"local_epochs = {training.local_epochs} is given as well",
            "Keep one of them",
        )
    if algorithm == "fedsgd":
        for key, plain in (("local_epochs", 1), ("local_steps", None), ("momentum", 0.0)):
            if (value := getattr(training, key)) != plain:
                raise Contradiction(
                    f"training.{key}", value, "fedsgd takes one step a round", "Remove it, or use fedavg"
                )
    if algorithm == "scaffold":
        _check_scaffold(settings)


def _check_scaffold(settings: Settings) -> None:
    training, privacy = settings.training, settings.privacy
    reasons = {
        "training.weighted": (training.weighted, "control variates are means with equal weights"),
        "training.momentum": (training.momentum, "a control variate is the mean gradient of plain steps"),
        "privacy.mechanism": (
            None if privacy.mechanism == "none" else privacy.mechanism,
            "the control variates would be a second release, which no mechanism here bounds or accounts for",
        ),
        "executor": (None if settings.executor == "local" else settings.executor, "it has no control variates"),
    }
    for where, (value, reason) in reasons.items():
        if value:
            raise Contradiction(where, value, f"scaffold: {reason}", 'Remove it, or use algorithm = "fedavg"')


def _check_rates(settings: Settings) -> None:
    for side in ("", "server_"):
        decay, every, warmup = (
            getattr(settings.training, f"{side}learning_rate_{name}") for name in ("decay", "every", "warmup")
        )
        where = f"training.{side}learning_rate_"
        if every is not None and decay not in ("exponential", "step"):
            raise Contradiction(
                f"{where}every",
                every,
                f"the decay {decay!r} does not use it",
                "Remove it, or change the decay",
            )
        if every is None and decay == "step":
            raise Contradiction(f"{where}every", None, "the decay 'step' needs it", "Give the rounds of a step")
        if warmup > settings.training.rounds:
            raise Contradiction(
                f"{where}warmup", warmup, f"the training has {settings.training.rounds} rounds", "Make it shorter"
            )
