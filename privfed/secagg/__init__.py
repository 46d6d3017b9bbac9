"""Secure aggregation by pairwise masking (Bonawitz et al. 2017), as a library of its own.

Clients let a server learn the sum of their vectors and nothing else about them, even when some vanish half way.
The server is assumed honest but curious: keys are not signed, so an active server could substitute its own.
"""

from __future__ import annotations

from privfed.secagg.client import Client
from privfed.secagg.codec import FixedPointCodec
from privfed.secagg.errors import RoundAborted, SecAggError
from privfed.secagg.params import SecAggParams, majority
from privfed.secagg.server import Server
from privfed.secagg.simulation import ProtocolSum, RingSum, SecureSum, SumResult
from privfed.secagg.states import ClientState, ServerState, Stage, Step, arrives

__all__ = [
    "Client",
    "ClientState",
    "FixedPointCodec",
    "ProtocolSum",
    "RingSum",
    "RoundAborted",
    "SecAggError",
    "SecAggParams",
    "SecureSum",
    "Server",
    "ServerState",
    "Stage",
    "Step",
    "SumResult",
    "arrives",
    "majority",
]
