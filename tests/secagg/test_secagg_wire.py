"""The wire form: read by an independent reader, back and forth, and every other string of bytes refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.secagg import decode, encode, wire
from privfed.secagg.errors import MalformedMessageError, RemoteError, UnexpectedSenderError
from privfed.secagg.messages import (
    AdvertiseKeys,
    ConsistencySignature,
    Inbox,
    MaskedInput,
    Message,
    Roster,
    ShareKeys,
    SurvivorList,
    UnmaskRequest,
    UnmaskShares,
)
from privfed.secagg.ring import RingVector, dtype_of
from privfed.secagg.shamir import PRIME

IDS = st.integers(0, 2**64 - 1)
KEY, SIGNATURE, SEALED, TAG = (st.binary(min_size=n, max_size=n) for n in (32, 64, 94, 16))
SHARE = st.one_of(st.sampled_from([0, 1, 2**256, PRIME - 1]), st.integers(0, PRIME - 1))
VECTORS = st.integers(8, 64).flatmap(
    lambda bits: st.lists(st.integers(0, 2**bits - 1), max_size=9).map(
        lambda values: RingVector(bits, np.array(values, dtype_of(bits)))
    )
)


def maps(values: Any) -> Any:
    return st.dictionaries(IDS, values, max_size=5)


ADVERTISEMENTS = st.builds(AdvertiseKeys, IDS, KEY, KEY, KEY, SIGNATURE)
KINDS: dict[type[Any], Any] = {
    AdvertiseKeys: ADVERTISEMENTS,
    Roster: st.builds(
        Roster,
        IDS,
        KEY,
        KEY,
        st.lists(KEY, max_size=3).map(tuple),
        st.lists(ADVERTISEMENTS, max_size=3).map(tuple),
    ),
    ShareKeys: st.builds(ShareKeys, IDS, KEY, maps(SEALED), TAG),
    Inbox: st.builds(Inbox, IDS, maps(SEALED)),
    MaskedInput: st.builds(MaskedInput, IDS, VECTORS, maps(KEY), TAG),
    SurvivorList: st.builds(SurvivorList, st.sets(IDS, max_size=6).map(lambda ids: tuple(sorted(ids)))),
    ConsistencySignature: st.builds(ConsistencySignature, IDS, SIGNATURE),
    UnmaskRequest: st.builds(UnmaskRequest, IDS, maps(SIGNATURE), maps(KEY)),
    UnmaskShares: st.builds(UnmaskShares, IDS, maps(SHARE), maps(SHARE), TAG),
}
MESSAGES = st.one_of(*KINDS.values())


def same(left: Any, right: Any) -> bool:
    """Equality of messages, of which one kind has a vector and so no ``==``."""
    if type(left) is not type(right):
        return False
    pairs = [(getattr(left, f.name), getattr(right, f.name)) for f in fields(left)]
    return all(same_vector(a, b) if isinstance(a, RingVector) else a == b for a, b in pairs)


def anew(message: Any) -> Any:
    """The same message without the bytes that it was read from, its vector included."""
    vectors = {name: value for name, value in vars(message).items() if isinstance(value, RingVector)}
    return replace(message, **{name: RingVector(v.bits, v.values) for name, v in vectors.items()})


def same_vector(left: RingVector, right: RingVector) -> bool:
    return (left.bits, left.values.dtype, left.values.tolist()) == (
        right.bits,
        right.values.dtype,
        right.values.tolist(),
    )


def peer_of(message: Any) -> int | None:
    return getattr(message, "sender", None)


class Naive:
    """The grammar of the module's docstring, read once more, in the plainest way."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        assert len(taken) == size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def id(self) -> int:
        return self.number(8)

    def many(self, item: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(item() for _ in range(self.number(4)))

    def map(self, item: Callable[[], Any]) -> dict[int, Any]:
        return dict(self.many(lambda: (self.id(), item())))

    def advertisement(self) -> AdvertiseKeys:
        return AdvertiseKeys(self.id(), self.take(32), self.take(32), self.take(32), self.take(64))

    def vector(self) -> RingVector:
        bits, length = self.number(4), self.number(4)
        values, shift = [0] * length, 0
        for width in (64, 32, 16, 8, 4, 2, 1):
            if bits & width:
                # A plane is one long little-endian integer, element after element.
                plane = int.from_bytes(self.take((length * width + 7) // 8), "little")
                for i in range(length):
                    values[i] |= (plane & (2**width - 1)) << shift
                    plane >>= width
                assert plane == 0
                shift += width
        return RingVector(bits, np.array(values, dtype_of(bits)))

    def share(self) -> int:
        return self.number(33)

    def message(self) -> Message:
        assert self.take(4) == b"PFSA"
        assert self.number(2) == 3
        read = {
            1: self.advertisement,
            2: lambda: Roster(
                self.id(),
                self.take(32),
                self.take(32),
                self.many(lambda: self.take(32)),
                self.many(self.advertisement),
            ),
            3: lambda: ShareKeys(self.id(), self.take(32), self.map(lambda: self.take(94)), self.take(16)),
            4: lambda: Inbox(self.id(), self.map(lambda: self.take(94))),
            5: lambda: MaskedInput(self.id(), self.vector(), self.map(lambda: self.take(32)), self.take(16)),
            6: lambda: SurvivorList(self.many(self.id)),
            7: lambda: ConsistencySignature(self.id(), self.take(64)),
            8: lambda: UnmaskRequest(self.id(), self.map(lambda: self.take(64)), self.map(lambda: self.take(32))),
            9: lambda: UnmaskShares(self.id(), self.map(self.share), self.map(self.share), self.take(16)),
        }
        message = read[self.number(2)]()
        assert not self.data
        return message


@settings(deadline=None, max_examples=300)
@given(MESSAGES)
def test_messages_come_back_and_an_independent_reader_agrees(message: Any) -> None:
    data = encode(message)
    assert same(decode(data, peer=peer_of(message)), message)
    assert same(decode(memoryview(data), peer=peer_of(message)), message)
    assert same(Naive(data).message(), message)
    assert wire.size(message) == len(data)
    wire.check_form(message, peer=None)
    again = decode(data, peer=peer_of(message))
    assert encode(again) == encode(anew(again)) == data
    assert wire.size(again) == len(data)
    last = {"signature": 64, "tag": 16}.get(fields(message)[-1].name, 0)
    if last:
        for one in (message, again):
            assert b"".join(wire.authenticated(one)) == data[:-last]


@settings(deadline=None, max_examples=500)
@given(MESSAGES, st.data())
def test_whatever_is_accepted_is_the_one_encoding_of_what_it_says(message: Any, data: st.DataObject) -> None:
    """Mutants are refused by name, or are exactly what their message encodes to: there are no two forms of one."""
    mutant = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutant)))
        action = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if action == "flip" and at < len(mutant):
            mutant[at] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del mutant[at:]
        elif action == "insert":
            mutant[at:at] = data.draw(st.binary(max_size=9))
        else:
            del mutant[at : at + 1]
    accepted(bytes(mutant))


