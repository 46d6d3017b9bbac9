"""Single calls to a federation on loopback, by whoever has an identity."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from loopback import CLIENTS, Federation

from privfed.network import frames
from privfed.network.frames import CheckIn
from privfed.network.identity_file import IdentityFile
from privfed.network.service import SERVICE, pieces
from privfed.network.tls import client_credentials

CHECK_IN = frames.encode(CheckIn())


def call(federation: Federation, identity: IdentityFile, method: str, request: bytes, **options: object) -> bytes:
    """One call with ``identity``, answered whole."""
    credentials = client_credentials(identity)
    with grpc.secure_channel(federation.address, credentials) as channel:
        if method == "Send":
            return channel.stream_unary(f"{SERVICE}Send")(pieces(request), timeout=10)
        if method == "Refuse":
            return channel.unary_unary(f"{SERVICE}Refuse")(request, timeout=10)
        return b"".join(channel.unary_stream(f"{SERVICE}{method}")(request, timeout=10))


def fails(federation: Federation, identity: IdentityFile, method: str, request: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failure:
        call(federation, identity, method, request)
    return failure.value.code()


def an_honest_round_works(
    federation: Federation, tmp_path: Path, number: int = 1, skip: int | None = None
) -> None:
    cohort = [c for c in range(CLIENTS) if c != skip]
    for client in cohort:
        if client not in {party.participant._half.client for party in federation.parties}:
            federation.join(client, tmp_path)
    federation.wait_for(len(cohort))
    assert federation.round(number, cohort).survivors == tuple(cohort)
