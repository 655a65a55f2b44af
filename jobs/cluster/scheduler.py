"""Moves shards through pools of workers, stage by stage: who gets the next one, and what a death costs.

A lost shard is reported to engine.py, which gives it another try. Nothing here knows of Ray: what it needs of a
cluster is a WorkerBackend, which can start a worker, call it, wait and stop it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pairmill.jobs.cluster.pools import Pool, source_of
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import ShardManifest

LOOKAHEAD = 1
"""Calls that wait in a worker beyond those that run, so that their data is there when their turn comes."""

TICK_S = 5.0
IDLE_S = 60.0
"""Workers above the pool's minimum stop after this idle time."""
_MAX_FAILED_STARTS = 3
_MAX_FAILURES = 3
"""Of one worker in a row, while others of its stage succeed: then its machine is to blame, and it is replaced."""
_SAY_AFTER_S = 60.0

WorkerHandle: TypeAlias = Any
Payload: TypeAlias = Any
"""A handle to data that stays on the cluster."""
Token: TypeAlias = Any
"""Hashable; stands for a start or a call that is under way."""

log = logging.getLogger(__name__)


class SchedulerError(PairmillError, RuntimeError):
    """No shard advances any more; the message says why."""


class WorkerDied(Exception):
    """The worker of a call is gone, with its process or its machine."""


class PayloadLost(Exception):
    """The data that the call needed is gone, with the machine that held it."""


@dataclass(frozen=True)
class Report:
    """What a worker says at the end of a call: a failure, a manifest after the last stage, or where its result is."""

    failure: Failure | None = None
    manifest: ShardManifest | None = None
    node: str = ""
    """The machine that the worker, and so its result, is on."""
    num_bytes: int = 0
    """Of the result."""

    @property
    def ends_shard(self) -> bool:
        """Whether no stage follows."""
        return self.failure is not None or self.manifest is not None


class WorkerBackend(Protocol):
    """Workers somewhere."""

    def start(self, name: StageName, pool: Pool) -> tuple[WorkerHandle, Token]:
        """(worker, token that is done once it is ready)."""

    def call(self, worker: WorkerHandle, payloads: Sequence[Payload]) -> tuple[Token, Payload]:
        """(token of the report, payload of the result)."""

    def wait(self, timeout_s: float) -> list[Token]:
        """Tokens that are done and were not returned before, at least one unless time runs out."""

    def result(self, token: Token) -> Report:
        """The report of a call; of a start, the worker's node. Raises WorkerDied or PayloadLost."""

    def stop(self, worker: WorkerHandle) -> None:
        """End it, whatever it does."""


@dataclass(frozen=True)
class PooledStage:
    """A stage and its workers."""

    name: StageName
    pool: Pool
    returns_changes: bool = False
    """Its result is some columns, which travel on beside the payload that it was given."""


@dataclass(frozen=True)
class Admission:
    """How much may be between read and commit at once."""

    max_shards: Callable[[int], int]
    """Workers of the source stage -> shards."""
    max_bytes: int
    """Of all payloads on the cluster."""
    expected_bytes: int
    """Of one shard's payload, as long as the shard has none."""