@settings(deadline=None, max_examples=500)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda b: b"PFSA\0\3\0" + b)))
def test_random_bytes_are_refused_by_name_or_canonical(data: bytes) -> None:
    accepted(data)


def accepted(data: bytes) -> None:
    sender = int.from_bytes(data[8:16], "big")
    for peer in (None, sender):
        try:
            message = decode(data, peer=peer)
        except RemoteError as refusal:
            named = refusal.offender
        else:
            named = peer
            assert encode(anew(message)) == data
        assert named == peer


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "ends after 0 bytes"),
        (b"PFSA\0\3\0", "ends after 7 bytes"),
        (b"PFSB\0\3\0\6\0\0\0\0", "does not begin with"),
        (b"PFSA\0\2\0\6\0\0\0\0", "does not begin with"),
        (b"PFSA\0\3\0\0\0\0\0\0", "unknown kind 0"),
        (b"PFSA\0\3\0\x0a\0\0\0\0", "unknown kind 10"),
        (b"PFSA\0\3\0\6\0\0\0\0\0", "goes on for 1 bytes"),
        (b"PFSA\0\3\0\6\xff\xff\xff\xff", "announces 4294967295 items"),
        (b"PFSA\0\3\0\6\0\0\0\2" + bytes(16), "not strictly ascending"),
        (b"PFSA\0\3\0\6\0\0\0\2" + bytes(7) + b"\2" + bytes(7) + b"\1", "not strictly ascending"),
        (b"PFSA\0\3\0\5" + bytes(8) + b"\0\0\0\x07\0\0\0\0" + bytes(64), "rings have 8 to 64 bits"),
        (b"PFSA\0\3\0\5" + bytes(8) + b"\0\0\0\x41\0\0\0\0" + bytes(64), "rings have 8 to 64 bits"),
        (b"PFSA\0\3\0\5" + bytes(8) + b"\0\0\0\x0c\0\0\0\1" + b"\0\x10" + bytes(68), "filled up with zeros"),
        (b"PFSA\0\3\0\5" + bytes(8) + b"\0\0\0\x20\xff\xff\xff\xff" + bytes(64), "announces 4294967295 items"),
        (b"PFSA\0\3\0\4" + bytes(8) + b"\0\0\0\2" + 2 * bytes(102), "not strictly ascending"),
        (
            b"PFSA\0\3\0\x09" + bytes(8) + b"\0\0\0\1" + bytes(8) + PRIME.to_bytes(33, "big") + bytes(68),
            "outside of the field",
        ),
    ],
)
def test_what_is_wrong_is_said(data: bytes, match: str) -> None:
    with pytest.raises(MalformedMessageError, match=match) as caught:
        decode(data, peer=None)
    assert caught.value.offender is None


