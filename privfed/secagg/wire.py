"""One strict binary form for every message: exactly one encoding of each, and no bytes that are not one.

All integers are unsigned and big-endian, but those in ring vectors::

    message    = "PFSA" version:u16 kind:u16 field*
    id         = u64
    key, digest = 32 bytes; signature = 64 bytes; tag = 16 bytes; sealed = 94 bytes
    share      = 33 bytes, below the prime of the field
    list       = count:u32 item*
    ids        = list of id, strictly ascending
    map        = list of (id item), ids strictly ascending
    vector     = ring_bits:u32 length:u32 plane*  (``privfed.secagg.packing``)

Lengths are checked against what is there before anything is allocated; what is left over is refused. A message
that came from bytes keeps them: they are its one form, so nothing is written again to check what stands under it.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from privfed.secagg.errors import MalformedMessageError, UnexpectedSenderError
from privfed.secagg.messages import (
    DIGEST_BYTES,
    ID_BYTES,
    KEY_BYTES,
    SEALED_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    AdvertiseKeys,
    ConsistencySignature,
    Inbox,
    MaskedInput,
    Message,
    Roster,
    ShareKeys,
    SurvivorList,
    ToServer,
    UnmaskRequest,
    UnmaskShares,
)
from privfed.secagg.packing import packed_bytes
from privfed.secagg.ring import MAX_BITS, MIN_BITS, RingVector
from privfed.secagg.shamir import PRIME

MAGIC, VERSION = b"PFSA", 3
HEADER = struct.Struct(">4sHH")
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")

Piece = bytes | memoryview


class _WireError(Exception):
    """Bytes that are no message; only ``decode`` sees it, which knows whom to name."""


class _Reader:
    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at = memoryview(data).cast("B"), 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise _WireError(f"ends after {len(self.data)} bytes, in the middle of a field")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: struct.Struct) -> int:
        return cast(int, form.unpack(self.take(form.size))[0])

    def count(self, item_bytes: int) -> int:
        count = self.number(_U32)
        self.expect(count * item_bytes, count)
        return count

    def expect(self, size: int, count: int) -> None:
        if size > len(self.data) - self.at:
            raise _WireError(f"announces {count} items, more than its {len(self.data)} bytes hold")


@dataclass(frozen=True)
class _Form:
    """How one kind of field is written, read and measured."""

    write: Callable[[Any], Iterator[Piece]]
    read: Callable[[_Reader], Any]
    size: Callable[[Any], int]


@dataclass(frozen=True)
class _Item:
    """A value of fixed length, for itself or in lists: its ``struct`` format, and what is packed into that.

    Without ``unpack``, the one thing that ``struct`` finds is the value.
    """

    code: str
    pack: Callable[[Any], Sequence[Any]]
    unpack: Callable[..., Any] | None = None

    def form(self) -> _Form:
        """Of one such value alone."""
        record = struct.Struct(">" + self.code)

        def write(value: Any) -> Iterator[Piece]:
            yield record.pack(*self.pack(value))

        def read(reader: _Reader) -> Any:
            found = record.unpack(reader.take(record.size))
            return self.unpack(*found) if self.unpack else found[0]

        return _Form(write, read, lambda _: record.size)


def _bytes(length: int, what: str) -> _Item:
    def pack(value: bytes) -> Sequence[bytes]:
        if not isinstance(value, bytes) or len(value) != length:
            raise ValueError(f"{what} must be {length} bytes (got {len(value)})")
        return (value,)

    return _Item(f"{length}s", pack)


def _pack_share(value: int) -> Sequence[bytes]:
    if not 0 <= value < PRIME:
        raise ValueError("a share lies outside of the field")
    return (value.to_bytes(SHARE_BYTES, "big"),)


def _unpack_share(data: bytes) -> int:
    share = int.from_bytes(data, "big")
    if share >= PRIME:
        raise _WireError("a share lies outside of the field")
    return share


def _struct_of(kind: type[Any], fields: Mapping[str, _Item]) -> _Item:
    """A message of fields that are each one item of ``struct``."""

    def pack(value: Any) -> Sequence[Any]:
        return [packed for name, item in fields.items() for packed in item.pack(getattr(value, name))]

    return _Item("".join(item.code for item in fields.values()), pack, kind)


_ID_ITEM = _Item("Q", lambda value: (value,))
_KEY_ITEM = _bytes(KEY_BYTES, "a key")
_DIGEST_ITEM = _bytes(DIGEST_BYTES, "a digest")
_SIGNATURE_ITEM = _bytes(SIGNATURE_BYTES, "a signature")
_TAG_ITEM = _bytes(TAG_BYTES, "a tag")
_SEALED_ITEM = _bytes(SEALED_BYTES, "sealed shares")
_SHARE_ITEM = _Item(f"{SHARE_BYTES}s", _pack_share, _unpack_share)


def _list_of(item: _Item) -> _Form:
    record = struct.Struct(">" + item.code)

    def write(values: tuple[Any, ...]) -> Iterator[Piece]:
        yield _U32.pack(len(values))
        yield b"".join(record.pack(*item.pack(value)) for value in values)

    def read(reader: _Reader) -> tuple[Any, ...]:
        found = record.iter_unpack(reader.take(reader.count(record.size) * record.size))
        if item.unpack is None:
            return tuple(value for (value,) in found)
        return tuple(itertools.starmap(item.unpack, found))

    return _Form(write, read, lambda values: _U32.size + record.size * len(values))


def _map_to(item: _Item) -> _Form:
    record = struct.Struct(">Q" + item.code)

    def write(values: Mapping[int, Any]) -> Iterator[Piece]:
        yield _U32.pack(len(values))
        yield b"".join(record.pack(key, *item.pack(values[key])) for key in sorted(values))

    def read(reader: _Reader) -> dict[int, Any]:
        found = list(record.iter_unpack(reader.take(reader.count(record.size) * record.size)))
        _check_ascending([row[0] for row in found])
        if item.unpack is None:
            return dict(found)
        return {key: item.unpack(*values) for key, *values in found}

    return _Form(write, read, lambda values: _U32.size + record.size * len(values))


def _check_ascending(ids: Sequence[int]) -> None:
    if any(map(operator.ge, ids, ids[1:])):
        raise _WireError("identifiers are not strictly ascending")


def _write_ids(values: tuple[int, ...]) -> Iterator[Piece]:
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise ValueError("identifiers are not strictly ascending")
    yield _U32.pack(len(values))
    yield struct.pack(f">{len(values)}Q", *values)


def _read_ids(reader: _Reader) -> tuple[int, ...]:
    count = reader.count(ID_BYTES)
    values = struct.unpack(f">{count}Q", reader.take(count * ID_BYTES))
    _check_ascending(values)
    return values


def _write_vector(vector: RingVector) -> Iterator[Piece]:
    if not isinstance(vector, RingVector):
        raise ValueError("input vector must be a ring vector")
    yield _U32.pack(vector.bits) + _U32.pack(vector.length)
    yield vector.packed


def _read_vector(reader: _Reader) -> RingVector:
    bits, length = reader.number(_U32), reader.number(_U32)
    if not MIN_BITS <= bits <= MAX_BITS:
        raise _WireError(f"rings have {MIN_BITS} to {MAX_BITS} bits")
    size = packed_bytes(length, bits)
    reader.expect(size, length)
    try:
        return RingVector.unpack(bits, length, reader.take(size))
    except ValueError as error:
        raise _WireError(str(error)) from None


_ID, _KEY, _DIGEST = (item.form() for item in (_ID_ITEM, _KEY_ITEM, _DIGEST_ITEM))
_SIGNATURE, _TAG = _SIGNATURE_ITEM.form(), _TAG_ITEM.form()
_IDS = _Form(_write_ids, _read_ids, lambda values: _U32.size + ID_BYTES * len(values))
_VECTOR = _Form(_write_vector, _read_vector, lambda v: 2 * _U32.size + packed_bytes(v.length, v.bits))


_ADVERTISEMENT = _struct_of(
    AdvertiseKeys,
    {
        "sender": _ID_ITEM,
        "mask_key": _KEY_ITEM,
        "channel_key": _KEY_ITEM,
        "model_digest": _DIGEST_ITEM,
        "signature": _SIGNATURE_ITEM,
    },
)

_FIELDS: Mapping[type[Any], Mapping[str, _Form]] = {
    AdvertiseKeys: {
        "sender": _ID,
        "mask_key": _KEY,
        "channel_key": _KEY,
        "model_digest": _DIGEST,
        "signature": _SIGNATURE,
    },
    Roster: {
        "recipient": _ID,
        "top": _DIGEST,
        "server_key": _KEY,
        "path": _list_of(_DIGEST_ITEM),
        "entries": _list_of(_ADVERTISEMENT),
    },
    ShareKeys: {"sender": _ID, "commitment": _DIGEST, "sealed": _map_to(_SEALED_ITEM), "tag": _TAG},
    Inbox: {"recipient": _ID, "sealed": _map_to(_SEALED_ITEM)},
    MaskedInput: {"sender": _ID, "vector": _VECTOR, "included": _map_to(_KEY_ITEM), "tag": _TAG},
    SurvivorList: {"survivors": _IDS},
    ConsistencySignature: {"sender": _ID, "signature": _SIGNATURE},
    UnmaskRequest: {"recipient": _ID, "signatures": _map_to(_SIGNATURE_ITEM), "included": _map_to(_KEY_ITEM)},
    UnmaskShares: {
        "sender": _ID,
        "seed_shares": _map_to(_SHARE_ITEM),
        "key_shares": _map_to(_SHARE_ITEM),
        "tag": _TAG,
    },
}
"""Fields in their order; a message's number is its place here, from 1. A signature or a tag always comes last."""

