"""A server that lies in a round: each lie is refused by an honest client, which sends nothing more in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import CLIENTS, DIMENSION, WEIGHTS, PlainHalf
from roundtable import COHORT, RUN, Table, relayed

from privfed.network import frames, pki
from privfed.network.certificates import Authority, from_pem
from privfed.network.errors import DeclinedError
from privfed.network.frames import Closed, Relay
from privfed.network.identity_file import read_identity
from privfed.network.limits import Limits
from privfed.network.participant import Participant
from privfed.secagg import SecAggParams, Stage, decode
from privfed.secagg.messages import SurvivorList, UnmaskRequest

MakeTable = Callable[..., Table]


def declines(participant: Participant, data: bytes, cause: str, words: str) -> None:
    with pytest.raises(DeclinedError, match=words) as declined:
        participant.receive(data)
    assert declined.value.cause == cause


def says_nothing_more(table: Table, client: int, params: SecAggParams, outgoing: Any) -> None:
    """Whatever honest message comes now, this client is out of the round."""
    for step, message in outgoing:
        assert table.participants[client].receive(relayed(params, step, message)) is None


def test_an_honest_round_ends_with_the_sum(table: Table) -> None:
    server, _ = table.until(table.params(), Stage.UNMASK)
    assert server.survivors == tuple(COHORT)


def test_a_server_that_sends_two_models_is_refused(table: Table) -> None:
    params = table.params()
    other = WEIGHTS + np.float32(0.25)
    advertised = {}
    for client in COHORT:
        data = table.invitation(params, WEIGHTS if client else other)
        answer = table.participants[client].receive(data)
        assert answer is not None
        advertised[client] = decode(bytes(frames.decode(answer, Relay)[1]), peer=client)
    # The honest state machine would refuse client 0's keys; this server puts them under its tree all the same.
    server = table.server(params)
    server._take_keys = lambda message: server._keys.__setitem__(message.sender, message)  # type: ignore[method-assign]
    for message in advertised.values():
        server.receive(message)  # type: ignore[arg-type]
    rosters = server.close_stage()
    for client in COHORT:
        declines(
            table.participants[client], relayed(params, 1, rosters[client]), "models differ", "different models"
        )


def test_a_server_that_asks_for_both_shares_is_refused(table: Table) -> None:
    """It calls client 4 a survivor to get its seed, and then dropped to get its mask key."""
    params = table.params()
    _, requests = table.until(params, Stage.CONSISTENCY)
    victim, asked = 4, 0
    participant = table.participants[asked]
    assert participant.receive(relayed(params, 4, requests[asked])) is not None  # the seeds of all survivors
    without = SurvivorList(tuple(c for c in COHORT if c != victim))
    declines(participant, relayed(params, 3, without), "masking", "not taken in state DONE")


@pytest.mark.parametrize("lie", ["calls the client itself dropped", "drops below the threshold"])
def test_a_server_that_lies_about_survivors_is_refused(table: Table, lie: str) -> None:
    params = table.params()
    _, lists = table.until(params, Stage.MASKED_INPUT)
    assert lists[0].survivors == tuple(COHORT)
    told = (1, 2, 3, 4) if lie == "calls the client itself dropped" else (0, 1)
    declines(
        table.participants[0],
        relayed(params, 3, SurvivorList(told)),
        "survivors differ",
        "calls client 0 dropped|below the thresh",
    )
    says_nothing_more(table, 0, params, [(3, lists[0])])


def test_a_server_that_shows_two_survivor_lists_is_refused(table: Table) -> None:
    """Client 0 signs that 4 survived, the others sign that it dropped: both its secrets would come out."""
    params = table.params()
    _, lists = table.until(params, Stage.MASKED_INPUT)
    signed = {}
    for client in range(4):
        told = lists[0] if client == 0 else SurvivorList((0, 1, 2, 3))
        answer = table.participants[client].receive(relayed(params, 3, told))
        assert answer is not None
        signed[client] = decode(bytes(frames.decode(answer, Relay)[1]), peer=client).signature  # type: ignore[union-attr]
    request = UnmaskRequest(0, {c: s for c, s in signed.items() if c != 0}, dict.fromkeys((1, 2, 3, 4), b"t" * 32))
    declines(
        table.participants[0],
        relayed(params, 4, request),
        "survivors differ",
        "did not sign the roster, model and survivor list",
    )


def test_a_cohort_below_the_clients_minimum_is_refused(make_table: MakeTable) -> None:
    table = make_table(Limits(min_cohort=6))
    declines(table.participants[0], table.invitation(table.params()), "min-cohort", "below --min-cohort 6")
    assert table.participants[0].receive(table.invitation(table.params(range(6)))) is not None


def test_a_threshold_below_the_clients_minimum_is_refused(make_table: MakeTable) -> None:
    table = make_table(Limits(min_threshold=4))
    declines(table.participants[0], table.invitation(table.params()), "min-threshold", "below --min-threshold 4")


def test_a_cohort_of_sybils_is_refused(table: Table, tmp_path: Path) -> None:
    """The server fills the cohort with clients of its own making: the authority did not sign them."""
    pki.create(tmp_path / "mine")
    for client in range(1, 5):
        pki.issue(tmp_path / "mine", client=client)
        identity = read_identity(tmp_path / "mine" / f"client-{client}.pem")
        mine = Authority(identity.authority).client(from_pem(identity.certificate))
        table.certificates[client] = mine
    declines(table.participants[0], table.invitation(table.params()), "foreign member", "another authority")


def test_one_certificate_does_not_stand_for_two_clients(table: Table) -> None:
    table.certificates[3] = table.certificates[2]
    declines(
        table.participants[0], table.invitation(table.params()), "foreign member", "client 2 stands for client 3"
    )


def test_a_client_whose_own_key_was_replaced_declines(table: Table, tmp_path: Path) -> None:
    table.certificates[0] = replace(table.certificates[0], der=table.certificates[1].der)
    declines(
        table.participants[0], table.invitation(table.params()), "foreign member", "client 1 stands for client 0"
    )


def test_a_revoked_member_is_refused(make_table: MakeTable, authority_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(authority_folder, tmp_path / "ca")
    pki.revoke(tmp_path / "ca", client=2)
    table = make_table(folder=tmp_path / "ca")
    declines(table.participants[0], table.invitation(table.params()), "revoked member", "client 2 was revoked")


LIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "another ring": ({"ring_bits": 16}, "plan mismatch", "the accepted plan for"),
    "another length": ({"dimension": DIMENSION + 1}, "plan mismatch", "the accepted plan for"),
    "a lower threshold": ({"threshold": 2}, "plan mismatch", "the accepted plan for"),
    "a round that the plan has not": ({"round": 51}, "plan mismatch", "not among the plan's 50"),
    "round 0": ({"round": 0}, "plan mismatch", "not among"),
    "fewer drawn than there are": ({"cohort": 4}, "plan mismatch", "more clients are there than were drawn"),
    "more drawn than there are at all": (
        {"cohort": 2**31},
        "plan mismatch",
        f"2147483648 clients were drawn of the plan's {CLIENTS}",
    ),
    "no certificates": ({"certificates": []}, "malformed frame", "announced length"),
    "a body that is too short": ({"body": b"short"}, "malformed frame", "announced length"),
    "weights that are no numbers": (
        {"body": np.full(DIMENSION, np.nan, "<f4").tobytes(), "certificates": []},
        "model",
        "not finite",
    ),
    "a session without masks": (
        {"session": "", "threshold": 0, "ring_bits": 0},
        "min-threshold",
        "below --min-threshold",
    ),
    "members twice": ({"members": [0, 0, 1, 2, 3]}, "foreign member", "stands for|ascending"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_invitation_that_is_not_the_plans_is_refused(table: Table, lie: str) -> None:
    changes, cause, words = LIES[lie]
    declines(table.participants[0], table.invitation(table.params(), **changes), cause, words)


def test_a_client_that_would_send_in_the_clear_does_not_where_the_plan_masks(make_table: MakeTable) -> None:
    table = make_table(Limits(allow_unmasked=True))
    plain = {"session": "", "threshold": 0, "ring_bits": 0, "certificates": [], "members": []}
    body = WEIGHTS.astype("<f4").tobytes()
    declines(
        table.participants[0],
        table.invitation(table.params(), body=body, **plain),
        "plan mismatch",
        "the accepted plan for",
    )


def test_training_that_fails_in_the_clear_is_no_contribution(make_table: MakeTable) -> None:
    table = make_table(Limits(allow_unmasked=True))
    participant = table.participants[0]

    def fails(number: int) -> None:
        raise DeclinedError("local training", "local training gave an update that is not finite")

    participant._half = half = PlainHalf(0, before=fails)
    plain = {"session": "", "threshold": 0, "ring_bits": 0, "certificates": [], "members": []}
    invitation = table.invitation(
        table.params(), body=WEIGHTS.astype("<f4").tobytes(), dimension=DIMENSION, **plain
    )
    declines(participant, invitation, "local training", "not finite")
    assert participant._memory._runs[RUN].contributed == 0
    half.before = lambda number: None
    assert participant.receive(invitation) is not None
    assert participant._memory._runs[RUN].contributed == 1


def test_a_first_round_with_other_weights_is_refused(table: Table) -> None:
    crafted = WEIGHTS * np.float32(1000)
    params = table.params(number=1)
    declines(table.participants[0], table.invitation(params, crafted), "model", "initial weights")
    assert table.participants[1].receive(table.invitation(params)) is not None


def test_a_session_is_not_begun_twice_not_even_by_another_process(table: Table) -> None:
    params = table.params()
    assert table.participants[0].receive(table.invitation(params)) is not None
    declines(table.participants[0], table.invitation(params), "session used", "has begun .* before")


def test_no_more_rounds_are_contributed_to_than_the_plan_accounts_for(table: Table) -> None:
    memory = table.participants[0]._memory
    for _ in range(50):
        memory.claim_contribution(RUN, 1)
    params = table.params()
    server = table.server(params)
    for client in COHORT:
        answer = table.participants[client].receive(table.invitation(params))
        assert answer is not None
        server.receive(decode(bytes(frames.decode(answer, Relay)[1]), peer=client))  # type: ignore[arg-type]
    for client, roster in server.close_stage().items():
        answer = table.participants[client].receive(relayed(params, 1, roster))
        assert answer is not None
        server.receive(decode(bytes(frames.decode(answer, Relay)[1]), peer=client))  # type: ignore[arg-type]
    inboxes = server.close_stage()
    declines(table.participants[0], relayed(params, 2, inboxes[0]), "rounds used up", "all 50 rounds")
    assert table.participants[1].receive(relayed(params, 2, inboxes[1])) is not None


def test_what_the_server_sends_after_the_end_is_not_answered(table: Table) -> None:
    params = table.params()
    _, lists = table.until(params, Stage.MASKED_INPUT)
    closed = frames.encode(Closed(round=params.round_number, aborted=True))
    assert table.participants[0].receive(closed) is None
    says_nothing_more(table, 0, params, [(3, lists[0])])


def test_a_server_that_raises_the_clip_norm_in_an_invitation_is_refused(table: Table) -> None:
    """It is named only where the plan lets it move; test_network_stateful.py has how far."""
    params = table.params()
    declines(table.participants[0], table.invitation(params, clip_norm=50.0), "clip norm", "names a clip norm")
    assert (
        table.participants[0].receive(table.invitation(params)) is not None
    )  # but for that it would have gone along
