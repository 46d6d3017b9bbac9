"""Stages, states and the transition table: everything that may happen, and when.

client  IDLE ─start▸ ADVERTISED ─Roster▸ SHARED ─Inbox▸ READY ─contribute▸ MASKED ─SurvivorList▸ SIGNED
        ─UnmaskRequest▸ DONE; from each but DONE ─abort▸ ABORTED
server  COLLECTING_KEYS ▸ COLLECTING_SHARES ▸ COLLECTING_INPUTS ▸ COLLECTING_SIGNATURES ▸ COLLECTING_REVEALS ▸
        DONE, each time by closing the stage; from each of the five, when too few answered, ▸ ABORTED
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import TypeAlias

from privfed.secagg.errors import IllegalEventError, UnexpectedMessageError
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


class Stage(IntEnum):
    """The five stages, each named after what a client sends in it."""

    ADVERTISE_KEYS = 0
    SHARE_KEYS = 1
    MASKED_INPUT = 2
    CONSISTENCY = 3
    UNMASK = 4


def arrives(last_sent: Stage | None) -> bool:
    """Whether the input of a client whose last message was ``last_sent`` is in the sum; ``None`` sent nothing."""
    return last_sent is not None and last_sent >= Stage.MASKED_INPUT


class ClientState(Enum):
    """What the client did last."""

    IDLE = "idle"
    ADVERTISED = "advertised"
    SHARED = "shared"
    READY = "ready"
    MASKED = "masked"
    SIGNED = "signed"
    DONE = "done"
    ABORTED = "aborted"


class ServerState(Enum):
    """What the server waits for."""

    COLLECTING_KEYS = "collecting keys"
    COLLECTING_SHARES = "collecting shares"
    COLLECTING_INPUTS = "collecting masked inputs"
    COLLECTING_SIGNATURES = "collecting signatures on the survivor list"
    COLLECTING_REVEALS = "collecting revealed shares"
    DONE = "done"
    ABORTED = "aborted"


class Step(Enum):
    """Events that come from the caller and not from a peer."""

    START = "start"
    CONTRIBUTE = "contribute"
    CLOSE_STAGE = "close the stage"
    ABORT = "abort"


State: TypeAlias = ClientState | ServerState
Event: TypeAlias = Step | type[Message]

TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (ClientState.IDLE, Step.START): ClientState.ADVERTISED,
    (ClientState.ADVERTISED, Roster): ClientState.SHARED,
    (ClientState.SHARED, Inbox): ClientState.READY,
    (ClientState.READY, Step.CONTRIBUTE): ClientState.MASKED,
    (ClientState.MASKED, SurvivorList): ClientState.SIGNED,
    (ClientState.SIGNED, UnmaskRequest): ClientState.DONE,
    (ClientState.IDLE, Step.ABORT): ClientState.ABORTED,
    (ClientState.ADVERTISED, Step.ABORT): ClientState.ABORTED,
    (ClientState.SHARED, Step.ABORT): ClientState.ABORTED,
    (ClientState.READY, Step.ABORT): ClientState.ABORTED,
    (ClientState.MASKED, Step.ABORT): ClientState.ABORTED,
    (ClientState.SIGNED, Step.ABORT): ClientState.ABORTED,
    (ServerState.COLLECTING_KEYS, AdvertiseKeys): ServerState.COLLECTING_KEYS,
    (ServerState.COLLECTING_KEYS, Step.CLOSE_STAGE): ServerState.COLLECTING_SHARES,
    (ServerState.COLLECTING_KEYS, Step.ABORT): ServerState.ABORTED,
    (ServerState.COLLECTING_SHARES, ShareKeys): ServerState.COLLECTING_SHARES,
    (ServerState.COLLECTING_SHARES, Step.CLOSE_STAGE): ServerState.COLLECTING_INPUTS,
    (ServerState.COLLECTING_SHARES, Step.ABORT): ServerState.ABORTED,
    (ServerState.COLLECTING_INPUTS, MaskedInput): ServerState.COLLECTING_INPUTS,
    (ServerState.COLLECTING_INPUTS, Step.CLOSE_STAGE): ServerState.COLLECTING_SIGNATURES,
    (ServerState.COLLECTING_INPUTS, Step.ABORT): ServerState.ABORTED,
    (ServerState.COLLECTING_SIGNATURES, ConsistencySignature): ServerState.COLLECTING_SIGNATURES,
    (ServerState.COLLECTING_SIGNATURES, Step.CLOSE_STAGE): ServerState.COLLECTING_REVEALS,
    (ServerState.COLLECTING_SIGNATURES, Step.ABORT): ServerState.ABORTED,
    (ServerState.COLLECTING_REVEALS, UnmaskShares): ServerState.COLLECTING_REVEALS,
    (ServerState.COLLECTING_REVEALS, Step.CLOSE_STAGE): ServerState.DONE,
    (ServerState.COLLECTING_REVEALS, Step.ABORT): ServerState.ABORTED,
}


def after_step(state: State, step: Step) -> State:
    """State that the caller's ``step`` leads to.

    Raises:
        IllegalEventError: The table has no such transition.
    """
    following = TRANSITIONS.get((state, step))
    if following is None:
        raise IllegalEventError(f"cannot {step.value} in state {state.name}: {_allowed(state)}")
    return following


def after_message(state: State, message: Message, *, offender: int | None) -> State:
    """State that receiving ``message`` from ``offender`` leads to.

    Raises:
        UnexpectedMessageError: The table has no such transition.
    """
    following = TRANSITIONS.get((state, type(message)))
    if following is None:
        raise UnexpectedMessageError(
            f"{type(message).__name__} is not taken in state {state.name}: {_allowed(state)}", offender=offender
        )
    return following


def _allowed(state: State) -> str:
    events = [e.value if isinstance(e, Step) else e.__name__ for s, e in TRANSITIONS if s is state]
    return f"allowed are {', '.join(events)}" if events else "the session is over; every round needs a new one"