_LAST = {"signature": SIGNATURE_BYTES, "tag": TAG_BYTES}
_BYTES = "_wire_form"
"""Where a message that was decoded keeps what it was decoded from; a copy with another field has none."""

_NUMBERS = {kind: number for number, kind in enumerate(_FIELDS, start=1)}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}


def encode(message: Message) -> bytes:
    """The wire form of ``message``.

    Raises:
        ValueError: A field has the wrong length: no message that the state machines make.
    """
    return b"".join(_pieces(message))


def decode(data: bytes | memoryview, *, peer: int | None) -> Message:
    """The message whose wire form ``data`` is; a vector in it is a read-only view of ``data``.

    Args:
        data: Exactly one message; must not change while that is in use, since it keeps it.
        peer: Who sent it, as the transport knows: a client's identifier, or ``None`` for the server.

    Raises:
        MalformedMessageError: Not the canonical form of any message; ``offender`` is ``peer``.
        UnexpectedSenderError: A client sends in the name of another, or the server in the name of a client.
    """
    try:
        reader = _Reader(data)
        magic, version, kind = HEADER.unpack(reader.take(HEADER.size))
        if magic != MAGIC or version != VERSION:
            raise _WireError(f"does not begin with {MAGIC!r} and version {VERSION}")
        if kind not in _KINDS:
            raise _WireError(f"is of unknown kind {kind}")
        fields = {name: form.read(reader) for name, form in _FIELDS[_KINDS[kind]].items()}
        message = cast(Message, _KINDS[kind](**fields))
        if reader.at != len(reader.data):
            raise _WireError(f"goes on for {len(reader.data) - reader.at} bytes after its end")
        vars(message)[_BYTES] = reader.data
    except _WireError as refusal:
        raise MalformedMessageError(f"message {refusal}", offender=peer) from None
    sender = getattr(message, "sender", None)
    if sender != peer:
        spoken = "the server" if sender is None else f"client {sender}"
        raise UnexpectedSenderError(f"sent a {type(message).__name__} in the name of {spoken}", offender=peer)
    return message


