"""Moves shards through pools of workers, stage by stage, and replaces workers that died.

`lost_shards.py` decides what happens to a shard that failed or was lost with its worker; this file only reports the
failure. It does not depend on Ray, only on a WorkerBackend (`worker_backend.py`).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pairmill.jobs.cluster.pools import Pool, source_of
from pairmill.jobs.cluster.worker_backend import (
    Payload,
    PayloadLost,
    Report,
    Token,
    WorkerBackend,
    WorkerDied,
    WorkerHandle,
)
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import FailureKind, PairmillError

LOOKAHEAD = 1
"""Calls queued in a worker beyond those that are running, so that their data is already there when their turn comes."""

TICK_S = 5.0
IDLE_S = 60.0
"""Workers beyond the pool's minimum are stopped after being idle for this long."""
_MAX_FAILED_STARTS = 3
_MAX_FAILURES = 3
"""Replace a worker after this many consecutive failures if others in its stage succeed, because then its machine must
be the cause."""
_SAY_AFTER_S = 60.0

log = logging.getLogger(__name__)


class SchedulerError(PairmillError, RuntimeError):
    """Shards have stopped making progress; the message says why."""


@dataclass(frozen=True)
class PooledStage:
    """A stage and its workers."""

    name: StageName
    pool: Pool
    returns_changes: bool = False
    """Whether the stage returns only changed columns, which then travel alongside its input payload."""


@dataclass(frozen=True)
class Admission:
    """Limits on the shards between read and commit."""

    max_shards: Callable[[int], int]
    """Number of workers in the source stage -> maximum number of shards."""
    max_bytes: int
    """Maximum size of all payloads on the cluster."""
    expected_bytes: int
    """Assumed size of a shard's payload until its real size is known."""


@dataclass(eq=False)
class _Worker:
    stage: int
    handle: WorkerHandle
    failed_starts: int = 0
    """How many workers in a row failed to start before this one replaced them."""
    busy: int = 0
    failures: int = 0
    """Failed shards since its last success. Damaged input does not count."""
    node: str | None = None
    """Machine that it runs on. None until it is ready."""
    idle_since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Item:
    """A shard between two stages, and the node that has most of its data."""

    shard: int
    payloads: tuple[Payload, ...]
    num_bytes: int = 0
    node: str = ""


@dataclass(frozen=True)
class _Call:
    item: _Item
    worker: _Worker
    result: Payload


