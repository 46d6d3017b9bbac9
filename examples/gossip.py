"""Gossip learning without a server: twenty clients on a ring learn digits from each other (Blot et al. 2016).

Shown: how good the clients' own models get, beside FedAvg of the same updates; what a neighbour gets out of the
first model that it is sent; the same with local noise, and its ε. Run it: ``python examples/gossip.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import create, run_attacks
from privfed.api import load_population
from privfed.data import Population
from privfed.executors.local import LocalClientWork
from privfed.federated.client_work import LocalTraining
from privfed.federated.evaluation import Evaluator
from privfed.federated.gossip import Message, Neighbours, Peers, complete, gossip, guarantee, neighbour_view, ring
from privfed.federated.streams import Purpose, Streams
from privfed.models.build import build_model
from privfed.privacy.mechanisms import LocalGaussian, NoMechanism
from privfed.transcript import Observation, Plan

CLIENTS, RATE, CLIP_NORM, DELTA = 20, 0.5, 1.0, 1e-4
TRAINING = LocalTraining(RATE, epochs=1, batch_size=10)
STREAMS = Streams(1, secure=False)


@dataclass(frozen=True)
class Outcome:
    """Of one training.

    Attributes:
        worst: Test accuracy of the worst client's own model.
        mean: Of the clients' own models on average.
        average: Of the models' weighted average, which no client holds.
        spread: Largest distance of a client's model from it.
        messages: All that were sent.
    """

    worst: float
    mean: float
    average: float
    spread: float
    messages: list[Message]


class Digits:
    """The digits of twenty clients, and a softmax from zeros."""

    def __init__(self) -> None:
        self.population: Population = load_population("digits", clients=CLIENTS)
        held = self.population
        self.model = build_model("softmax", held.input_shape, held.classes)
        self.start = np.zeros(self.model.dimension, np.float32)
        self.work = LocalClientWork(self.model, held.features, held.labels, held.offsets, TRAINING)
        self.evaluate = Evaluator(self.model, held.as_float(held.test_features), held.test_labels)

    def gossip(self, neighbours: Neighbours, mechanism: LocalGaussian | NoMechanism, rounds: int) -> Outcome:
        """Without a server."""
        peers, messages = Peers.alike(self.start, CLIENTS), list[Message]()
        for result in gossip(peers, self.work, neighbours, mechanism, STREAMS, rounds):
            peers = result.peers
            messages += result.messages
        own = [self.evaluate(model.astype(np.float32)).accuracy for model in peers.models]
        average = self.evaluate(peers.average.astype(np.float32)).accuracy
        return Outcome(min(own), float(np.mean(own)), average, peers.spread, messages)

    def fedavg(self, rounds: int) -> float:
        """Test accuracy with a server that takes the plain mean of the same clients' updates."""
        weights = self.start
        for number in range(1, rounds + 1):
            chunks = self.work(weights, range(CLIENTS), STREAMS.key(Purpose.SHUFFLE, number))
            weights = weights + np.concatenate([chunk.deltas for chunk in chunks]).mean(0)
        return self.evaluate(weights).accuracy

    def first_view(self, mechanism: LocalGaussian | NoMechanism) -> tuple[str, float, float] | str:
        """What a neighbour makes of the first model it is sent, when its sender took one step on one example.

        Attack, PSNR of its best image, and its lead over guesses that saw nothing, in dB; or why there is none.
        """
        held = self.population
        offsets = np.arange(CLIENTS + 1, dtype=np.int64)  # client i's only example is row i
        one_step = LocalTraining(RATE, epochs=1, batch_size=1)
        work = LocalClientWork(self.model, held.features[:CLIENTS], held.labels[:CLIENTS], offsets, one_step)
        (first,) = gossip(Peers.alike(self.start, CLIENTS), work, ring(CLIENTS), mechanism, STREAMS, 1)
        message = first.messages[0]
        noise = mechanism.client_noise if isinstance(mechanism, LocalGaussian) else 0.0
        plan = Plan(RATE, 1, 1, None, CLIP_NORM, noise, None, "off", client_noise_stddev=noise)
        view = neighbour_view([message], message.receiver, self.start, plan, self.model)

        def truth(seen: Observation) -> tuple[np.ndarray, np.ndarray]:
            rows = list(seen.clients)
            return held.as_float(held.features[rows]).astype(np.float64), held.labels[rows].astype(np.int64)

        (found,) = run_attacks(view, [create("dense_layer")], truth, held.mean_image(), np.random.default_rng(1))
        if found.best is None or found.margin_db is None:
            return f"{found.attack}: {found.failure}"
        return found.attack, found.best.psnr, found.margin_db


def show(title: str, outcome: Outcome) -> None:
    """One line."""
    print(
        f"{title:28} worst {outcome.worst:.3f}, mean {outcome.mean:.3f}, average model {outcome.average:.3f}; "
        f"furthest {outcome.spread:.2f}"
    )


def main(rounds: int = 30, multipliers: Sequence[float] = (0.5, 4.0)) -> None:
    """Trainings without noise and with, and what they show a neighbour."""
    digits = Digits()
    print(f"{CLIENTS} clients, {rounds} rounds; test accuracy of their own models, and how far apart they are")
    print(f"{'FedAvg, with a server':28} {digits.fedavg(rounds):.3f}")
    show("gossip, all with all", digits.gossip(complete(CLIENTS), NoMechanism(None), rounds))
    show("gossip on a ring", digits.gossip(ring(CLIENTS), NoMechanism(None), rounds))
    for multiplier in (0.0, *multipliers):
        mechanism = LocalGaussian(CLIP_NORM, multiplier) if multiplier else NoMechanism(CLIP_NORM)
        print(f"\nupdates clipped to {CLIP_NORM:g}, noise multiplier {multiplier:g}")
        show("gossip, all with all", digits.gossip(complete(CLIENTS), mechanism, rounds))
        seen = digits.first_view(mechanism)
        if isinstance(seen, str):
            print(f"a neighbour's attack on the first model: {seen}")
        else:
            attack, psnr, margin = seen
            print(
                f"a neighbour's attack on the first model: {attack}, PSNR {psnr:.1f} dB, margin {margin:+.1f} dB"
            )
        spent = guarantee(mechanism, rounds, DELTA)
        print(spent.statement({"every neighbour", "all other clients together"}))


if __name__ == "__main__":
    main()
