"""Who sees what: every observer's view of one recorded round, in every mode, and the file it is kept in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privfed.models.functional import Model, VariableSpec
from privfed.transcript import Kind, Observer, Plan, RoundRecord, Transcript

D, CLIENTS = 6, (3, 5, 8, 9)
MODEL = Model("test", (2,), 2, (VariableSpec("w", (D,)),), lambda w, x: x, lambda rng: [np.zeros(D, np.float32)])


def make_transcript(mode: str, *, server_scale: float | None = 1.0, divisor: float | None = 4.0) -> Transcript:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=D).astype(np.float32)
    updates = {c: rng.normal(size=D) for c in CLIENTS}
    total = sum(updates.values(), np.zeros(D))
    new = (weights + total / 4).astype(np.float32)
    uploads = {c: rng.normal(size=D) for c in CLIENTS} if mode == "protocol" else {}
    plan = Plan(0.1, 1, 2, server_scale, 1.0, 0.5, divisor, mode)
    record = RoundRecord(1, weights, new, (*CLIENTS, 11), updates, dict.fromkeys(CLIENTS, 1.0), uploads, total, 3)
    return Transcript(plan, weights, new, 1, [record])


@pytest.mark.parametrize("mode", ["off", "ring"])
@pytest.mark.parametrize("observer", [Observer.SERVER, Observer.SERVER_WITH_COLLUDERS, Observer.ACTIVE_SERVER])
def test_without_masks_every_server_sees_each_update(mode: str, observer: Observer) -> None:
    transcript = make_transcript(mode)
    view = transcript.view(observer, MODEL)
    assert [o.kind for o in view.observations] == [Kind.CLIENT_UPDATE] * 4
    for seen in view.observations:
        np.testing.assert_array_equal(seen.vector, transcript.records[0].updates[seen.clients[0]])


def test_under_masks_the_server_sees_a_sum_and_masked_uploads_only() -> None:
    transcript = make_transcript("protocol")
    observations = transcript.view(Observer.SERVER, MODEL).observations
    assert [o.kind for o in observations] == [Kind.SUM] + [Kind.MASKED_UPLOAD] * 4
    np.testing.assert_array_equal(observations[0].vector, transcript.records[0].total)
    assert observations[0].contributors == 4
    plain = transcript.records[0].updates.values()
    assert not any(np.allclose(o.vector, update) for o in observations for update in plain)


def test_colluders_take_their_own_updates_off_the_sum() -> None:
    transcript = make_transcript("protocol")
    seen = transcript.view(Observer.SERVER_WITH_COLLUDERS, MODEL, colluders=3).observations[0]
    assert seen.clients == (9,)
    np.testing.assert_allclose(seen.vector, transcript.records[0].updates[9], atol=1e-12)
    # One honest client is always left: an observer that is everybody has nothing to attack.
    assert transcript.view(Observer.SERVER_WITH_COLLUDERS, MODEL, colluders=99).observations[0].clients == (9,)


def test_an_active_server_calls_clients_dropped_down_to_the_threshold() -> None:
    transcript = make_transcript("protocol")
    seen, *uploads = transcript.view(Observer.ACTIVE_SERVER, MODEL, colluders=1).observations
    assert (seen.kind, seen.clients, seen.contributors) == (Kind.SUM, (5, 8), 2.0)  # three needed, one its own
    updates = transcript.records[0].updates
    np.testing.assert_allclose(seen.vector, updates[5] + updates[8], atol=1e-12)
    assert {o.kind for o in uploads} == {Kind.MASKED_UPLOAD}
    assert [o.clients for o in uploads] == [(5,), (8,), (9,)]


def test_under_encryption_servers_see_sums_and_an_active_one_what_it_has_decrypted() -> None:
    transcript = make_transcript("bfv")
    updates = transcript.records[0].updates
    (seen,) = transcript.view(Observer.SERVER, MODEL).observations  # no ciphertext is kept
    assert (seen.kind, seen.clients) == (Kind.SUM, CLIENTS)
    (rest,) = transcript.view(Observer.SERVER_WITH_COLLUDERS, MODEL, colluders=1).observations
    np.testing.assert_allclose(rest.vector, seen.vector - updates[CLIENTS[0]], atol=1e-12)
    chosen = transcript.view(Observer.ACTIVE_SERVER, MODEL, colluders=1).observations
    assert [o.kind for o in chosen] == [Kind.CLIENT_UPDATE] * 4
    for one in chosen:
        np.testing.assert_array_equal(one.vector, updates[one.clients[0]])


def test_an_observer_knows_how_much_noise_clients_add() -> None:
    quiet = make_transcript("protocol")
    loud = Transcript(replace(quiet.plan, client_noise_stddev=0.2), *list(vars(quiet).values())[1:])
    assert loud.view(Observer.SERVER, MODEL).observations[0].noise_stddev == pytest.approx(0.4)
    open_plan = replace(loud.plan, mode="off")
    assert Transcript(open_plan, *list(vars(quiet).values())[1:]).view(Observer.SERVER, MODEL).observations[
        0
    ].noise_stddev == pytest.approx(0.2)


@pytest.mark.parametrize("observer", [Observer.CLIENT, Observer.RELEASE])
def test_a_difference_of_models_is_in_units_of_the_sum(observer: Observer) -> None:
    transcript = make_transcript("protocol")
    (seen,) = transcript.view(observer, MODEL).observations
    assert seen.kind is Kind.MODEL_DIFFERENCE
    np.testing.assert_allclose(seen.vector, transcript.records[0].total, atol=1e-6)
    assert (seen.contributors, seen.noise_stddev) == (4.0, 0.5)
    assert seen.clients == CLIENTS


def test_a_memoryful_server_step_keeps_the_models_difference_as_it_is() -> None:
    (seen,) = make_transcript("off", server_scale=None, divisor=None).view(Observer.CLIENT, MODEL).observations
    np.testing.assert_allclose(seen.vector / 4, make_transcript("off").records[0].total / 4, atol=1e-6)


def test_file_round_trip(tmp_path: Path) -> None:
    transcript = make_transcript("protocol")
    path = tmp_path / "transcript.npz"
    assert len(transcript.save(path)) == 64
    loaded = Transcript.load(path)
    for observer in Observer:
        before, after = transcript.view(observer, MODEL), loaded.view(observer, MODEL)
        assert before.plan == after.plan
        for a, b in zip(before.observations, after.observations, strict=True):
            np.testing.assert_array_equal(a.vector, b.vector)
            assert (a.kind, a.clients, a.contributors) == (b.kind, b.clients, b.contributors)
    assert loaded.records[0].threshold == 3


def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="not a transcript"):
        Transcript.load(path)