@dataclass
class Scheduler:
    """One pass of shards through all stages. Call `run`, then `stop`, even after an error."""

    backend: WorkerBackend
    stages: Sequence[PooledStage]
    admission: Admission
    patience_s: float
    """Raise SchedulerError if no call ends for this long."""
    max_deaths: int
    """How many workers of a stage may die in a row, without the stage finishing a shard in between."""
    workers: list[list[_Worker]] = field(init=False)
    waiting: list[deque[_Item]] = field(init=False)

    def __post_init__(self) -> None:
        self.workers = [[] for _ in self.stages]
        self.waiting = [deque() for _ in self.stages]
        self._starting: dict[Token, _Worker] = {}
        self._calls: dict[Token, _Call] = {}
        self._deaths = [0] * len(self.stages)
        self._broken = [0] * len(self.stages)
        names = [stage.name for stage in self.stages]
        self._source = names.index(source_of(names))
        self._moved = self._said = time.monotonic()

    def run(self, shards: Iterator[tuple[int, Payload]]) -> Iterator[tuple[int, Report | None]]:
        """Yield (shard, report) as shards end, in any order. The report is None if the shard was lost with its worker.

        `shards`: (shard, payload). Raises SchedulerError.
        """
        for number in reversed(range(len(self.stages))):  # the encoder loads longest: not third in line
            for _ in range(self.stages[number].pool.actors):
                self._start(number)
        self._moved = time.monotonic()
        more = True
        while True:
            while more and self._has_room():
                more = (planned := next(shards, None)) is not None
                if planned is not None:
                    shard, payload = planned
                    self.waiting[0].append(_Item(shard, (payload,)))
            self._dispatch()
            self._resize_pools()
            self._check_progress()
            if not self._calls and not any(self.waiting):
                return
            for token in self.backend.wait(TICK_S):
                yield from self._ended(token)

    def stop(self) -> None:
        """Stop all workers."""
        self.backend.close()
        self.workers = [[] for _ in self.stages]

    def _has_room(self) -> bool:
        """Whether another shard may start, given the limits on shards and bytes. A single shard may always start."""
        under_way = [*(call.item for call in self._calls.values()), *(item for queue in self.waiting for item in queue)]
        if not under_way:
            return True
        if len(under_way) >= self.admission.max_shards(len(self.workers[self._source])):
            return False
        expected = self.admission.expected_bytes
        return sum(item.num_bytes or expected for item in under_way) + expected <= self.admission.max_bytes

    def _start(self, stage: int, failed_starts: int = 0) -> None:
        handle, token = self.backend.start(self.stages[stage].name, self.stages[stage].pool)
        worker = _Worker(stage, handle, failed_starts)
        self.workers[stage].append(worker)
        self._starting[token] = worker

    def _dispatch(self) -> None:
        """Give waiting shards to workers, later stages first: a shard that is nearly done frees the most memory."""
        for stage in reversed(range(len(self.stages))):
            room = self.stages[stage].pool.calls + LOOKAHEAD
            ready = [worker for worker in self.workers[stage] if worker.node is not None and worker.busy < room]
            while self.waiting[stage] and ready:
                item = self.waiting[stage].popleft()
                # The least busy worker; among equals, one on the node with the data.
                worker = min(ready, key=lambda each: (each.busy, each.node != item.node))
                token, result = self.backend.call(worker.handle, item.payloads)
                self._calls[token] = _Call(item, worker, result)
                worker.busy += 1
                if worker.busy >= room:
                    ready.remove(worker)

    def _ended(self, token: Token) -> Iterator[tuple[int, Report | None]]:
        if token in self._starting:
            self._started(self._starting.pop(token), token)
            return
        call = self._calls.pop(token)
        worker = call.worker
        worker.busy, worker.idle_since = worker.busy - 1, time.monotonic()
        try:
            report = self.backend.result(token)
        except WorkerDied as died:
            if worker in self.workers[worker.stage]:
                log.warning("a worker of the stage %r died: %s", self.stages[worker.stage].name, died)
            self._bury(worker, str(died))
            yield call.item.shard, None
            return
        except PayloadLost:
            yield call.item.shard, None
            return
        self._moved, self._deaths[worker.stage] = time.monotonic(), 0
        self._judge(worker, report)
        if report.ends_shard:
            yield call.item.shard, report
        else:
            self.waiting[worker.stage + 1].append(self._next_item(call, report))

    def _judge(self, worker: _Worker, report: Report) -> None:
        """Replace a worker that keeps failing while others succeed. It fails faster than they succeed, so otherwise it
        would get most of the shards. The shards that it has at that moment are lost with it and run again."""
        if report.failure is None:
            worker.failures = 0
            return
        worker.failures += report.failure.kind is not FailureKind.INPUT
        others_work = any(other.node is not None and not other.failures for other in self.workers[worker.stage])
        if worker.failures >= _MAX_FAILURES and others_work:
            log.warning(
                "replacing a worker in the stage %r: %s", self.stages[worker.stage].name, report.failure.message
            )
            self._bury(worker, report.failure.message)

    def _next_item(self, call: _Call, report: Report) -> _Item:
        """The shard as input for the next stage."""
        item = call.item
        if not self.stages[call.worker.stage].returns_changes:
            return _Item(item.shard, (call.result,), report.num_bytes, report.node)
        node = report.node if report.num_bytes > item.num_bytes else item.node
        return _Item(item.shard, (*item.payloads, call.result), item.num_bytes + report.num_bytes, node)

    def _started(self, worker: _Worker, token: Token) -> None:
        try:
            report = self.backend.result(token)
        except (WorkerDied, PayloadLost) as died:
            if worker.failed_starts + 1 >= _MAX_FAILED_STARTS:
                name = self.stages[worker.stage].name
                raise SchedulerError(f"workers in the stage {name!r} exit before they are ready: {died}") from None
            self._bury(worker, str(died), worker.failed_starts + 1)
            return
        if report.failure is not None:
            self._drop_broken(worker, report.failure)
            return
        worker.node = report.node
        worker.idle_since = self._moved = time.monotonic()

    def _drop_broken(self, worker: _Worker, failure: Failure) -> None:
        """Drop a worker that could not load its model or its rules, and continue with the others."""
        name, workers = self.stages[worker.stage].name, self.workers[worker.stage]
        if worker not in workers:
            return
        workers.remove(worker)
        self.backend.stop(worker.handle)
        self._broken[worker.stage] += 1
        if not workers:
            raise SchedulerError(f"no worker for the stage {name!r} could start: {failure.message}")
        log.warning("the stage %r continues with one worker fewer: %s", name, failure.message)

    def _bury(self, worker: _Worker, why: str, failed_starts: int = 0) -> None:
        """Replace a dead worker once, no matter how many calls were lost with it."""
        if worker not in self.workers[worker.stage]:
            return
        self.workers[worker.stage].remove(worker)
        self.backend.stop(worker.handle)
        self._deaths[worker.stage] += not failed_starts
        if self._deaths[worker.stage] > self.max_deaths:
            name, deaths = self.stages[worker.stage].name, counted(self._deaths[worker.stage], "worker")
            raise SchedulerError(f"{deaths} in a row died in the stage {name!r}; the last error was: {why}")
        self._start(worker.stage, failed_starts)

    def _resize_pools(self) -> None:
        """Grow pools that shards are waiting for, and stop idle workers. Call this after `_dispatch`."""
        now = time.monotonic()
        for number, stage in enumerate(self.stages):
            workers, pool = self.workers[number], stage.pool
            ready = [worker for worker in workers if worker.node is not None]
            may_grow = len(ready) == len(workers) < pool.max_actors and self._broken[number] < _MAX_FAILED_STARTS
            if self.waiting[number] and may_grow:
                self._start(number)
            idle = [worker for worker in ready if not worker.busy and now - worker.idle_since > IDLE_S]
            if idle and len(workers) > pool.actors:
                workers.remove(idle[0])
                self.backend.stop(idle[0].handle)

    def _check_progress(self) -> None:
        """Warn if a stage has had no worker for a while. Raise SchedulerError if no call has ended for `patience_s`."""
        now = time.monotonic()
        if now - self._moved > self.patience_s:
            raise SchedulerError(f"no shard has advanced for {self.patience_s:,.0f} s, so something is stuck")
        if now - max(self._moved, self._said) <= _SAY_AFTER_S:
            return
        for number, stage in enumerate(self.stages):
            if self.waiting[number] and all(worker.node is None for worker in self.workers[number]):
                self._said = now
                log.warning("still waiting for a worker of the stage %r; is the cluster full?", stage.name)
