"""Secure aggregation by pairwise masking, or by homomorphic encryption, as a library of its own.

Clients let a server learn the sum of their vectors and nothing else about them, even when some vanish half way and
even when the server and some of the clients break the protocol: Bonawitz et al. 2017 in the malicious setting, on
the sparse graph of Bell et al. 2020. What holds against whom: ``docs/secure-aggregation.md``.
"""

from __future__ import annotations

from privfed.secagg.bounds import Adversary, Guarantee, guarantee_for
from privfed.secagg.client import Client
from privfed.secagg.codec import FixedPointCodec
from privfed.secagg.errors import LocalError, RemoteError, RoundAborted, SecAggError
from privfed.secagg.homomorphic import HomomorphicSum
from privfed.secagg.identities import Directory, Identity
from privfed.secagg.params import SecAggParams, majority
from privfed.secagg.server import Server
from privfed.secagg.sessions import SessionsInMemory, SessionsOnDisk, UsedSessions
from privfed.secagg.simulation import ProtocolSum, RingSum, SecureSum, SumResult
from privfed.secagg.states import ClientState, ServerState, Stage, Step, arrives
from privfed.secagg.wire import decode, encode

__all__ = [
    "Adversary",
    "Client",
    "ClientState",
    "Directory",
    "FixedPointCodec",
    "Guarantee",
    "HomomorphicSum",
    "Identity",
    "LocalError",
    "ProtocolSum",
    "RemoteError",
    "RingSum",
    "RoundAborted",
    "SecAggError",
    "SecAggParams",
    "SecureSum",
    "Server",
    "ServerState",
    "SessionsInMemory",
    "SessionsOnDisk",
    "Stage",
    "Step",
    "SumResult",
    "UsedSessions",
    "arrives",
    "decode",
    "encode",
    "guarantee_for",
    "majority",
]
