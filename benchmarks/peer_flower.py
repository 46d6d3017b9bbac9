# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["flwr==1.41.0"]
# ///
"""Flower's SecAgg+: its workflow for the server and its modifier for the clients, with bytes in between.

One process plays all. Every message is turned into its protocol buffer's bytes by who sends it and back by who
gets it. The sum comes out of Flower's ``FedAvg``, as the workflow leaves it to the strategy. Left out, in Flower's
favour: training, sending the model out, and storing the client's state between messages.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, parameters_to_arrayrecord
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

EXAMPLES = 100
STAGE_OF_VECTORS = 3


class Strategy(FedAvg):
    """All clients take part."""

    def __init__(self, nodes: Iterable[int]) -> None:
        super().__init__()
        self._proxies = [SimpleNamespace(node_id=node) for node in nodes]

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        return [(proxy, FitIns(parameters, {})) for proxy in self._proxies]


class Wire:
    """Stands for Flower's grid: takes the server's messages to the clients, and brings the answers back."""

    def __init__(self, updates: np.ndarray, dim: int, gone: set[int], nodes: list[int]) -> None:
        self._updates, self._dim, self._gone = updates, dim, gone
        self._contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in nodes}
        self.stage = 0
        self.client_seconds = self.outside_seconds = 0.0
        self.sent = dict.fromkeys(nodes, 0)

    def update(self, node: int) -> np.ndarray:
        return self._updates[node - 1 : node - 1 + self._dim]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.stage += 1
        answers = []
        for message in messages:
            node = message.metadata.dst_node_id
            data = message_to_proto(message).SerializeToString()
            if self.stage >= STAGE_OF_VECTORS and node in self._gone:
                answers.append(Message(Error(0, "gone"), reply_to=message))
                continue
            data = self._client(node, data)
            self.sent[node] += len(data)
            answers.append(message_from_proto(ProtoMessage.FromString(data)))
        return answers

    def _client(self, node: int, data: bytes) -> bytes:
        started, outside = time.process_time(), self.outside_seconds
        message = message_from_proto(ProtoMessage.FromString(data))
        answer = secaggplus_mod(message, self._contexts[node], self._train)
        data = message_to_proto(answer).SerializeToString()
        self.client_seconds += time.process_time() - started - (self.outside_seconds - outside)
        return data

    def _train(self, message: Message, context: Context) -> Message:
        started = time.process_time()
        parameters = ndarrays_to_parameters([self.update(message.metadata.dst_node_id)])
        content = fitres_to_recorddict(FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {}), keep_input=False)
        answer = Message(content, reply_to=message)
        self.outside_seconds += time.process_time() - started
        return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--neighbours", type=int, required=True)
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    nodes = list(range(1, args.clients + 1))  # Flower keeps 0 for its server
    rng = np.random.default_rng(1)
    updates = rng.standard_normal(args.dim + args.clients, dtype=np.float32)
    updates /= np.linalg.norm(updates.astype(np.float64)).astype(np.float32)
    gone = {int(i) + 1 for i in rng.choice(args.clients, round(args.dropout * args.clients), replace=False)}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    wire = Wire(updates, args.dim, gone, nodes)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=Strategy(nodes))
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(ndarrays_to_parameters([]), True)
    workflow = SecAggPlusWorkflow(
        args.neighbours + 1, args.threshold, max_weight=float(EXAMPLES), clipping_range=1.0
    )
    wall, started = time.perf_counter(), time.process_time()
    workflow(wire, context)
    total = time.process_time() - started - wire.outside_seconds
    wall = time.perf_counter() - wall
    (average,) = parameters_to_ndarrays(context_parameters(context))
    _check(average, wire, [node for node in nodes if node not in gone])
    survivors = args.clients - len(gone)
    measure.write(
        args.out,
        {
            "wall": wall,
            "client_seconds": wire.client_seconds / args.clients,
            "server_seconds": total - wire.client_seconds,
            "total_seconds": total,
            "survivors": survivors,
            "upload_bytes": sum(sent for node, sent in wire.sent.items() if node not in gone) / survivors,
            "peak_rss_mb": measure.peak_rss_mb(),
        },
        ("flwr", "numpy"),
    )


def context_parameters(context: LegacyContext) -> Parameters:
    """What the workflow left as the round's new parameters."""
    (array,) = context.state.array_records[MAIN_PARAMS_RECORD].values()
    return Parameters([array.data], array.stype)


def _check(average: np.ndarray, wire: Wire, survivors: list[int]) -> None:
    expected = sum((wire.update(node).astype(np.float64) for node in survivors), np.zeros(len(average)))
    error = np.abs(average - expected / len(survivors)).max()
    # Its grid has 2**22 steps in [-1, 1], and each client's rounding is off by one step at most.
    if not error <= 2 * 2.0**-21:
        raise RuntimeError(f"the average is wrong by {error}")


if __name__ == "__main__":
    main()
