"""What crosses the network beside the masking protocol's own messages, in one form: a head and a body.

::

    frame = "PFNW" version:u16 kind:u16 head_bytes:u32 head body

The head is JSON with sorted keys and no spaces; what is not exactly what ``encode`` would make is refused. The
body is a wire message of ``privfed.secagg``, or weights and certificates, or a revocation list.
"""

from __future__ import annotations

import hashlib
import json
import struct
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privfed.network.errors import FrameError

MAGIC, VERSION = b"PFNW", 1
HEADER = struct.Struct(">4sHHI")
MOST_HEAD_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
"""Longer frames travel in pieces of this size, so that a slow reader holds no more than one of them."""

Number = Annotated[int, Field(ge=0, lt=2**53)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Reason = Annotated[str, Field(min_length=1, max_length=400)]


class Frame(BaseModel):
    """A head; every kind has a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: ClassVar[int]


class CheckIn(Frame):
    """Client: here I am. ``accepted`` is the digest of the offer that it has accepted, once it has."""

    kind = 1
    accepted: Digest | None = None


class Offer(Frame):
    """Server: what the run is; the body is the revocation list. A client accepts or refuses its digest.

    Attributes:
        run: The run's identifier.
        settings: As resolved, without whose data the server has, and with the noise multiplier.
        clients: In the population.
        input_shape: Of an example.
        classes: Of the labels.
        initial_sha256: Of the initial weights.
    """

    kind = 2
    run: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    settings: dict[str, Any]
    clients: Number
    input_shape: list[Number]
    classes: Number
    initial_sha256: Digest


class Poll(Frame):
    """Client: give me what comes after step ``step`` of round ``round``, the last that I have."""

    kind = 3
    round: Number
    step: Number


class Nothing(Frame):
    """Server: nothing yet; ask again, unless the run is over or the server goes away for now."""

    kind = 4
    state: Literal["wait", "finished", "draining", "check in"]


class Invitation(Frame):
    """Server: step 0 of a round. The body is the weights, then the certificates of ``members``, in order.

    Attributes:
        round: From 1.
        cohort: Clients that were drawn.
        members: Those of them that are there, ascending.
        certificates: Lengths in the body; none where nothing is masked.
        session: Of the masking protocol, in hexadecimal; empty where nothing is masked.
        threshold: Of the masking protocol.
        dimension: Of the vectors to send.
        ring_bits: Of the ring; 0 where nothing is masked.
        clip_norm: In force in this round, where the plan lets it move; ``None`` where it stays.
    """

    kind = 5
    round: Number
    cohort: Number
    members: list[Number]
    certificates: list[Number]
    session: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
    threshold: Number
    dimension: Number
    ring_bits: Number
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Relay(Frame):
    """Either side: the body is a message of the masking protocol, or an input in the clear."""

    kind = 6
    round: Number
    step: Number


class Closed(Frame):
    """Server: the round is over."""

    kind = 7
    round: Number
    aborted: bool


class Refusal(Frame):
    """Client: I do not go along, with the run or with this round, and why.

    Attributes:
        round: That it sits out; ``None`` for the whole run.
        cause: One of ``privfed.network.errors.CAUSES``; a client of another version may have more.
        reason: For people.
    """

    kind = 8
    round: Number | None
    cause: Annotated[str, Field(pattern="^[a-z][a-z -]{0,39}$")]
    reason: Reason


class Verdict(Frame):
    """Server: what became of what you sent."""

    kind = 9
    verdict: Literal["taken", "late", "repeated"]


_KINDS: dict[int, type[Frame]] = {
    kind.kind: kind for kind in (CheckIn, Offer, Poll, Nothing, Invitation, Relay, Closed, Refusal, Verdict)
}
_Wanted = TypeVar("_Wanted", bound=Frame)


def encode(frame: Frame, body: bytes = b"") -> bytes:
    """The bytes of a frame."""
    head = _head(frame)
    return HEADER.pack(MAGIC, VERSION, frame.kind, len(head)) + head + body


def decode(data: bytes | memoryview, *wanted: type[_Wanted]) -> tuple[_Wanted, memoryview]:
    """The frame, one of the kinds ``wanted``, and its body.

    Raises:
        FrameError: Anything but the one form of such a frame.
    """
    if len(data) < HEADER.size:
        raise FrameError("ends before its header does")
    magic, version, number, size = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise FrameError(f"does not begin with {MAGIC!r} and version {VERSION}")
    kind = _KINDS.get(number)
    if kind is None or not issubclass(kind, wanted):
        raise FrameError(f"is of kind {number}, which was not due")
    if size > min(MOST_HEAD_BYTES, len(data) - HEADER.size):
        raise FrameError("announces a head that is not there")
    head = bytes(data[HEADER.size : HEADER.size + size])
    frame = (_parsed_before if size <= _SHORT_BYTES else _parsed)(kind, head)
    return frame, memoryview(data)[HEADER.size + size :]  # type: ignore[return-value]  # as ``kind`` says


def _parsed(kind: type[Frame], head: bytes) -> Frame:
    try:
        frame = kind.model_validate_json(head)
        same = _head(frame) == head
    except (ValidationError, ValueError, RecursionError) as error:
        raise FrameError(f"has a head that is wrong: {str(error).splitlines()[0]}") from None
    if not same:
        raise FrameError("has a head that is not in its one form")
    return frame


_SHORT_BYTES = 128
_parsed_before = lru_cache(maxsize=256)(_parsed)
"""A whole cohort says the same in its heads; frames do not change."""


def body_offset(data: bytes) -> int:
    """Where the body of the frame that begins with ``data`` will be found, if that is a frame at all."""
    return HEADER.size + HEADER.unpack_from(data)[3] if len(data) >= HEADER.size else 0


def _head(frame: Frame) -> bytes:
    values = frame.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(offer: Offer) -> str:
    """SHA-256 of an offer, in hexadecimal: what a client accepts."""
    return hashlib.sha256(encode(offer)).hexdigest()
