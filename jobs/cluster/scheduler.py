"""Moves shards through pools of workers, stage by stage: who gets the next one, and what a death costs.

It knows nothing of Ray. What it needs of a cluster is a WorkerBackend: start a worker, call it, wait, stop it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pairmill.jobs.cluster.pools import Pool, source_of
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import ShardManifest

LOOKAHEAD = 1
"""Calls that wait in a worker beyond those that run, so that what they need is there when their turn comes."""

TICK_S = 5.0
IDLE_S = 60.0
"""A worker beyond the pool's least number goes once it has had nothing to do for so long."""
_MAX_FAILED_STARTS = 3
_SAY_AFTER_S = 60.0

log = logging.getLogger(__name__)


class SchedulerError(PairmillError, RuntimeError):
    """Nothing moves any more; the message says what does not."""


class WorkerDied(Exception):
    """The worker of a call is gone, with its process or its machine."""


class PayloadLost(Exception):
    """What the call was to work on is gone, with the machine that held it."""


@dataclass(frozen=True)
class Report:
    """What a worker says of a shard: a failure, or after the last stage a manifest, or neither."""

    failure: Failure | None = None
    manifest: ShardManifest | None = None


class WorkerBackend(Protocol):
    """Workers somewhere. Tokens are hashable; payloads are handles to data that need not come here."""

    def start(self, name: StageName, pool: Pool) -> tuple[Any, Any]:
        """(worker, token that is done once it is ready)."""

    def call(self, worker: Any, payload: Any) -> tuple[Any, Any]:
        """(token of the report, payload of the result)."""

    def wait(self, timeout_s: float) -> list[Any]:
        """Tokens that are done and were not returned before, at least one unless time runs out."""

    def result(self, token: Any) -> Report | None:
        """The report; None for a start. Raises WorkerDied or PayloadLost."""

    def stop(self, worker: Any) -> None:
        """End it, whatever it does."""


@dataclass(eq=False)
class _Worker:
    stage: int
    handle: Any
    failed_starts: int = 0
    """Of those whose place it takes."""
    busy: int = 0
    ready: bool = False
    idle_since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Item:
    shard: int
    payload: Any


@dataclass(frozen=True)
class _Call:
    item: _Item
    worker: _Worker
    payload: Any


