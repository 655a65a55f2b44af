"""Workers on Ray: each worker is an actor, and each payload is an object that stays on the node that made it."""

import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import ray
import ray.util.metrics
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from pairmill.jobs.cluster.live import INTERVAL_S, LiveWorkers
from pairmill.jobs.cluster.metrics import StageMetrics
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.stage_worker import StageWorker
from pairmill.jobs.cluster.worker_backend import PayloadLost, Report, WorkerDied
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import last_line
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName, StageSpec

_WATCH = "watch"
"""Concurrency group for progress polling."""


class _StageActor(StageWorker):
    """A worker as a Ray actor."""

    def __init__(self, spec: StageSpec) -> None:
        warnings.filterwarnings("ignore", module="ray")
        node = ray.get_runtime_context().get_node_id()
        super().__init__(spec, node, StageMetrics(ray.util.metrics, spec.name))


class RayBackend:
    """A `WorkerBackend` whose workers are Ray actors and whose payloads are Ray objects."""

    def __init__(self, pipeline: Pipeline, live: LiveWorkers) -> None:
        self._live = live
        self._specs = {spec.name: spec for spec in pipeline.stages}
        self._futures: dict[Any, Future[Report]] = {}
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._actors: list[Any] = []

    def start(self, name: StageName, pool: Pool) -> tuple[Any, Any]:
        """Start an actor for a stage. Returns it, and a token that is done once the actor is ready."""
        options: dict[str, object] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_concurrency": pool.calls}
        if pool.labels:
            options["label_selector"] = dict(pool.labels)
        if not pool.gpus:
            options["scheduling_strategy"] = "SPREAD"
        kind = type(f"{name.title()}Actor", (_StageActor,), {})  # the name in ps and Ray's dashboard
        actor = ray.remote(concurrency_groups={_WATCH: 1})(kind).options(**options).remote(self._specs[name])
        self._actors.append(actor)
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
        self._actors.remove(worker)
        self._live.remove(worker)
        ray.kill(worker)

    def close(self) -> None:
        """Kill all actors."""
        for actor in list(self._actors):
            self.stop(actor)