@dataclass(eq=False)
class _Worker:
    stage: int
    handle: WorkerHandle
    failed_starts: int = 0
    """Of the workers that it replaces."""
    busy: int = 0
    failures: int = 0
    """Since its last success; damaged input does not count."""
    node: str | None = None
    """None until it is ready."""
    idle_since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Item:
    """A shard on its way, with the node that holds the most of it."""

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
    """One pass of shards through all stages. `run` it, then `stop` it, also after an error."""

    backend: WorkerBackend
    stages: Sequence[PooledStage]
    admission: Admission
    patience_s: float
    """SchedulerError if no call ends for this long."""
    max_deaths: int
    """Of one stage's workers in a row, without that stage finishing any shard in between."""
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
        """(shard, report) as shards end, in no order; None for one lost with its worker. `shards`: (shard, payload).

        Raises SchedulerError.
        """
        for number, stage in enumerate(self.stages):
            for _ in range(stage.pool.actors):
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
        """End all workers."""
        for worker in [worker for pool in self.workers for worker in pool]:
            self.backend.stop(worker.handle)
        self.workers = [[] for _ in self.stages]

    def _has_room(self) -> bool:
        """Whether another shard may start: by number, and by bytes, of which a shard alone may have any number."""
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
        """Later stages first: a shard that is nearly done frees the most memory."""
        for stage in reversed(range(len(self.stages))):
            room = self.stages[stage].pool.calls + LOOKAHEAD
            ready = [worker for worker in self.workers[stage] if worker.node is not None and worker.busy < room]
            while self.waiting[stage] and ready:
                item = self.waiting[stage].popleft()
                # The least busy; among equals, one beside the data.
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
        """Replace a worker that fails shard after shard where others do not. It fails faster than they succeed, so it
        would get most of the shards. Those that it has at that moment are lost with it, and get another try."""
        if report.failure is None:
            worker.failures = 0
            return
        worker.failures += report.failure.kind is not FailureKind.INPUT
        others_work = any(other.node is not None and not other.failures for other in self.workers[worker.stage])
        if worker.failures >= _MAX_FAILURES and others_work:
            log.warning(
                "a worker of the stage %r is replaced: %s", self.stages[worker.stage].name, report.failure.message
            )
            self._bury(worker, report.failure.message)

    def _next_item(self, call: _Call, report: Report) -> _Item:
        """The shard as the next stage gets it."""
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
                raise SchedulerError(f"workers of the stage {name!r} exit before they are ready: {died}") from None
            self._bury(worker, str(died), worker.failed_starts + 1)
            return
        if report.failure is not None:
            self._drop_broken(worker, report.failure)
            return
        worker.node = report.node
        worker.idle_since = self._moved = time.monotonic()

    def _drop_broken(self, worker: _Worker, failure: Failure) -> None:
        """Go on without a worker that could not load its model or its rules, while others may."""
        name, workers = self.stages[worker.stage].name, self.workers[worker.stage]
        if worker not in workers:
            return
        workers.remove(worker)
        self.backend.stop(worker.handle)
        self._broken[worker.stage] += 1
        if not workers:
            raise SchedulerError(f"no worker of the stage {name!r} could start: {failure.message}")
        log.warning("the stage %r runs with one worker less: %s", name, failure.message)

    def _bury(self, worker: _Worker, why: str, failed_starts: int = 0) -> None:
        """Replace a dead worker, once only, however many calls were lost with it."""
        if worker not in self.workers[worker.stage]:
            return
        self.workers[worker.stage].remove(worker)
        self.backend.stop(worker.handle)
        self._deaths[worker.stage] += not failed_starts
        if self._deaths[worker.stage] > self.max_deaths:
            name, deaths = self.stages[worker.stage].name, counted(self._deaths[worker.stage], "worker")
            raise SchedulerError(f"{deaths} of the stage {name!r} died one after the other, the last one: {why}")
        self._start(worker.stage, failed_starts)

    def _resize_pools(self) -> None:
        """Grow a pool that shards wait for, and stop a worker that has been idle. Call it after `_dispatch`."""
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
        """Warn when a stage has no worker for long; raise SchedulerError when no call has ended for `patience_s`."""
        now = time.monotonic()
        if now - self._moved > self.patience_s:
            raise SchedulerError(f"no shard advanced for {self.patience_s:,.0f} s, so something is stuck")
        if now - max(self._moved, self._said) <= _SAY_AFTER_S:
            return
        for number, stage in enumerate(self.stages):
            if self.waiting[number] and all(worker.node is None for worker in self.workers[number]):
                self._said = now
                log.warning("waiting for Ray to start a worker of the stage %r: is the cluster full?", stage.name)
