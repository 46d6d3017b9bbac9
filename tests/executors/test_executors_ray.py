"""Ray's actors give the bits of ``local``, whoever of them dies; one cluster serves all tests of this file."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from privfed.errors import PrivFedError
from privfed.executors.local import LocalClientWork, configure_threads
from privfed.federated.aggregation import PlainAggregation, RingAggregation
from privfed.federated.client_work import Conditions, LocalTraining
from privfed.federated.cohorts import Cohort
from privfed.federated.round import Round
from privfed.federated.server_update import sgd
from privfed.federated.streams import Streams
from privfed.models.build import build_model
from privfed.privacy.distributed import DistributedParams
from privfed.privacy.mechanisms import CentralGaussian, DistributedNoise, LocalGaussian
from privfed.secagg import RingSum

configure_threads()

SEED, CLIENTS = (3, 1), 40
TRAINING = LocalTraining(0.1, 2, 5)
UNDER = Conditions(0.5)
STORE_MIB = 200


def population():
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 25, CLIENTS)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    pixels = rng.integers(0, 256, (offsets[-1], 8, 8, 1)).astype(np.uint8)
    return pixels, rng.integers(0, 10, offsets[-1]).astype(np.int32), offsets


def cohort():
    return np.random.default_rng(1).permutation(CLIENTS)[:31].tolist()


def same(left, right, names):
    for name in names:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


SUM = ("total", "clients", "norms", "finite", "loss_sum", "correct", "seen")
UPDATES = ("clients", "deltas", "examples", "loss_sum", "correct", "seen")


def joined(chunks):
    chunks = list(chunks)
    return {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in UPDATES}


def test_parts_alone_decide_the_bits_of_a_sum():
    model = build_model("softmax", (8, 8, 1), 10)
    weights = model.initial_vector(1)

    def total(threads, parts):
        work = LocalClientWork(model, *population(), TRAINING, threads=threads, parts=parts, path="loop")
        return work.clipped_sum(weights, cohort(), SEED, 0.3)

    plain = total(3, None)
    same(plain, total(1, 3), SUM)
    same(plain, total(2, 3), SUM)
    assert (total(1, 1).total != plain.total).any()


def test_ray_that_is_not_installed_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from privfed.executors.ray_cluster import Cluster

    with pytest.raises(PrivFedError, match=r"needs Ray.*privfed\[ray\]"):
        Cluster(None, 1, 100)


@pytest.fixture(scope="module")
def cluster():
    """What the tests share: an executor that finds Ray running does not start it again, and leaves it on."""
    pytest.importorskip("ray")
    from privfed.executors.ray_cluster import Cluster

    cluster = Cluster(None, 6, STORE_MIB)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def four(cluster):
    """An executor with four actors, who take seconds each to start."""
    from privfed.executors.ray import RayClientWork

    model = build_model("mlp", (8, 8, 1), 10)
    with RayClientWork(model, *population(), TRAINING, parts=3, workers=4) as work:
        yield model, work


def private_bytes(pid):
    """Memory of a process that it shares with nobody, and no file holds."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def with_workers(work, count):
    """The same executor with the first ``count`` of its actors."""
    from privfed.executors.ray_cluster import Crew
    from privfed.executors.ray_shards import Shards

    fewer = work.under(UNDER)
    fewer._crew = Crew(work._crew._workers.__getitem__, count)
    fewer._shards = Shards(*population(), max(3, count), count)
    return fewer


