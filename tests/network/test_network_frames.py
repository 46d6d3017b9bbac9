"""Frames: one form for each, and nothing else is one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfed.network import frames
from privfed.network.errors import CAUSES, FrameError
from privfed.network.frames import (
    CheckIn,
    Closed,
    Frame,
    Invitation,
    Nothing,
    Offer,
    Poll,
    Refusal,
    Relay,
    Verdict,
)

NUMBERS = st.integers(0, 2**53 - 1)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(CheckIn, accepted=st.none() | st.from_regex("^[0-9a-f]{64}$", fullmatch=True)),
    st.builds(Poll, round=NUMBERS, step=NUMBERS),
    st.builds(Nothing, state=st.sampled_from(["wait", "finished", "draining", "check in"])),
    st.builds(Relay, round=NUMBERS, step=NUMBERS),
    st.builds(Closed, round=NUMBERS, aborted=st.booleans()),
    st.builds(
        Refusal,
        round=st.none() | NUMBERS,
        cause=st.sampled_from(sorted(CAUSES)) | st.from_regex("^[a-z][a-z -]{0,39}$", fullmatch=True),
        reason=st.text(min_size=1, max_size=400),
    ),
    st.builds(Verdict, verdict=st.sampled_from(["taken", "late", "repeated"])),
    st.builds(
        Invitation,
        round=NUMBERS,
        cohort=NUMBERS,
        members=st.lists(NUMBERS),
        certificates=st.lists(NUMBERS),
        session=st.from_regex("^([0-9a-f]{32})?$", fullmatch=True),
        threshold=NUMBERS,
        dimension=NUMBERS,
        ring_bits=NUMBERS,
    ),
)
OFFER = Offer(
    run="0" * 32, settings={"a": {"b": 0.1}}, clients=3, input_shape=[8, 8, 1], classes=10, initial_sha256="0" * 64
)


@given(FRAMES, st.binary(max_size=64))
def test_what_is_encoded_is_decoded(frame: Frame, body: bytes) -> None:
    found, rest = frames.decode(frames.encode(frame, body), Frame)
    assert (found, bytes(rest)) == (frame, body)


@given(FRAMES, st.data())
def test_a_byte_that_changed_is_refused_or_is_another_frame_in_its_one_form(
    frame: Frame, data: st.DataObject
) -> None:
    encoded = bytearray(frames.encode(frame))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found, rest = frames.decode(bytes(encoded), Frame)
    except FrameError:
        return
    assert frames.encode(found, bytes(rest)) == bytes(encoded)


@given(st.binary(max_size=200))
def test_noise_is_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decode(data, Frame)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b'{"round":1, "step":2}', "one form"),
        (b'{"step":2,"round":1}', "one form"),
        (b'{"round":1,"step":2,"more":3}', "wrong"),
        (b'{"round":1}', "wrong"),
        (b'{"round":"1","step":2}', "wrong"),
        (b'{"round":-1,"step":2}', "wrong"),
        (b'{"round":1e400,"step":2}', "wrong"),
        (b'{"round":1,"step":' + b"[" * 100_000, "wrong"),
        (b"\xff", "wrong"),
    ],
)
def test_a_head_that_is_not_just_so_is_refused(head: bytes, words: str) -> None:
    data = frames.HEADER.pack(frames.MAGIC, frames.VERSION, Relay.kind, len(head)) + head
    with pytest.raises(FrameError, match=words):
        frames.decode(data, Relay)


def test_a_length_that_is_not_there_is_refused_before_it_is_read() -> None:
    data = frames.HEADER.pack(frames.MAGIC, frames.VERSION, Relay.kind, 2**32 - 1)
    with pytest.raises(FrameError, match="not there"):
        frames.decode(data, Relay)


def test_another_kind_than_was_due_is_refused() -> None:
    with pytest.raises(FrameError, match="not due"):
        frames.decode(frames.encode(Poll(round=1, step=2)), Relay)


@pytest.mark.parametrize("cause", ["", "Min-Noise", "min_noise", "min-noise\n", "a" * 41, 'x",y="', "ε"])
def test_a_cause_that_is_no_few_small_letters_is_refused(cause: str) -> None:
    good = frames.encode(Refusal(round=1, cause="other", reason="no"))
    bad = good[frames.HEADER.size :].replace(b'"other"', json.dumps(cause).encode())
    with pytest.raises(FrameError, match="wrong"):
        frames.decode(frames.HEADER.pack(frames.MAGIC, frames.VERSION, Refusal.kind, len(bad)) + bad, Refusal)


def test_the_digest_of_an_offer_depends_on_all_of_it() -> None:
    assert frames.digest(OFFER) == frames.digest(Offer.model_validate(OFFER.model_dump()))
    others = [{"clients": 4}, {"settings": {"a": {"b": 0.2}}}, {"run": "1" * 32}, {"initial_sha256": "1" * 64}]
    digests = {frames.digest(OFFER.model_copy(update=change)) for change in others}
    assert len(digests | {frames.digest(OFFER)}) == 5
