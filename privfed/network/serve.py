"""``privfed serve``: the training of an experiment, whose clients come over the network."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from privfed.composition import compose
from privfed.config import Settings
from privfed.console import Console
from privfed.errors import DataError, Stopped
from privfed.executors.local import available_cores
from privfed.experiment import Experiment
from privfed.federated.client_work import ClientWork
from privfed.federated.cohorts import Cohort, sample_cohort
from privfed.federated.round import Round
from privfed.federated.training import RoundReport, digest
from privfed.files import write_text
from privfed.network.certificates import Authority
from privfed.network.exchange import Exchange
from privfed.network.frames import Offer
from privfed.network.handshakes import counted_handshakes
from privfed.network.identity_file import read_identity
from privfed.network.plan import check_servable, offered
from privfed.network.remote import Deadlines, NetworkClients
from privfed.network.service import Bounds, Service
from privfed.network.status import Status
from privfed.network.tally import Tally
from privfed.network.tls import Gate, Listed, Revocations, server_credentials
from privfed.privacy.ledger_report import verify_ledger
from privfed.rundir import SERVED, RunFolder
from privfed.runs import train_protected

EVENTS = "events.jsonl"
FAREWELL_SECONDS, DRAINING_SECONDS = 30.0, 3.0
"""To tell clients that the run is over, or that the server goes away for now."""

_OVERHEAD_BYTES = 1 << 20
"""Of the longest message, beside the vector: tokens, and sealed shares for every neighbour."""


@dataclass(frozen=True)
class Serving:
    """How to serve.

    Attributes:
        listen: ``HOST:PORT``.
        identity: The server's identity file.
        revoked: The authority's revocation list.
        clients: Certificates of the clients that may connect; ``None`` for all of the authority.
        deadlines: Of the stages.
        ready: Clients that must be there before a round begins.
        patience: Seconds to wait for them, after which the round begins as it is; for ever before the first.
        status_port: On loopback, for the status page, metrics and health; 0 for any, ``None`` for none.
        connections: Most at the same time.
    """

    listen: str
    identity: Path
    revoked: Path
    deadlines: Deadlines = field(default_factory=Deadlines)
    ready: int = 2
    patience: float = 300.0
    status_port: int | None = None
    connections: int = 2000
    clients: Path | None = None


class _Elsewhere(ClientWork):
    """Stands where the simulation has local training: that is the clients'."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("real clients train where they are")


@dataclass(frozen=True, eq=False)
class ServedExperiment(Experiment):
    """An experiment whose clients are real: drawn from all registered ones, whether they are there or not.

    Drawing before looking who is there keeps what the accountant is told true: whatever decides on who is there, a
    client takes part with no more than the sampling's probability. Who was drawn and is not there has vanished.
    """

    remote: NetworkClients | None = None
    serving: Serving | None = None
    draining: threading.Event | None = None

    @contextmanager
    def client_work(self) -> Iterator[ClientWork]:
        """Nothing is trained here."""
        yield _Elsewhere()

    def round(self, work: ClientWork) -> Round:
        """The round, with the clients' half elsewhere."""
        parts = super().round(work)
        return Round(**{f.name: getattr(parts, f.name) for f in fields(Round)} | {"remote": self.remote})

    def sample(self, number: int) -> Cohort:
        """Wait until clients enough are there, and draw from all."""
        assert self.remote is not None
        assert self.serving is not None
        assert self.draining is not None
        waited, tally = 0.0, self.remote.tally
        tally.now.update(state="waiting for clients", round=number)
        while (
            self.remote.service.call(self.remote.exchange.arrivals(self.serving.ready, 1.0)) < self.serving.ready
        ):
            if self.draining.is_set():
                raise Stopped(f"stopped before round {number}; the same command goes on from there", 143)
            waited += 1.0
            if number > 1 and waited >= self.serving.patience:
                break
        return sample_cohort(number, self.population.clients, self.sampling, 0.0, self.streams)


def run_server(settings: Settings, out: Path, serving: Serving, console: Console) -> dict[str, Any]:
    """Serve until the training is over; returns the figures of the end.

    Raises:
        Stopped: A signal asked for it, after the round that was under way; the same command goes on.
    """
    check_servable(settings)
    identity = read_identity(serving.identity)
    authority = Authority(identity.authority)
    revocations = Revocations(serving.revoked, authority)
    listed = None if serving.clients is None else Listed(serving.clients, authority, revocations)
    folder = RunFolder(out, settings)
    experiment = compose(settings)
    folder.claim()
    offer = _offer(experiment, out / SERVED)
    tally = Tally(out / EVENTS)
    exchange = Exchange(offer, lambda: revocations().der, tally)
    dimension = experiment.mechanism.length(experiment.model.dimension)
    bounds = Bounds(
        message_bytes=8 * dimension + _OVERHEAD_BYTES,
        connections=serving.connections,
    )
    gate = Gate(authority, revocations, experiment.population.clients)
    service = Service(serving.listen, server_credentials(identity, listed), gate, exchange, tally, bounds)
    draining = threading.Event()
    clients = NetworkClients(
        service, exchange, experiment.aggregation(), serving.deadlines, tally, available_cores()
    )
    served = ServedExperiment(
        **{f.name: getattr(experiment, f.name) for f in fields(Experiment)},
        remote=clients,
        serving=serving,
        draining=draining,
    )
    status = None if serving.status_port is None else Status(serving.status_port, tally, settings.name)
    state = "draining"
    with counted_handshakes(tally.refuse):
        service.start()
        try:
            if status is not None:
                status.start()
                console.say(f"status, metrics and health at http://127.0.0.1:{status.port}/")
            console.say(f"listening at port {service.port}; the initial model is {offer.initial_sha256}")
            tally.event("listening", port=service.port, run=offer.run)

            def observe(report: RoundReport) -> None:
                if report.evaluation is not None:
                    tally.accuracy = report.evaluation.accuracy
                tally.spend(verify_ledger(folder.ledger).guarantees)

            result = train_protected(
                served, folder, console, served=True, every=1, stopping=draining.set, observe=observe
            )
            state = "finished"
        finally:
            tally.now.update(state=state)
            service.stop(state, FAREWELL_SECONDS if state == "finished" else DRAINING_SECONDS)
            if status is not None:
                status.stop()
            tally.event(state)
            tally.close()
    final = result.final_evaluation
    return {
        "rounds": len(result.reports),
        "test_accuracy": final.accuracy if final else None,
        "weights_sha256": digest(result.weights),
        "seconds": result.seconds,
        "refused": dict(tally.refused),
        "late": tally.late,
        "folder": str(out),
    }


def _offer(experiment: Experiment, path: Path) -> Offer:
    """The offer; the run's identifier stays the same when it is gone on with."""
    if path.exists():
        try:
            run = str(json.loads(path.read_text(encoding="utf-8"))["run"])
        except (ValueError, TypeError, KeyError):
            raise DataError("names no run", where=str(path), remedy="Take it from a copy, or begin anew") from None
    else:
        run = secrets.token_hex(16)
        write_text(path, json.dumps({"run": run}) + "\n")
    population = experiment.population
    return Offer(
        run=run,
        settings=offered(experiment.settings, experiment.noise_multiplier, population.clients),
        clients=population.clients,
        input_shape=list(population.input_shape),
        classes=population.classes,
        initial_sha256=digest(experiment.initial_weights),
    )
