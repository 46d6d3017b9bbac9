"""``privfed join``: one client of a served training, on its own data and within its own limits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from privfed.composition import compose, load_population_of
from privfed.console import Console
from privfed.data import Population, load_dataset
from privfed.errors import DataError, PrivFedError
from privfed.experiment import Experiment
from privfed.federated.training import digest
from privfed.network import frames
from privfed.network.attendance import DRAINING_SECONDS, Attendance
from privfed.network.certificates import Authority, Certificate, from_pem
from privfed.network.errors import DeclinedError, FrameError, NotAdmittedError, declined
from privfed.network.frames import Nothing, Offer
from privfed.network.half import ClientHalf
from privfed.network.identity_file import IdentityFile, read_identity
from privfed.network.limits import Limits
from privfed.network.link import Link
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant
from privfed.network.plan import accepted
from privfed.network.tls import client_credentials
from privfed.privacy.accounting import Guarantee, by_observer, times
from privfed.privacy.errors import PrivacyError
from privfed.privacy.sampling import RoundRobinSampling
from privfed.secagg import Identity
from privfed.settings_file import load_settings

MOST_CLIENTS = 1_000_000
"""In a population that a client takes for real."""

MOST_BYTES = 1 << 30
"""Of a frame of the server."""


@dataclass(frozen=True)
class Joining:
    """How to join.

    Attributes:
        address: ``HOST:PORT`` of the server.
        identity: The client's identity file; its memory is a folder beside it.
        data: A source of data, ``{client}`` in it its number, all of whose training examples are its own;
            or an experiment's TOML file, in whose population they are those of its number.
        limits: What it accepts.
        patience: Seconds without the server after which to give up.
    """

    address: str
    identity: Path
    data: str
    limits: Limits
    patience: float = 600.0


def run_client(joining: Joining, console: Console) -> dict[str, Any]:
    """Take part until the training is over; returns how often, and what it is worth.

    Raises:
        PrivFedError: The plan is not accepted, which the server is told; or the server does not let this client
            in, or is not there.
    """
    identity = read_identity(joining.identity)
    authority, own, signing = _who(identity, joining.identity)
    with ExitStack() as stack:
        memory = ClientMemory(joining.identity.with_suffix(".memory"))
        stack.callback(memory.close)
        link = Link(
            joining.address, client_credentials(identity), most_bytes=MOST_BYTES, patience=joining.patience
        )
        stack.callback(link.close)
        try:
            offer, body = _offered(link)
            accepted_digest = frames.digest(offer)
            revocations = authority.revocations(bytes(body))
            memory.check(offer.run, accepted_digest)
            experiment = _plan(offer, own, joining, memory, console)
            epsilon = _spent(experiment, joining.limits, memory.spent_elsewhere(offer.run))
            memory.accept(offer.run, accepted_digest, epsilon, *_participation(experiment))
            memory.note_revocations(offer.run, revocations.number)
        except (DeclinedError, NotAdmittedError, FrameError) as error:
            link.refuse(None, declined(error))
            raise PrivFedError(f"this client does not accept the plan: {error}", where=joining.address) from None
        work = stack.enter_context(experiment.client_work())
        plan = experiment.privacy_plan
        half = ClientHalf(
            own.client,
            experiment.round(work),
            experiment.initial_weights,
            experiment.rounds,
            offer.clients,
            1 if plan is None else plan.largest_cohort,
        )
        participant = Participant(half, signing, authority, joining.limits, memory, offer.run, revocations)
        attendance = Attendance(link, participant, authority, memory, offer.run, accepted_digest, console.say)
        return attendance.take_part()


def _offered(link: Link) -> tuple[Offer, memoryview]:
    """The server's offer, as soon as it has a place for one more client.

    Raises:
        PrivFedError: The run is over.
    """
    while True:
        frame, body = frames.decode(link.check_in(None), frames.Frame)
        if isinstance(frame, Offer):
            return frame, body
        if not isinstance(frame, Nothing):
            raise FrameError(f"is a {type(frame).__name__}, which was not due")
        if frame.state == "finished":
            raise PrivFedError("the training that is served there is over")
        time.sleep(DRAINING_SECONDS)


def _who(identity: IdentityFile, path: Path) -> tuple[Authority, Certificate, Identity]:
    authority = Authority(identity.authority)
    try:
        own = authority.client(from_pem(identity.certificate))
    except NotAdmittedError as error:
        raise DataError(f"is no client's: {error}", where=f"--identity {path}") from None
    if identity.signing_key is None or Identity.from_private_bytes(identity.signing_key).public != own.key:
        raise DataError("does not hold the key that its certificate names", where=f"--identity {path}")
    return authority, own, Identity.from_private_bytes(identity.signing_key)


def _plan(offer: Offer, own: Certificate, joining: Joining, memory: ClientMemory, console: Console) -> Experiment:
    """The experiment as this client makes it from the offer; what can be computed is not taken on trust."""
    settings = accepted(offer.settings)
    joining.limits.check_settings(settings, offer.initial_sha256)
    if not own.client < offer.clients <= MOST_CLIENTS:
        raise DeclinedError(
            "plan", f"the population has {offer.clients} clients, this one has number {own.client}"
        )
    population = own_population(joining.data.replace("{client}", str(own.client)), own.client, offer.clients)
    console.say(f"client {own.client}: {len(population.labels)} examples for {settings.name}")
    try:
        experiment = compose(settings, population)
    except (PrivFedError, PrivacyError) as error:
        raise DeclinedError("data", f"the plan does not fit this client's data: {error}") from None
    if (list(experiment.population.input_shape), population.classes) != (offer.input_shape, offer.classes):
        raise DeclinedError(
            "data",
            f"examples are {list(experiment.population.input_shape)} of {population.classes} classes here, "
            f"{offer.input_shape} of {offer.classes} in the plan",
        )
    if digest(experiment.initial_weights) != offer.initial_sha256:
        raise DeclinedError("plan", "the plan's settings do not give the initial weights that it names")
    return experiment


def _spent(experiment: Experiment, limits: Limits, earlier: float) -> float:
    """The ε of the run, should every sum have as few clients as this one accepts."""
    guarantees: dict[str, Guarantee] = {}
    plan = experiment.privacy_plan
    if plan is not None:
        releases = experiment.mechanism.releases(experiment.sampling, limits.min_threshold)
        count = 1 if experiment.mechanism.whole_run else experiment.rounds
        guarantees = by_observer([times(releases, count)], plan.delta)
    return limits.check_epsilon(guarantees, earlier)


def _participation(experiment: Experiment) -> tuple[int, int]:
    """To how many rounds the plan has a client contribute at the most, and how many lie between, at the least."""
    sampling = experiment.sampling
    if experiment.mechanism.whole_run and isinstance(sampling, RoundRobinSampling):
        return sampling.participations, sampling.separation
    return experiment.rounds, 1


def own_population(source: str, client: int, clients: int) -> Population:
    """A population of ``clients`` in which only ``client`` has examples: those of ``source``.

    Raises:
        SettingError: The source is unknown.
        DataError: The data are missing, damaged, or hold nothing of this client's.
    """
    if source.endswith(".toml"):
        whole = load_population_of(load_settings(Path(source)))
        if whole.clients != clients:
            raise DataError(f"holds {whole.clients} clients, the plan has {clients}", where=f"--data {source}")
        rows = slice(int(whole.offsets[client]), int(whole.offsets[client + 1]))
        features, labels = whole.features[rows], whole.labels[rows]
        if not len(labels):
            raise DataError(f"holds no example of client {client}", where=f"--data {source}")
        return replace(whole, features=features, labels=labels, offsets=_offsets(client, clients, len(labels)))
    data = load_dataset(source)
    return Population(
        features=data.train_features,
        labels=data.train_labels,
        offsets=_offsets(client, clients, len(data.train_labels)),
        test_features=data.test_features,
        test_labels=data.test_labels,
        name=data.name,
        classes=data.classes,
        tokens=data.tokens,
    )


def _offsets(client: int, clients: int, examples: int) -> Any:
    return np.repeat(np.array([0, examples], np.int64), [client + 1, clients - client])


def run_clients(joinings: Sequence[Joining], console: Console) -> list[int]:
    """Several clients of this machine, each in a process of its own; their exit codes, in order.

    They are forked from this one, which has imported TensorFlow and not used it: its threads would not survive.
    """
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run_child, args=(joining, console)) for joining in joinings]
    for process in processes:
        process.start()

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    earlier = signal.signal(signal.SIGTERM, pass_on)
    try:
        for process in processes:
            process.join()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return [process.exitcode or 0 for process in processes]


def _run_child(joining: Joining, console: Console) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        counts = run_client(joining, console)
    except PrivFedError as error:
        print(f"privfed: {joining.identity.name}: {error}", file=sys.stderr)  # noqa: T201 - as the command does
        sys.exit(2)
    console.say(f"{joining.identity.name}: " + ", ".join(f"{name} {value}" for name, value in counts.items()))
