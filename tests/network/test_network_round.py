"""Rounds over loopback: the simulation's sums bit by bit, whoever vanishes, stalls or comes back."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import AGGREGATION, CLIENTS, FakeHalf, Federation, PlainHalf, eventually, inputs_of, update_of

from privfed.federated.aggregation import Aggregate, PlainAggregation
from privfed.network.errors import DeclinedError
from privfed.network.limits import Limits
from privfed.network.link import Link
from privfed.network.remote import Deadlines
from privfed.network.tls import client_credentials
from privfed.secagg import RoundAborted, Server, Stage
from privfed.secagg.errors import CorruptShareError


def simulated(number: int, dropouts: dict[int, Stage | None] | None = None) -> np.ndarray:
    vectors = {c: update_of(c, number) for c in range(CLIENTS)}
    return AGGREGATION.sum(inputs_of(number, range(CLIENTS)), vectors, dropouts or {}).total


def test_the_sum_is_the_simulations_bit_by_bit(federation: Federation, tmp_path: Path) -> None:
    for client in range(CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    for number in (1, 2):
        found = federation.round(number)
        assert found.survivors == tuple(range(CLIENTS))
        np.testing.assert_array_equal(found.total, simulated(number))
        assert found.received == {}  # nobody's own vector is known to the server
        assert sorted(found.uploads) == list(range(CLIENTS))


@pytest.mark.parametrize("last", [None, *list(Stage)[:-1]])
def test_who_vanishes_at_any_stage_is_left_out_as_in_the_simulation(
    federation: Federation, tmp_path: Path, last: Stage | None
) -> None:
    """A client that sends its last message and is never heard of again; the others finish without it."""
    federation.clients = replace(federation.clients, deadlines=Deadlines(stage=1, training=1))

    def silent_after(link: Link, step: int, answer: bytes) -> bytes | None:
        return answer if last is not None and step <= last else None

    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=silent_after if client == 3 else None)
    federation.wait_for(CLIENTS)
    found = federation.round(1)
    np.testing.assert_array_equal(found.total, simulated(1, {3: last}))
    assert (3 in found.survivors) == (last is not None and last >= Stage.MASKED_INPUT)
    event = [e for e in events(tmp_path) if e["event"] == "round"][-1]
    assert event["last_stage"] == {"3": None if last is None else last.name.lower()}


def test_who_was_drawn_and_is_not_there_counts_as_vanished(federation: Federation, tmp_path: Path) -> None:
    for client in range(6):
        federation.join(client, tmp_path)
    federation.wait_for(6)
    found = federation.round(1)
    assert found.survivors == tuple(range(6))
    assert found.threshold == CLIENTS // 2 + 1  # of all that were drawn
    np.testing.assert_array_equal(found.total, simulated(1, {6: None, 7: None}))


def test_a_round_below_its_threshold_ends_at_once_and_the_next_one_goes_on(
    federation: Federation, tmp_path: Path
) -> None:
    for client in range(4):
        federation.join(client, tmp_path)
    federation.wait_for(4)
    with pytest.raises(RoundAborted, match="4 clients left, threshold 5"):
        federation.round(1)
    for client in range(4, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    np.testing.assert_array_equal(federation.round(2).total, simulated(2))
    assert federation.tally.rounds == {"aborted": 1, "completed": 1}


def test_a_message_sent_twice_counts_once_and_one_after_its_stage_not_at_all(
    federation: Federation, tmp_path: Path
) -> None:
    """As after a reconnect whose first answer was lost, and as of a client that was asleep."""
    kept: list[bytes] = []

    def twice(link: Link, step: int, answer: bytes) -> bytes:
        if step == Stage.SHARE_KEYS:
            for old in kept:
                assert link.send(old) == "late"
        kept.append(answer)
        assert link.send(answer) == "taken"
        return answer

    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=twice if client == 5 else None)
    federation.wait_for(CLIENTS)
    np.testing.assert_array_equal(federation.round(1).total, simulated(1))
    party = federation.parties[5]
    assert eventually(lambda: len(party.verdicts) == len(Stage))
    assert set(party.verdicts) <= {"repeated", "late"}  # late when it was the last one of its stage
    assert federation.tally.late + federation.tally.repeated == len(Stage) + 1


def test_a_client_that_reconnects_within_a_stage_is_still_in(federation: Federation, tmp_path: Path) -> None:
    def reconnect(link: Link, step: int, answer: bytes) -> bytes:
        link.close()
        link.__init__(federation.address, credentials, most_bytes=1 << 24, patience=20)  # type: ignore[misc]
        return answer

    credentials = client_credentials(federation.identity(2))
    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=reconnect if client == 2 else None)
    federation.wait_for(CLIENTS)
    found = federation.round(1)
    assert found.survivors == tuple(range(CLIENTS))
    np.testing.assert_array_equal(found.total, simulated(1))


def test_a_client_killed_in_mid_round_does_not_contribute_twice(federation: Federation, tmp_path: Path) -> None:
    """It comes back within the stage, with its memory and without its secrets: it sits the session out."""
    first = federation.join(0, tmp_path, answer=lambda link, step, answer: None)
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    federation.clients = replace(federation.clients, deadlines=Deadlines(stage=4, training=4))
    done: list[Aggregate] = []
    running = threading.Thread(target=lambda: done.append(federation.round(1)))
    running.start()
    assert eventually(lambda: first.participant.position == (1, 0))
    first.stop()
    first.join(5)
    second = federation.join(0, tmp_path)
    running.join(20)
    assert done[0].survivors == tuple(range(1, CLIENTS))
    np.testing.assert_array_equal(done[0].total, simulated(1, {0: None}))
    assert "begun" in second.declined[0]
    np.testing.assert_array_equal(federation.round(2).total, simulated(2))  # and takes part in the next one


def test_a_client_that_declines_is_not_waited_for_and_its_reason_is_on_record(
    federation: Federation, tmp_path: Path
) -> None:
    federation.join(0, tmp_path, limits=Limits(min_cohort=100))
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    started = time.monotonic()
    found = federation.round(1)
    assert time.monotonic() - started < 4  # of a deadline of 5 seconds
    assert found.survivors == tuple(range(1, CLIENTS))
    (refused,) = [e for e in events(tmp_path) if e["event"] == "refused"]
    assert (refused["client"], refused["cause"]) == (0, "declined by client: min-cohort")
    assert federation.tally.refused == {"declined by client: min-cohort": 1}
    assert "below --min-cohort 100" in refused["reason"]


def test_a_refusal_of_an_earlier_round_comes_late(federation: Federation, tmp_path: Path) -> None:
    """The client is in the round under way, and waited for."""

    def refuses_the_first(link: Link, step: int, answer: bytes) -> bytes:
        if federation.parties[0].participant.position == (2, Stage.UNMASK):
            time.sleep(0.5)  # all others have answered
            link.refuse(1, DeclinedError("other", "on second thoughts"))
            time.sleep(0.5)
        return answer

    for client in range(CLIENTS):
        federation.join(client, tmp_path, answer=refuses_the_first if client == 0 else None)
    federation.wait_for(CLIENTS)
    for number in (1, 2):
        federation.round(number)
    assert [e["last_stage"] for e in events(tmp_path) if e["event"] == "round"] == [{}, {}]
    assert federation.tally.refused == {"declined by client: other": 1}


def test_training_that_fails_on_one_client_costs_the_round_nothing(federation: Federation, tmp_path: Path) -> None:
    def fails(number: int) -> None:
        raise DeclinedError("local training", "local training gave an update that is not finite")

    federation.join(0, tmp_path, half=FakeHalf(0, before=fails))
    for client in range(1, CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    found = federation.round(1)
    np.testing.assert_array_equal(found.total, simulated(1, {0: Stage.SHARE_KEYS}))


def test_events_hold_no_secret_and_no_update(federation: Federation, tmp_path: Path) -> None:
    for client in range(CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    federation.round(1)
    known = {"time", "event", "client", "cause", "reason", "round", "cohort", "last_stage", "aborted"}
    found = events(tmp_path)
    assert found
    assert all(event.keys() <= known for event in found)


def test_without_masks_the_sum_is_the_plain_one_and_the_server_sees_each_vector(
    federation: Federation, tmp_path: Path
) -> None:
    federation.clients = replace(federation.clients, aggregation=PlainAggregation())
    for client in range(CLIENTS):
        federation.join(client, tmp_path, half=PlainHalf(client), limits=Limits(allow_unmasked=True))
    federation.wait_for(CLIENTS)
    found = federation.round(1)
    expected = PlainAggregation().sum(
        inputs_of(1, range(CLIENTS)), {c: update_of(c, 1) for c in range(CLIENTS)}, {}
    )
    np.testing.assert_array_equal(found.total, expected.total)
    assert sorted(found.received) == list(range(CLIENTS))


def test_a_vector_in_the_clear_that_is_too_long_or_no_number_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    federation.clients = replace(federation.clients, aggregation=PlainAggregation())
    for client in range(CLIENTS):
        factor = {2: 2.1, 3: np.nan, 4: np.inf}.get(client, 1.0)
        half = PlainHalf(client, factor=factor)
        federation.join(client, tmp_path, half=half, limits=Limits(allow_unmasked=True))
    federation.clients = replace(federation.clients, deadlines=Deadlines(2, 2))
    federation.wait_for(CLIENTS)
    assert federation.round(1).survivors == (0, 1, 5, 6, 7)
    assert federation.tally.refused == {"Frame": 3}


def test_a_client_that_wants_masks_sends_nothing_in_the_clear(federation: Federation, tmp_path: Path) -> None:
    federation.clients = replace(federation.clients, aggregation=PlainAggregation())
    for client in range(CLIENTS):
        federation.join(client, tmp_path, half=PlainHalf(client), limits=Limits(allow_unmasked=client > 0))
    federation.wait_for(CLIENTS)
    assert federation.round(1).survivors == tuple(range(1, CLIENTS))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_wrong_share_is_named_as_what_ended_the_round(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in range(CLIENTS):
        federation.join(client, tmp_path)
    federation.wait_for(CLIENTS)
    close, stages = Server.close_stage, list[None]()

    def with_a_wrong_share(server: Server) -> Any:
        stages.append(None)
        if len(stages) == len(Stage):
            raise CorruptShareError("revealed a wrong share of client 2's seed", offender=5)
        return close(server)

    monkeypatch.setattr(Server, "close_stage", with_a_wrong_share)
    with pytest.raises(RoundAborted, match="at stage UNMASK: a share is wrong: client 5: revealed") as aborted:
        federation.round(1)
    assert "clients left" not in str(aborted.value)
    assert aborted.value.survivors == CLIENTS
    assert federation.tally.refused == {"CorruptShare": 1}
    monkeypatch.undo()
    assert federation.round(2).survivors == tuple(range(CLIENTS))