def check_form(message: Message, *, peer: int | None) -> None:
    """Refuse a message object that has no wire form: one that nobody decoded, and nobody could encode.

    Raises:
        MalformedMessageError: A field has the wrong type, length, range or order; ``offender`` is ``peer``.
    """
    try:
        for _ in _pieces(message):
            pass
    except (ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise MalformedMessageError(f"{type(message).__name__}: {error}", offender=peer) from None


def size(message: Message) -> int:
    """Length in bytes of the wire form, without making it."""
    fields = _FIELDS[type(message)]
    return HEADER.size + sum(form.size(getattr(message, name)) for name, form in fields.items())


def digest_to_sign(message: AdvertiseKeys) -> bytes:
    """SHA-256 of the wire form up to the signature, 32 bytes."""
    digest = hashlib.sha256()
    for piece in authenticated(message):
        digest.update(piece)
    return digest.digest()


def kind_of(message: Message) -> int:
    """Number of its kind on the wire."""
    return _NUMBERS[type(message)]


def authenticated(message: ToServer) -> Iterator[Piece]:
    """The wire form up to the signature or tag, in pieces."""
    return _pieces(message, whole=False)


def _pieces(message: Message, *, whole: bool = True) -> Iterator[Piece]:
    fields = _FIELDS[type(message)]
    if (data := vars(message).get(_BYTES)) is not None:
        *_, last = fields
        yield data if whole else data[: -_LAST[last]]
        return
    yield HEADER.pack(MAGIC, VERSION, _NUMBERS[type(message)])
    for name, form in fields.items():
        if whole or name not in _LAST:
            yield from form.write(getattr(message, name))