@dataclass
class Scheduler:
    """One pass of shards through all stages. `run` it, then `stop` it, also after an error."""

    backend: WorkerBackend
    stages: Sequence[tuple[StageName, Pool]]
    limit: Callable[[int], int]
    """Workers of the source stage -> shards that may be under way."""
    patience_s: float
    """SchedulerError where nothing ends for so long."""
    max_deaths: int
    """Of one stage's workers in a row, without that stage finishing any shard between."""
    workers: list[list[_Worker]] = field(init=False)
    waiting: list[deque[_Item]] = field(init=False)

    def __post_init__(self) -> None:
        self.workers = [[] for _ in self.stages]
        self.waiting = [deque() for _ in self.stages]
        self._starting: dict[Any, _Worker] = {}
        self._calls: dict[Any, _Call] = {}
        self._deaths = [0] * len(self.stages)
        names = [name for name, _ in self.stages]
        self._source = names.index(source_of(names))
        self._moved = self._said = time.monotonic()

    def run(self, shards: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Report | None]]:
        """(shard, report) as shards end, in no order; None for one lost with its worker. `shards`: (shard, payload).

        Raises SchedulerError.
        """
        for stage, (_, pool) in enumerate(self.stages):
            for _ in range(pool.actors):
                self._start(stage)
        self._moved = time.monotonic()
        more = True
        while True:
            while more and self._under_way() < self.limit(len(self.workers[self._source])):
                more = (shard := next(shards, None)) is not None
                if shard is not None:
                    self.waiting[0].append(_Item(*shard))
            self._dispatch()
            self._look_after()
            if not self._calls and not any(self.waiting):
                return
            for token in self.backend.wait(TICK_S):
                yield from self._ended(token)

    def stop(self) -> None:
        """End all workers."""
        for worker in [worker for pool in self.workers for worker in pool]:
            self.backend.stop(worker.handle)
        self.workers = [[] for _ in self.stages]

    def _under_way(self) -> int:
        return len(self._calls) + sum(map(len, self.waiting))

    def _start(self, stage: int, failed_starts: int = 0) -> None:
        handle, token = self.backend.start(*self.stages[stage])
        worker = _Worker(stage, handle, failed_starts)
        self.workers[stage].append(worker)
        self._starting[token] = worker

    def _dispatch(self) -> None:
        """Later stages first: what is nearly done lets go of the most memory."""
        for stage in reversed(range(len(self.stages))):
            room = self.stages[stage][1].calls + LOOKAHEAD
            ready = [worker for worker in self.workers[stage] if worker.ready and worker.busy < room]
            while self.waiting[stage] and ready:
                worker = min(ready, key=lambda each: each.busy)
                item = self.waiting[stage].popleft()
                token, payload = self.backend.call(worker.handle, item.payload)
                self._calls[token] = _Call(item, worker, payload)
                worker.busy += 1
                if worker.busy >= room:
                    ready.remove(worker)

    def _ended(self, token: Any) -> Iterator[tuple[int, Report | None]]:
        if token in self._starting:
            self._started(self._starting.pop(token), token)
            return
        call = self._calls.pop(token)
        worker = call.worker
        worker.busy, worker.idle_since = worker.busy - 1, time.monotonic()
        try:
            report = self.backend.result(token)
        except WorkerDied as died:
            self._bury(worker, str(died))
            yield call.item.shard, None
            return
        except PayloadLost:
            yield call.item.shard, None
            return
        self._moved, self._deaths[worker.stage] = time.monotonic(), 0
        if report is not None and report.failure is None and report.manifest is None:
            self.waiting[worker.stage + 1].append(_Item(call.item.shard, call.payload))
            return
        yield call.item.shard, report

    def _started(self, worker: _Worker, token: Any) -> None:
        try:
            self.backend.result(token)
        except (WorkerDied, PayloadLost) as died:
            if worker.failed_starts + 1 >= _MAX_FAILED_STARTS:
                name = self.stages[worker.stage][0]
                raise SchedulerError(f"workers of the stage {name!r} end before they have begun: {died}") from None
            self._bury(worker, str(died), worker.failed_starts + 1)
            return
        worker.ready, worker.idle_since = True, time.monotonic()
        self._moved = time.monotonic()

    def _bury(self, worker: _Worker, why: str, failed_starts: int = 0) -> None:
        """A dead worker is replaced, once however many calls it took along."""
        if worker not in self.workers[worker.stage]:
            return
        self.workers[worker.stage].remove(worker)
        self.backend.stop(worker.handle)
        self._deaths[worker.stage] += not failed_starts
        if self._deaths[worker.stage] > self.max_deaths:
            name, deaths = self.stages[worker.stage][0], counted(self._deaths[worker.stage], "worker")
            raise SchedulerError(f"{deaths} of the stage {name!r} died one after the other, the last one: {why}")
        self._start(worker.stage, failed_starts)

    def _look_after(self) -> None:
        """Grow a pool that shards wait for, let go of what has nothing to do, and do not wait for ever in silence.

        Called after `_dispatch`: what waits then has no room.
        """
        now = time.monotonic()
        for stage, (name, pool) in enumerate(self.stages):
            workers = self.workers[stage]
            ready = [worker for worker in workers if worker.ready]
            if self.waiting[stage] and len(ready) == len(workers) < pool.max_actors:
                self._start(stage)
            idle = [worker for worker in ready if not worker.busy and now - worker.idle_since > IDLE_S]
            if idle and len(workers) > pool.actors:
                workers.remove(idle[0])
                self.backend.stop(idle[0].handle)
            if self.waiting[stage] and not ready and now - max(self._moved, self._said) > _SAY_AFTER_S:
                self._said = now
                log.warning("waiting for Ray to start a worker of the stage %r: is the cluster full?", name)
        if now - self._moved > self.patience_s:
            raise SchedulerError(f"no shard got further for {self.patience_s:,.0f} s, so something hangs")
