"""A server's side with the real state machine, and clients that answer it, without a network between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopback import CLIENTS, WEIGHTS, FakeHalf, model_of

from privfed.network import frames
from privfed.network.certificates import Authority, Certificate, from_pem
from privfed.network.frames import Invitation, Relay
from privfed.network.identity_file import read_identity, read_revocations
from privfed.network.limits import Limits
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant
from privfed.secagg import Directory, Identity, SecAggParams, Server, Stage, decode, encode

RUN, OFFER = "0" * 32, "1" * 64
COHORT = range(5)


class Table:
    """A server's side with the real state machine, and clients that answer it; nothing crosses a network."""

    def __init__(self, folder: Path, memories: Path, limits: Limits) -> None:
        self.folder = folder
        self.certificates: dict[int, Certificate] = {}
        self.participants: dict[int, Participant] = {}
        for client in range(CLIENTS):
            identity = read_identity(folder / f"client-{client}.pem")
            authority = Authority(identity.authority)
            assert identity.signing_key is not None
            memory = ClientMemory(memories / str(client))
            memory.accept(RUN, OFFER, 1.0, 50)
            self.certificates[client] = authority.client(from_pem(identity.certificate))
            self.participants[client] = Participant(
                FakeHalf(client),
                Identity.from_private_bytes(identity.signing_key),
                authority,
                limits,
                memory,
                RUN,
                read_revocations(folder / "revoked.pem", authority),
            )

    def close(self) -> None:
        for participant in self.participants.values():
            participant._memory.close()

    def params(self, members: Sequence[int] = COHORT, session: bytes = b"s" * 16, number: int = 2) -> SecAggParams:
        expected = FakeHalf(0).expected(len(members))
        return SecAggParams(
            session, number, tuple(members), expected.threshold, expected.dimension, ring_bits=expected.ring_bits
        )

    def server(self, params: SecAggParams, weights: Any = WEIGHTS) -> Server:
        directory = Directory({c: self.certificates[c].key for c in params.client_ids})
        return Server(params, directory, model=model_of(weights))

    def invitation(self, params: SecAggParams, weights: Any = WEIGHTS, **changes: Any) -> bytes:
        ders = [self.certificates[c].der for c in params.client_ids]
        values = {
            "round": params.round_number,
            "cohort": len(params.client_ids),
            "members": list(params.client_ids),
            "certificates": [len(der) for der in ders],
            "session": params.session.hex(),
            "threshold": params.threshold,
            "dimension": params.dimension,
            "ring_bits": params.ring_bits,
        }
        body = changes.pop("body", weights.astype("<f4").tobytes() + b"".join(ders))
        return frames.encode(Invitation(**{**values, **changes}), body)

    def until(self, params: SecAggParams, stage: Stage, absent: Sequence[int] = ()) -> tuple[Server, Any]:
        """An honest round up to the messages that the server sends after ``stage``."""
        server = self.server(params)
        mail: dict[int, bytes] = dict.fromkeys(params.client_ids, self.invitation(params))
        outgoing: Any = {}
        for at in list(Stage)[: stage + 1]:
            for client in mail:
                if client in absent and at >= Stage.MASKED_INPUT:
                    continue
                answer = self.participants[client].receive(mail[client])
                assert answer is not None
                relay, body = frames.decode(answer, Relay)
                assert (relay.round, relay.step) == (params.round_number, at)
                server.receive(decode(bytes(body), peer=client))  # type: ignore[arg-type]
            outgoing = server.close_stage()
            mail = {c: relayed(params, at + 1, m) for c, m in outgoing.items()}
        return server, outgoing


def relayed(params: SecAggParams, step: int, message: Any) -> bytes:
    return frames.encode(Relay(round=params.round_number, step=step), encode(message))