def ring_round(work, kind, weights):
    """One unrecorded round of mode ``ring``."""
    dimension, clients = len(weights), cohort()
    mechanism, bits = CentralGaussian(0.3, 0.5), None
    if kind == "skellam":
        params = DistributedParams.for_cohort("skellam", 0.3, dimension, 0.5, len(clients))
        mechanism, bits = DistributedNoise("skellam", params, CLIENTS, 2, masked=False), 32
    aggregation = RingAggregation(
        lambda number, threshold, model, width: RingSum(threshold, width), bits, None, False
    )
    one = Round(work, mechanism, aggregation, sgd(1.0), Streams(7, secure=False), float(len(clients)))
    return one(
        2, weights, one.initialize(dimension), Cohort(tuple(clients), {}), lambda w, survivors: None, record=False
    )


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
# Ray leaves files and processes to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestOnRay:
    @pytest.mark.parametrize("workers", [1, 2, 4])
    def test_bits_of_local_whatever_the_number_of_workers(self, four, workers):
        model, work = four[0], with_workers(four[1], workers)
        weights = model.initial_vector(1)
        local = LocalClientWork(model, *population(), TRAINING, threads=2, parts=3).under(UNDER)
        same(local.clipped_sum(weights, cohort(), SEED, 0.3), work.clipped_sum(weights, cohort(), SEED, 0.3), SUM)
        if workers == 2:
            exact = local.clipped_sum(weights, cohort(), SEED, 0.3, exact=True)
            same(exact, work.clipped_sum(weights, cohort(), SEED, 0.3, exact=True), SUM)
            here, there = (joined(w(weights, cohort(), SEED)) for w in (local, work))
            for name in UPDATES:
                np.testing.assert_array_equal(here[name], there[name])

    @pytest.mark.parametrize("mechanism", ["gaussian", "skellam"])
    def test_ring_sums_are_made_where_clients_train(self, four, mechanism, monkeypatch):
        from privfed.executors.ray_cluster import Crew

        asked, run = [], Crew.run
        monkeypatch.setattr(
            Crew, "run", lambda crew, method, *rest: asked.append(method) or run(crew, method, *rest)
        )
        model, work = four
        weights = model.initial_vector(1)
        local = LocalClientWork(model, *population(), TRAINING, threads=2, parts=3)
        expected = ring_round(local, mechanism, weights)
        for workers in (1, 2, 4):
            outcome = ring_round(with_workers(work, workers), mechanism, weights)
            np.testing.assert_array_equal(outcome.weights, expected.weights)
            assert {**vars(outcome.metrics), "seconds": 0} == {**vars(expected.metrics), "seconds": 0}
        assert asked == ["fold"] * 3  # never for single updates

    @pytest.mark.parametrize("weighted", [False, True])
    def test_noised_and_weighted_vectors_are_made_where_clients_train(self, four, weighted, monkeypatch):
        from privfed.executors.ray_cluster import Crew

        asked, run = [], Crew.run

        def told(crew, method, jobs, *rest):
            asked.append((method, len(jobs)))
            return run(crew, method, jobs, *rest)

        monkeypatch.setattr(Crew, "run", told)
        model, clients = four[0], tuple(cohort())
        weights, shares = model.initial_vector(1), np.linspace(0.1, 1, CLIENTS) if weighted else None

        def recorded(work):
            one = Round(
                work,
                LocalGaussian(0.3, 0.5),
                PlainAggregation(),
                sgd(1.0),
                Streams(7, secure=False),
                None if weighted else float(len(clients)),
                shares,
            )
            state, released = one.initialize(len(weights)), []
            return one(2, weights, state, Cohort(clients, {}), lambda w, survivors: released.append(w))

        work = four[1].under(UNDER)
        work._budget = 1  # room for one vector of each actor on its way
        here = recorded(LocalClientWork(model, *population(), TRAINING, threads=2, parts=3))
        there = recorded(work)
        np.testing.assert_array_equal(there.weights, here.weights)
        assert {**vars(there.metrics), "seconds": 0} == {**vars(here.metrics), "seconds": 0}
        for client in clients:
            np.testing.assert_array_equal(there.record.updates[client], here.record.updates[client])
        assert asked == [("fold", len(clients))]

    def test_a_worker_that_is_killed_in_mid_round_costs_no_bit(self, four):
        import ray

        model, work = four
        weights, work = model.initial_vector(1), work.under(UNDER)
        local = LocalClientWork(model, *population(), TRAINING, threads=2, parts=3).under(UNDER)
        victim = work._crew._workers[0]
        pid = ray.get(victim.__ray_call__.remote(lambda shard: os.getpid()))
        victim.__ray_call__.remote(lambda shard: time.sleep(60))  # its part of the round waits behind this
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        same(local.clipped_sum(weights, cohort(), SEED, 0.3), work.clipped_sum(weights, cohort(), SEED, 0.3), SUM)
        assert work.lost_workers == 1
        assert len(work._crew._free) == 4
        assert victim is not work._crew._workers[0]

    def test_a_worker_that_dies_over_its_piece_of_a_ring_sum_costs_no_bit(self, four):
        import ray

        def die_after_a_fold(shard):
            """In an actor: it ends when it has trained a piece, and before it can tell."""
            import os
            import signal

            from privfed.executors.local import LocalClientWork

            fold = LocalClientWork.fold

            def last(work, *arguments):
                fold(work, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            LocalClientWork.fold = last

        model, work = four
        weights, lost = model.initial_vector(1), work.lost_workers
        local = LocalClientWork(model, *population(), TRAINING, threads=2, parts=3)
        expected = ring_round(local, "skellam", weights)
        ray.get(work._crew._workers[1].__ray_call__.remote(die_after_a_fold))
        for dead in (1, 0):  # the new one works on
            outcome = ring_round(work, "skellam", weights)
            np.testing.assert_array_equal(outcome.weights, expected.weights)
            assert {**vars(outcome.metrics), "seconds": 0} == {**vars(expected.metrics), "seconds": 0}
            assert work.lost_workers == lost + dead
            lost = work.lost_workers

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_a_worker_has_its_share_of_a_population_that_no_object_store_would_hold(self, cluster):
        import ray

        from privfed.executors.ray import RayClientWork

        clients, each, parts = 64, 1 << 15, 8
        rng = np.random.default_rng(2)
        features = rng.random((clients * each, 8, 8, 1), np.float32)
        data = features, rng.integers(0, 10, len(features), np.int32), np.arange(clients + 1) * each
        assert features.nbytes > 2 * STORE_MIB << 20
        training, model = LocalTraining(0.1, 1, 1024, steps=1), build_model("softmax", (8, 8, 1), 10)
        expected = LocalClientWork(model, *data, training, parts=parts, threads=1).clipped_sum(
            model.initial_vector(1), range(clients), SEED, 0.3
        )
        with RayClientWork(model, *data, training, parts=parts, workers=2) as work:
            pids = [
                ray.get(worker.__ray_call__.remote(lambda shard: os.getpid()))
                for worker in work._crew._workers.values()
            ]
            before = [private_bytes(pid) for pid in pids]
            for _ in range(2):
                same(expected, work.clipped_sum(model.initial_vector(1), range(clients), SEED, 0.3), SUM)
            grown = [private_bytes(pid) - start for pid, start in zip(pids, before, strict=True)]
            assert work.lost_workers == 0
        # Half of the clients, and a part laid out; the rest is what TensorFlow takes.
        assert max(grown) < 0.8 * features.nbytes, grown
        assert min(grown) > 0.3 * features.nbytes, grown

    def test_a_cluster_that_starts_no_worker_is_not_waited_for_for_ever(self, cluster, monkeypatch):
        import ray

        from privfed.executors import ray_cluster
        from privfed.executors.ray_cluster import Job

        class Idle:
            def work(self):
                return 1

        monkeypatch.setattr(ray_cluster, "START_SECONDS", 1.0)
        monkeypatch.setattr(ray_cluster, "_POLL_SECONDS", 0.2)
        crew = ray_cluster.Crew(lambda seat: ray.remote(num_cpus=1000)(Idle).remote(), 1)  # more than there are
        with pytest.raises(PrivFedError, match=r"no worker has started.*ray status"):
            list(crew.run("work", [Job(0, lambda seat: ())]))
        crew.close()

    def test_a_job_that_kills_whoever_takes_it_is_given_up(self, cluster):
        import ray

        from privfed.executors.ray_cluster import ATTEMPTS, Crew, Job

        class Fragile:
            def work(self, deadly):
                if deadly:
                    os._exit(1)
                return os.getpid()

        def job(seat, deadly):
            return Job(seat, lambda seat: (deadly,))

        crew = Crew(lambda seat: ray.remote(num_cpus=0)(Fragile).remote(), 2)
        with pytest.raises(PrivFedError, match=rf"{ATTEMPTS} workers died over the same clients"):
            list(crew.run("work", [job(0, False), job(1, True), job(0, False)], 3))
        assert crew.lost == ATTEMPTS
        assert len(set(crew.run("work", [job(0, False)] * 8, 8))) <= 2
        crew.close()

    def test_an_error_in_an_actor_is_the_callers(self, four):
        model, work = four
        with pytest.raises(ValueError, match="clip_norm must be positive"):
            work.clipped_sum(model.initial_vector(1), cohort(), SEED, -1.0)

    def test_more_workers_than_cores_are_refused(self, cluster, four):
        from privfed.executors.ray import RayClientWork

        with pytest.raises(PrivFedError, match=r"ray\.workers: the cluster has 6 cores"):
            RayClientWork(four[0], *population(), TRAINING, parts=1, workers=7)
