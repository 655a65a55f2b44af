"""Where shards go when workers die: every shard ends once, whatever happens, and what waits is bounded."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairmill.jobs.cluster import scheduler as flow_module
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.scheduler import CellLost, Flow, FlowError, Report, WorkerDied
from pairmill.pipeline.stages import StageName

STAGES: list[StageName] = ["read", "download", "commit"]


class Cluster:
    """A Crew whose calls end in random order, with deaths and losses as drawn. A cell is (shard, stages done)."""

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

    def call(self, worker: int, cell: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        assert worker in self.alive
        shard, done = cell
        assert self.alive[worker] == STAGES[done], "a shard skipped a stage"
        token = next(self.numbers)
        self.pending[token] = (worker, cell)
        calls = [cell for _, cell in self.pending.values() if cell]
        self.most_under_way = max(self.most_under_way, len(calls))
        return token, (shard, done + 1)

    def wait(self, timeout_s: float) -> list[int]:
        tokens = [token for token in self.pending if token not in self.told]
        some = [token for token in tokens if self.rng.random() < 0.3] or [self.rng.choice(tokens)]
        self.told.update(some)
        return some

    def result(self, token: int) -> Report | None:
        worker, cell = self.pending.pop(token)
        if worker not in self.alive or (cell and self.rng.random() < self.death):
            self.alive.pop(worker, None)
            raise WorkerDied("killed")
        if cell is None:
            return None
        if self.rng.random() < self.loss:
            raise CellLost("gone")
        if self.rng.random() < self.failure:
            return Report(error="failed")
        return Report(manifest="done") if cell[1] == len(STAGES) - 1 else Report()

    def stop(self, worker: int) -> None:
        self.alive.pop(worker, None)


def flow_of(cluster: Cluster, limit: int = 5, actors: int = 2, **more: Any) -> Flow:
    pools = [(name, Pool(actors, 1.0, calls=2, **more)) for name in STAGES]
    return Flow(cluster, pools, lambda _: limit, patience_s=60.0, max_deaths=10**6)


def shards(count: int) -> Iterator[tuple[int, tuple[int, int]]]:
    for shard in range(count):
        yield shard, (shard, 0)


rates = st.sampled_from([0.0, 0.05, 0.4])


@given(seed=st.integers(0, 10**6), count=st.integers(0, 40), limit=st.integers(1, 8), rates=st.tuples(rates, rates))
@settings(deadline=None, max_examples=200)
def test_every_shard_ends_exactly_once_whoever_dies(
    seed: int, count: int, limit: int, rates: tuple[float, float]
) -> None:
    cluster = Cluster(seed, *rates, failure=0.1)
    flow = flow_of(cluster, limit)
    ended = list(flow.run(shards(count)))
    flow.stop()
    assert Counter(shard for shard, _ in ended) == Counter(range(count))
    assert cluster.most_under_way <= limit
    assert not cluster.alive  # nobody is left behind
    if rates == (0.0, 0.0):
        assert all(report is not None for _, report in ended)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_a_pool_grows_while_shards_wait_and_never_beyond_its_most(seed: int) -> None:
    cluster = Cluster(seed)
    flow = flow_of(cluster, limit=30, actors=1, max_actors=4)
    most = 0
    for _ in flow.run(shards(60)):
        most = max(most, max(len(pool) for pool in flow.workers))
    assert 2 <= most <= 4
    flow.stop()


def test_idle_workers_beyond_the_least_number_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(flow_module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    cluster = Cluster(1)
    flow = flow_of(cluster, limit=30, actors=1, max_actors=4)
    flow.patience_s = 1e9
    limits, sizes = [30], []
    flow.limit = lambda _: limits[0]
    for number, _ in enumerate(flow.run(shards(600))):
        sizes.append(len(flow.workers[1]))
        limits[0] = 30 if number < 100 else 1  # the rest comes one by one
    assert max(sizes) > 1
    assert sizes[-1] == 1
    flow.stop()


def test_workers_that_end_before_they_have_begun_stop_the_run_with_their_words() -> None:
    class Stillborn(Cluster):
        def result(self, token: int) -> Report | None:
            worker, cell = self.pending[token]
            if cell is None and self.alive.get(worker) == "download":
                self.alive.pop(worker)
            return super().result(token)

    with pytest.raises(FlowError, match=r"stage 'download' end before they have begun: killed"):
        list(flow_of(Stillborn(1)).run(shards(3)))


def test_worker_after_worker_dying_stops_the_run() -> None:
    class LastStageDies(Cluster):
        def result(self, token: int) -> Report | None:
            _, cell = self.pending[token]
            self.death = float(cell is not None and cell[1] == len(STAGES) - 1)
            return super().result(token)

    flow = flow_of(LastStageDies(1))
    flow.max_deaths = 7
    with pytest.raises(FlowError, match="8 workers of the stage 'commit' died one after the other"):
        list(flow.run(shards(100)))


def test_many_starts_that_fail_together_are_no_reason_to_stop() -> None:
    class NodeLost(Cluster):
        starts = 0

        def result(self, token: int) -> Report | None:
            worker, cell = self.pending[token]
            self.starts += cell is None
            if cell is None and self.starts <= 12:
                self.alive.pop(worker, None)
            return super().result(token)

    flow = flow_of(NodeLost(1), actors=4)
    assert len(list(flow.run(shards(20)))) == 20
    flow.stop()


def test_a_flow_in_which_nothing_ends_any_more_says_so() -> None:
    class Stuck(Cluster):
        def wait(self, timeout_s: float) -> list[int]:
            return []

    flow = flow_of(Stuck(1))
    flow.patience_s = 0.05
    with pytest.raises(FlowError, match="so something hangs"):
        list(flow.run(shards(1)))
