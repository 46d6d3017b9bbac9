"""A server that lies: each lie is refused by an honest client, which sends nothing more in that round."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import CLIENTS, DIMENSION, WEIGHTS, FakeHalf, model_of

from privfed.config import Settings
from privfed.errors import OutputError
from privfed.network import frames, pki
from privfed.network.certificates import Authority, Certificate, from_pem
from privfed.network.errors import DeclinedError
from privfed.network.frames import Closed, Invitation, Offer, Relay
from privfed.network.limits import Limits
from privfed.network.memory import ClientMemory
from privfed.network.participant import Participant
from privfed.network.plan import accepted, offered
from privfed.privacy.accounting import Guarantee
from privfed.secagg import Directory, Identity, SecAggParams, Server, Stage, decode, encode
from privfed.secagg.messages import SurvivorList, UnmaskRequest

RUN, OFFER = "0" * 32, "1" * 64
COHORT = range(5)


class Table:
    """A server's side with the real state machine, and clients that answer it; nothing crosses a network."""

    def __init__(self, folder: Path, memories: Path, limits: Limits) -> None:
        self.folder = folder
        self.certificates: dict[int, Certificate] = {}
        self.participants: dict[int, Participant] = {}
        for client in range(CLIENTS):
            identity = pki.read_identity(folder / f"client-{client}.pem")
            authority = Authority(identity.authority)
            assert identity.signing_key is not None
            memory = ClientMemory(memories / str(client))
            memory.accept(RUN, OFFER, 1.0, 50)
            self.certificates[client] = authority.client(from_pem(identity.certificate))
            self.participants[client] = Participant(
                FakeHalf(client),
                Identity.from_private_bytes(identity.signing_key),
                authority,
                limits,
                memory,
                RUN,
                pki.read_revocations(folder / "revoked.pem", authority),
            )

    def close(self) -> None:
        for participant in self.participants.values():
            participant._memory.close()

    def params(self, members: Sequence[int] = COHORT, session: bytes = b"s" * 16, number: int = 2) -> SecAggParams:
        expected = FakeHalf(0).expected(len(members))
        return SecAggParams(
            session, number, tuple(members), expected.threshold, expected.dimension, ring_bits=expected.ring_bits
        )

    def server(self, params: SecAggParams, weights: Any = WEIGHTS) -> Server:
        directory = Directory({c: self.certificates[c].key for c in params.client_ids})
        return Server(params, directory, model=model_of(weights))

    def invitation(self, params: SecAggParams, weights: Any = WEIGHTS, **changes: Any) -> bytes:
        ders = [self.certificates[c].der for c in params.client_ids]
        values = {
            "round": params.round_number,
            "cohort": len(params.client_ids),
            "members": list(params.client_ids),
            "certificates": [len(der) for der in ders],
            "session": params.session.hex(),
            "threshold": params.threshold,
            "dimension": params.dimension,
            "ring_bits": params.ring_bits,
        }
        body = changes.pop("body", weights.astype("<f4").tobytes() + b"".join(ders))
        return frames.encode(Invitation(**{**values, **changes}), body)

    def until(self, params: SecAggParams, stage: Stage, absent: Sequence[int] = ()) -> tuple[Server, Any]:
        """An honest round up to the messages that the server sends after ``stage``."""
        server = self.server(params)
        mail: dict[int, bytes] = dict.fromkeys(params.client_ids, self.invitation(params))
        outgoing: Any = {}
        for at in list(Stage)[: stage + 1]:
            for client in mail:
                if client in absent and at >= Stage.MASKED_INPUT:
                    continue
                answer = self.participants[client].receive(mail[client])
                assert answer is not None
                relay, body = frames.decode(answer, Relay)
                assert (relay.round, relay.step) == (params.round_number, at)
                server.receive(decode(bytes(body), peer=client))  # type: ignore[arg-type]
            outgoing = server.close_stage()
            mail = {c: relayed(params, at + 1, m) for c, m in outgoing.items()}
        return server, outgoing


def relayed(params: SecAggParams, step: int, message: Any) -> bytes:
    return frames.encode(Relay(round=params.round_number, step=step), encode(message))


MakeTable = Callable[..., Table]


@pytest.fixture
def make_table(authority_folder: Path, tmp_path: Path) -> Iterator[MakeTable]:
    made: list[Table] = []

    def make(limits: Limits | None = None, folder: Path = authority_folder) -> Table:
        made.append(Table(folder, tmp_path / f"memories {len(made)}", limits or Limits()))
        return made[-1]

    yield make
    for table in made:
        table.close()


@pytest.fixture
def table(make_table: MakeTable) -> Table:
    return make_table()


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
        identity = pki.read_identity(tmp_path / "mine" / f"client-{client}.pem")
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


PLAN = Settings.model_validate(
    {
        "privacy": {
            "mechanism": "discrete_gaussian",
            "clip_norm": 0.5,
            "noise_multiplier": 1.0,
            "randomness": "secure",
        },
        "secure_aggregation": {"mode": "protocol", "threshold": 9},
        "data": {"clients": 20},
    }
)


def changed(section: str, **values: Any) -> Settings:
    tree = PLAN.model_dump(exclude_none=True)
    tree[section] |= values
    return Settings.model_validate(tree)


def test_a_plan_within_the_limits_is_accepted() -> None:
    Limits(min_noise=1.0, model_hash="a" * 64).check_settings(PLAN, "a" * 64)


