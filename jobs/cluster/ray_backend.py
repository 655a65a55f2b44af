"""Workers on Ray: each worker is an actor, and each payload is an object that stays on the node that made it."""

import gc
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import ray
import ray.util.metrics
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from pairmill.jobs.cluster.arrow_ipc import pack, unpack
from pairmill.jobs.cluster.live import INTERVAL_S, LiveWorkers
from pairmill.jobs.cluster.metrics import StageMetrics
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.worker_backend import PayloadLost, Report, WorkerDied
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.progress import WorkCounts, WorkProgress
from pairmill.pipeline.common.text import last_line
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName, StageSpec, run_stage
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest

_WATCH = "watch"
"""Concurrency group for progress polling."""


class _StageActor:
    """Runs one stage on a worker. An error in a shard is reported, not raised, so it fails only that shard."""

    def __init__(self, spec: StageSpec) -> None:
        warnings.filterwarnings("ignore", module="ray")
        os.environ["PYTHONSAFEPATH"] = "1"  # child processes must not import from the user's current directory either
        gc.disable()  # importing torch makes no garbage, and looking for some takes a seventh of the time
        self.name = spec.name
        self.node = ray.get_runtime_context().get_node_id()
        self.metrics = StageMetrics(ray.util.metrics, spec.name)
        self.progress = WorkProgress()
        self.broken: Failure | None = None
        try:
            self.stage = spec.open(WorkerHooks(self.metrics.observe, self.progress, _end_process))
        except Exception as error:  # no weights, for example: `ready` reports it; Ray would print 200 lines
            self.broken = Failure.of(error)
        _collect_garbage_less_often()

    def ready(self) -> Report:
        """Report whether the stage could be built. Ray answers only after the constructor has ended."""
        return Report(failure=self.broken, node=self.node)

    def counts(self) -> WorkCounts:
        """The worker's progress. Runs in its own thread, so it answers in the middle of `run`."""
        return self.progress.counts()

    def run(self, *payloads: pa.Buffer) -> tuple[Report, pa.Buffer | None]:
        """Run a shard through the stage. `payloads`: its batch, then the changes that later stages made to it."""
        with self.metrics.shard():
            report, batch = self._run(payloads)
        self.metrics.ended(report, batch)
        if batch is None:
            return report, None
        result = pack(batch)
        return replace(report, node=self.node, num_bytes=result.size), result

    def _run(self, payloads: Sequence[pa.Buffer]) -> tuple[Report, ShardBatch | None]:
        try:
            batch = unpack(payloads[0])
            for changes in payloads[1:]:
                batch = batch.updated(unpack(changes))
            result = run_stage(self.name, self.stage, batch)
        except Exception as error:  # this shard fails alone, with its traceback
            return Report(failure=Failure.of(error)), None
        return (Report(manifest=result), None) if isinstance(result, ShardManifest) else (Report(), result)


def _collect_garbage_less_often() -> None:
    """Exclude the objects loaded so far from garbage collection, and collect less often than Python's default, which is
    after 700 new objects.

    Walking the modules of torch and pyarrow took 0.1 ms of the 0.33 ms that a request takes.
    """
    gc.collect()  # otherwise garbage that refers to a model's weights would stay
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def _end_process() -> None:
    """Exit because a decoder hangs. Another worker starts, and lost_shards.py retries the shard."""
    os._exit(1)


class RayBackend:
    """A `WorkerBackend` whose workers are Ray actors and whose payloads are Ray objects."""

    def __init__(self, pipeline: Pipeline, live: LiveWorkers) -> None:
        self._live = live
        self._specs = {spec.name: spec for spec in pipeline.stages}
        self._futures: dict[Any, Future[Report]] = {}
        self._done: SimpleQueue[Any] = SimpleQueue()

    def start(self, name: StageName, pool: Pool) -> tuple[Any, Any]:
        """Start an actor for a stage. Returns it, and a token that is done once the actor is ready."""
        options: dict[str, object] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_concurrency": pool.calls}
        if pool.labels:
            options["label_selector"] = dict(pool.labels)
        if not pool.gpus:
            options["scheduling_strategy"] = "SPREAD"
        kind = type(f"{name.title()}Actor", (_StageActor,), {})  # the name in ps and Ray's dashboard
        actor = ray.remote(concurrency_groups={_WATCH: 1})(kind).options(**options).remote(self._specs[name])
        self._live.add(actor, name, lambda: actor.counts.options(concurrency_group=_WATCH).remote().future())
        return actor, self._notify_when_done(actor.ready.remote())

    def call(self, worker: Any, payloads: Sequence[Any]) -> tuple[Any, Any]:
        """Send a shard's payloads. Returns a token for the call and a reference to its result."""
        report, result = worker.run.options(num_returns=2).remote(*payloads)
        return self._notify_when_done(report), result

    def _notify_when_done(self, token: Any) -> Any:
        """Let Ray notify us when the token is done: polling thousands of tokens would cost milliseconds each time."""
        self._futures[token] = future = token.future()
        future.add_done_callback(lambda _: self._done.put(token))
        return token

    def wait(self, timeout_s: float) -> list[Any]:
        """The tokens that are done. Waits for the first one up to `timeout_s`, but never more than a second."""
        self._live.tick()
        done = []
        with suppress(Empty):
            done.append(self._done.get(timeout=min(timeout_s, INTERVAL_S)))
            while True:
                done.append(self._done.get_nowait())
        return done

    def result(self, token: Any) -> Report:
        """The report of a call. Raises WorkerDied or PayloadLost if the call never returned."""
        try:
            report: Report = self._futures.pop(token).result()
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, (ObjectLostError, ObjectStoreFullError, OutOfDiskError)):
                raise PayloadLost(last_line(str(cause))) from None
            if isinstance(cause, RayError):  # includes workers killed for their memory use, or never placed
                raise WorkerDied(last_line(str(cause))) from None
            return Report(failure=Failure.of(cause))
        return report

    def stop(self, worker: Any) -> None:
        """Kill an actor immediately."""
        self._live.remove(worker)
        ray.kill(worker)