def test_nothing_is_allocated_for_what_is_only_announced() -> None:
    import tracemalloc

    data = b"PFSA\0\3\0\6" + b"\xff\xff\xff\xff" + bytes(80)
    tracemalloc.start()
    with pytest.raises(MalformedMessageError):
        decode(data, peer=None)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_decoded_vector_is_a_read_only_view() -> None:
    data = encode(MaskedInput(1, RingVector(32, np.arange(1000, dtype=np.uint32)), {}, bytes(16)))
    message = decode(data, peer=1)
    assert isinstance(message, MaskedInput)
    values = message.vector.values
    assert not values.flags.writeable
    assert values.base is not None
    assert values.ctypes.data % 8 == 0  # so that adding it up is not slowed down


def test_the_senders_name_is_checked_against_the_transports() -> None:
    data = encode(ConsistencySignature(4, bytes(64)))
    with pytest.raises(UnexpectedSenderError, match="in the name of client 4"):
        decode(data, peer=5)
    with pytest.raises(UnexpectedSenderError, match="in the name of the server"):
        decode(encode(SurvivorList((1, 2))), peer=5)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (AdvertiseKeys(1, b"", bytes(32), bytes(32), bytes(64)), "a key must be 32 bytes"),
        (AdvertiseKeys(-1, bytes(32), bytes(32), bytes(32), bytes(64)), "AdvertiseKeys: "),
        (AdvertiseKeys(2**64, bytes(32), bytes(32), bytes(32), bytes(64)), "AdvertiseKeys: "),
        (AdvertiseKeys(1, None, bytes(32), bytes(32), bytes(64)), "AdvertiseKeys: "),  # type: ignore[arg-type]
        (ConsistencySignature(1), "a signature must be 64 bytes"),
        (MaskedInput(1, RingVector(32, np.zeros(2, np.uint32)), {}), "a tag must be 16 bytes"),
        (SurvivorList((2, 1)), "not strictly ascending"),
        (UnmaskShares(1, {1: PRIME}, {}, bytes(16)), "outside of the field"),
        (UnmaskShares(1, {1: -1}, {}, bytes(16)), "outside of the field"),
        (MaskedInput(1, np.zeros(2, np.uint32), {}, bytes(16)), "must be a ring vector"),  # type: ignore[arg-type]
        (MaskedInput(1, RingVector(20, np.full(2, 2**20, np.uint32)), {}, bytes(16)), "more than 20 bits"),
    ],
)
def test_objects_without_a_wire_form_are_refused(message: Any, match: str) -> None:
    with pytest.raises(MalformedMessageError, match=match) as caught:
        wire.check_form(message, peer=8)
    assert caught.value.offender == 8


def test_what_is_signed_is_everything_but_the_signature() -> None:
    message = AdvertiseKeys(3, bytes(32), bytes(32), bytes(32), bytes(64))
    digests = {
        wire.digest_to_sign(m)
        for m in (
            message,
            replace(message, sender=2),
            replace(message, mask_key=b"c" * 32),
            replace(message, channel_key=b"c" * 32),
            replace(message, model_digest=b"c" * 32),
        )
    }
    assert len(digests) == 5
    assert wire.digest_to_sign(replace(message, signature=b"s" * 64)) == wire.digest_to_sign(message)


def test_what_is_tagged_is_everything_but_the_tag() -> None:
    message = ShareKeys(3, bytes(32), {4: bytes(94)}, bytes(16))
    contents = {
        b"".join(wire.authenticated(m))
        for m in (
            message,
            replace(message, sender=2),
            replace(message, commitment=b"c" * 32),
            replace(message, sealed={}),
            replace(message, sealed={5: bytes(94)}),
        )
    }
    assert len(contents) == 5
    assert b"".join(wire.authenticated(replace(message, tag=b"t" * 16))) in contents