@pytest.mark.parametrize(
    ("settings", "limits", "cause", "words"),
    [
        (changed("privacy", noise_multiplier=0.99), Limits(min_noise=1.0), "min-noise", "below --min-noise 1"),
        (changed("privacy", randomness="research"), Limits(), "allow-research", "known seed"),
        (changed("secure_aggregation", mode="ring"), Limits(), "allow-unmasked", "not masked"),
        (PLAN, Limits(model_hash="b" * 64), "model-hash", "not that of --model-hash"),
        (
            changed("privacy", clip_norm=0.6),
            Limits(max_clip_norm=0.5),
            "max-clip-norm",
            r"plan's clip norm, 0\.6, is above --max-clip",
        ),
    ],
)
def test_a_plan_below_the_limits_is_refused(settings: Settings, limits: Limits, cause: str, words: str) -> None:
    with pytest.raises(DeclinedError, match=words) as declined:
        limits.check_settings(settings, "a" * 64)
    assert declined.value.cause == cause


def test_a_plan_without_noise_is_refused_where_noise_is_asked_for() -> None:
    tree = PLAN.model_dump(exclude_none=True)
    tree["privacy"] = {"clip_norm": 0.5, "randomness": "secure"}
    with pytest.raises(DeclinedError, match="noise multiplier None"):
        Limits(min_noise=0.1).check_settings(Settings.model_validate(tree), "a" * 64)


def offer_of(settings: Settings) -> Offer:
    return Offer(
        run=RUN,
        settings=offered(settings, settings.privacy.noise_multiplier, 20),
        clients=20,
        input_shape=[8, 8, 1],
        classes=10,
        initial_sha256="0" * 64,
    )


@pytest.mark.parametrize("lie", [{"clip_norm": 50.0}, {"noise_multiplier": 0.01}])
def test_a_server_that_changes_clip_norm_or_noise_of_an_accepted_plan_is_refused(
    tmp_path: Path, lie: dict[str, float]
) -> None:
    """A client clips and noises by the plan that it accepted, and no other."""
    memory = ClientMemory(tmp_path / "memory")
    memory.close()
    honest = offer_of(PLAN)
    memory.accept(RUN, frames.digest(honest), 1.0, 20)
    memory.check(RUN, frames.digest(offer_of(accepted(honest.settings))))
    with pytest.raises(DeclinedError, match="not the one that was accepted") as declined:
        memory.check(RUN, frames.digest(offer_of(changed("privacy", **lie))))
    assert declined.value.cause == "plan changed"
    assert "noise_multiplier" not in Invitation.model_fields


def test_a_server_that_raises_the_clip_norm_in_an_invitation_is_refused(table: Table) -> None:
    """It is named only where the plan lets it move; test_network_stateful.py has how far."""
    params = table.params()
    declines(table.participants[0], table.invitation(params, clip_norm=50.0), "clip norm", "names a clip norm")
    assert (
        table.participants[0].receive(table.invitation(params)) is not None
    )  # but for that it would have gone along


def test_a_server_that_moves_the_clip_norm_beyond_the_clients_own_limit_is_refused(table: Table) -> None:
    """Whatever the accepted plan can come to."""
    limits = Limits(max_clip_norm=0.5)

    def invited(clip_norm: float) -> Invitation:
        frame, _ = frames.decode(table.invitation(table.params(), clip_norm=clip_norm), Invitation)
        return frame

    limits.check_round(invited(0.5))
    with pytest.raises(DeclinedError, match=r"round's clip norm, 0\.51, is above --max-clip-norm 0\.5"):
        limits.check_round(invited(0.51))
    limits.check_settings(changed("privacy", clip_norm=0.5), "a" * 64)


def guarantee(epsilon: float) -> Guarantee:
    return Guarantee(epsilon, 1e-5, "client", "", "", "", epsilon, "", 1, 1.0)


def test_the_budget_is_of_all_runs_together() -> None:
    limits, spent = Limits(max_epsilon=3.0), {"server": guarantee(2.0), "release": guarantee(1.0)}
    assert limits.check_epsilon(spent, 0.0) == 2.0
    assert limits.check_epsilon(spent, 1.0) == 2.0
    with pytest.raises(DeclinedError, match=r"on top of 1\.5") as declined:
        limits.check_epsilon(spent, 1.5)
    assert declined.value.cause == "max-epsilon"
    assert Limits(max_epsilon=3.0, against="release").check_epsilon(spent, 1.5) == 1.0
    with pytest.raises(DeclinedError, match="ε = inf"):
        Limits(max_epsilon=3.0, against="active server").check_epsilon(spent, 0.0)
    assert math.isinf(Limits().check_epsilon({}, 0.0))


def test_a_memory_outlives_its_process_and_is_one_processs(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path / "memory")
    memory.accept(RUN, OFFER, 1.5, 2)
    memory.claim_contribution(RUN, 1)
    memory.note_revocations(RUN, 7)
    with pytest.raises(OutputError, match="One process at a time"):
        ClientMemory(tmp_path / "memory")
    memory.close()
    again = ClientMemory(tmp_path / "memory")
    assert again.spent_elsewhere("another") == 1.5
    again.claim_contribution(RUN, 2)
    with pytest.raises(DeclinedError, match="all 2 rounds"):
        again.claim_contribution(RUN, 2)
    with pytest.raises(DeclinedError, match="older than 7"):
        again.note_revocations(RUN, 6)
    again.close()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "os:getcwd"}},
        {"training": {"weighted": True}, "privacy": {}},
        {"executor": "tff"},
        {"nothing": 1},
    ],
)
def test_a_plan_that_a_client_cannot_or_must_not_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DeclinedError, match="plan"):
        accepted({**offered(PLAN, 1.0, 20), **change})


def test_the_servers_folders_are_not_in_the_offer() -> None:
    settings = changed("data", source="npy:/srv/private", partition="natural")
    assert b"/srv/private" not in frames.encode(offer_of(settings))
