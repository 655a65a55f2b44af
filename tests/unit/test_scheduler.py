"""Tests what happens to shards when workers die: every shard always ends exactly once, and the number of waiting
payloads is bounded."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.jobs.cluster import scheduler as scheduler_module
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.scheduler import Admission, PooledStage, Scheduler, SchedulerError
from pairmill.jobs.cluster.worker_backend import PayloadLost, Report, WorkerDied
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import FailureKind
from pairmill.schemas.manifest import ShardManifest

STAGES: list[StageName] = ["read", "download", "encode", "commit"]
PAYLOADS = {"read": 1, "download": 1, "encode": 1, "commit": 2}
"""Number of payloads that each stage receives. An encoder returns only what it changes, so the commit stage also gets
the result of the download stage."""

FAILED = Failure(FailureKind.SHARD, "failed", "failed")
DONE = ShardManifest.model_validate(
    dict.fromkeys(("shard", "first_row", "num_rows", "rows_in", "pairs", "rejects", "kept", "bytes_fetched"), 0)
    | dict.fromkeys(("attempt", "uri", "job_fingerprint"), "")
    | {name: {} for name in ("statuses", "files", "seconds", "versions")}
)


class Cluster:
    """A backend whose calls end in random order, with random deaths and losses. A payload is (shard, stages done)."""

    def __init__(self, seed: int, death: float = 0.0, loss: float = 0.0, failure: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.death, self.loss, self.failure = death, loss, failure
        self.alive: dict[int, str] = {}
        self.pending: dict[int, tuple[int, Any]] = {}
        self.told: set[int] = set()
        self.numbers = iter(range(10**9))
        self.most_under_way = 0

    def start(self, name: StageName, pool: Pool) -> tuple[int, int]:
        worker, token = next(self.numbers), next(self.numbers)
        self.alive[worker] = name
        self.pending[token] = (worker, None)
        return worker, token

    def call(self, worker: int, payloads: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int]]:
        assert worker in self.alive
        payload = payloads[-1]
        shard, done = payload
        assert len(payloads) == PAYLOADS[self.alive[worker]]
        assert self.alive[worker] == STAGES[done], "a shard skipped a stage"
        token = next(self.numbers)
        self.pending[token] = (worker, payload)
        calls = [payload for _, payload in self.pending.values() if payload]
        self.most_under_way = max(self.most_under_way, len(calls))
        return token, (shard, done + 1)

    def wait(self, timeout_s: float) -> list[int]:
        tokens = [token for token in self.pending if token not in self.told]
        some = [token for token in tokens if self.rng.random() < 0.3] or [self.rng.choice(tokens)]
        self.told.update(some)
        return some

    def result(self, token: int) -> Report:
        worker, payload = self.pending.pop(token)
        if worker not in self.alive or (payload and self.rng.random() < self.death):
            self.alive.pop(worker, None)
            raise WorkerDied("killed")
        if payload is None:
            return Report(node=str(worker % 3))
        if self.rng.random() < self.loss:
            raise PayloadLost("gone")
        if self.rng.random() < self.failure:
            return Report(failure=FAILED)
        return Report(manifest=DONE) if payload[1] == len(STAGES) - 1 else Report()

    def stop(self, worker: int) -> None:
        self.alive.pop(worker, None)

    def close(self) -> None:
        self.alive.clear()


def scheduler_of(cluster: Cluster, limit: int = 5, actors: int = 2, **more: Any) -> Scheduler:
    stages = [PooledStage(name, Pool(actors, 1.0, calls=2, **more), name == "encode") for name in STAGES]
    return Scheduler(cluster, stages, Admission(lambda _: limit, 10**9, 1), patience_s=60.0, max_deaths=10**6)


def shards(count: int) -> Iterator[tuple[int, tuple[int, int]]]:
    for shard in range(count):
        yield shard, (shard, 0)


rates = st.sampled_from([0.0, 0.05, 0.4])


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    limit=st.integers(1, 8),
    rates=st.tuples(rates, rates, rates),
)
@settings(deadline=None, max_examples=4 * settings.default.max_examples)
def test_every_shard_ends_exactly_once_whichever_workers_die(
    seed: int, count: int, limit: int, rates: tuple[float, float, float]
) -> None:
    cluster = Cluster(seed, *rates)
    scheduler = scheduler_of(cluster, limit)
    ended: list[tuple[int, Report | None]] = list(scheduler.run(shards(count)))
    scheduler.stop()
    assert Counter(shard for shard, _ in ended) == Counter(range(count))
    assert cluster.most_under_way <= limit
    assert not cluster.alive  # every worker was stopped
    if not any(rates):  # only if workers die can a shard end without a report
        assert all(report is not None for _, report in ended)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_a_pool_grows_while_shards_wait_but_never_beyond_its_maximum(seed: int) -> None:
    cluster = Cluster(seed)
    scheduler = scheduler_of(cluster, limit=30, actors=1, max_actors=4)
    most = 0
    for _ in scheduler.run(shards(60)):
        most = max(most, max(len(pool) for pool in scheduler.workers))
    assert 2 <= most <= 4
    scheduler.stop()


def test_idle_workers_above_the_minimum_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    cluster = Cluster(1)
    scheduler = scheduler_of(cluster, limit=30, actors=1, max_actors=4)
    scheduler.patience_s = 1e9
    limits, sizes = [30], []
    scheduler.admission = Admission(lambda _: limits[0], 10**9, 1)
    for number, _ in enumerate(scheduler.run(shards(600))):
        sizes.append(len(scheduler.workers[1]))
        limits[0] = 30 if number < 100 else 1  # from then on, only one shard is in flight
    assert max(sizes) > 1
    assert sizes[-1] == 1
    scheduler.stop()


def test_workers_that_die_before_they_start_stop_the_run_with_their_message() -> None:
    class Stillborn(Cluster):
        def result(self, token: int) -> Report:
            worker, payload = self.pending[token]
            if payload is None and self.alive.get(worker) == "download":
                self.alive.pop(worker)
            return super().result(token)

    with pytest.raises(SchedulerError, match=r"stage 'download' exit before they are ready: killed"):
        list(scheduler_of(Stillborn(1)).run(shards(3)))


def test_a_series_of_dying_workers_stops_the_run() -> None:
    class LastStageDies(Cluster):
        def result(self, token: int) -> Report:
            _, payload = self.pending[token]
            self.death = float(payload is not None and payload[1] == len(STAGES) - 1)
            return super().result(token)

    scheduler = scheduler_of(LastStageDies(1))
    scheduler.max_deaths = 7
    with pytest.raises(SchedulerError, match="8 workers in a row died in the stage 'commit'"):
        list(scheduler.run(shards(100)))


def test_many_workers_that_fail_to_start_at_the_same_time_do_not_stop_the_run() -> None:
    class NodeLost(Cluster):
        starts = 0

        def result(self, token: int) -> Report:
            worker, payload = self.pending[token]
            self.starts += payload is None
            if payload is None and self.starts <= 12:
                self.alive.pop(worker, None)
            return super().result(token)

    scheduler = scheduler_of(NodeLost(1), actors=4)
    assert len(list(scheduler.run(shards(20)))) == 20
    scheduler.stop()


@given(seed=st.integers(0, 10**6), most=st.integers(1, 50), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_payloads_in_flight_stay_within_the_byte_limit_unless_a_single_shard_exceeds_it(
    seed: int, most: int, sizes: list[int]
) -> None:
    class Weighed(Cluster):
        most_bytes = 0

        def result(self, token: int) -> Report:
            _, payload = self.pending[token]
            report = super().result(token)
            under_way = {pending[0] for _, pending in self.pending.values() if pending} | {payload and payload[0]}
            self.most_bytes = max(self.most_bytes, sum(sizes[shard] for shard in under_way if shard is not None))
            return report if payload is None or report.ends_shard else Report(num_bytes=sizes[payload[0]])

    cluster = Weighed(seed)
    scheduler = scheduler_of(cluster)
    scheduler.admission = Admission(lambda _: 100, most, max(sizes))  # expects at least the real size of each shard
    assert len(list(scheduler.run(shards(len(sizes))))) == len(sizes)
    assert cluster.most_bytes <= max(most, *sizes)


def test_among_equally_busy_workers_the_one_on_the_node_with_the_data_gets_the_shard() -> None:
    class Nodes(Cluster):
        """A cluster whose encoders run on nodes 0, 1 and 2. The result of every call is stored on node 1."""

        calls: list[int]

        def call(self, worker: int, payloads: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int]]:
            if self.alive[worker] == "encode":
                self.calls.append(worker)
            return super().call(worker, payloads)

        def result(self, token: int) -> Report:
            worker, payload = self.pending[token]
            report = super().result(token)
            if payload is None:
                return Report(node=str(worker % 3))
            return report if report.ends_shard else Report(node="1", num_bytes=5)

    cluster = Nodes(3)
    cluster.calls = []
    scheduler = scheduler_of(cluster, limit=1, actors=3)
    list(scheduler.run(shards(20)))
    encoders = {worker.handle: worker.node for worker in scheduler.workers[STAGES.index("encode")]}
    beside = [worker for worker in cluster.calls if encoders[worker] == "1"]
    assert set(encoders.values()) > {"1"}
    assert len(beside) == len(cluster.calls) - sum(encoders[worker] != "1" for worker in cluster.calls[:3])


def test_a_run_that_stops_making_progress_ends_with_an_error() -> None:
    class Stuck(Cluster):
        def wait(self, timeout_s: float) -> list[int]:
            return []

    scheduler = scheduler_of(Stuck(1))
    scheduler.patience_s = 0.05
    with pytest.raises(SchedulerError, match="so something is stuck"):
        list(scheduler.run(shards(1)))


class PartlyBroken(Cluster):
    """A cluster whose broken encoders fail every shard immediately, while healthy encoders take longer."""

    def __init__(self, seed: int, broken_starts: int = 0, broken_runs: int = 0) -> None:
        super().__init__(seed)
        self.broken_starts, self.broken_runs = broken_starts, broken_runs
        self.encoders: dict[int, int] = {}
        """Worker -> number of encoders started before it."""
        self.starts: set[int] = set()
        """The tokens of their starts."""

    def start(self, name: StageName, pool: Pool) -> tuple[int, int]:
        worker, token = super().start(name, pool)
        if name == "encode":
            self.encoders[worker] = len(self.encoders)
            self.starts.add(token)
        return worker, token

    def breaks(self, worker: int) -> bool:
        """Whether the worker's calls fail: only once all encoders are ready, because a worker is not replaced before
        that."""
        return self.starts <= self.told and self.encoders.get(worker, 10**9) < self.broken_runs

    def wait(self, timeout_s: float) -> list[int]:
        for token, (worker, payload) in self.pending.items():
            if token not in self.told and payload and self.breaks(worker):
                self.told.add(token)
                return [token]
        return super().wait(timeout_s)

    def result(self, token: int) -> Report:
        worker, payload = self.pending[token]
        report = super().result(token)
        number = self.encoders.get(worker, 10**9)
        if self.breaks(worker) if payload else number < self.broken_starts:
            return Report(failure=FAILED)
        return report


def test_encoders_which_load_longest_start_before_the_stages_that_bring_in_pictures() -> None:
    cluster = Cluster(1)
    scheduler = scheduler_of(cluster, actors=1)
    list(scheduler.run(shards(1)))
    names = list(cluster.alive.values())
    assert names.index("encode") < names.index("download") and len(names) == len(STAGES)
    scheduler.stop()


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_cannot_start_loses_no_shard_if_another_worker_can_start(seed: int) -> None:
    cluster = PartlyBroken(seed, broken_starts=1)
    scheduler = scheduler_of(cluster, limit=10)
    assert all(report == Report(manifest=DONE) for _, report in scheduler.run(shards(40)))
    scheduler.stop()
    assert not cluster.alive


def test_a_run_ends_with_the_reason_if_no_worker_of_a_stage_can_start() -> None:
    scheduler = scheduler_of(PartlyBroken(1, broken_starts=10**6))
    with pytest.raises(SchedulerError, match="no worker for the stage 'encode' could start: failed"):
        list(scheduler.run(shards(4)))
    scheduler.stop()


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_breaks_during_the_run_loses_only_a_few_shards(seed: int) -> None:
    cluster = PartlyBroken(seed, broken_runs=1)
    scheduler = scheduler_of(cluster, limit=10)
    ended = list(scheduler.run(shards(200)))
    scheduler.stop()
    assert Counter(shard for shard, _ in ended) == Counter(range(200))
    assert (
        sum(report is not None and report.failure is not None for _, report in ended)
        <= 3 + scheduler_module.LOOKAHEAD + 2
    )
