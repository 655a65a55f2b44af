"""The only place that imports ray for work: stages become Ray actors, and the scheduler moves shards through them.

Shard boundaries, accounting, back-pressure and resume are ours (`scheduler.py`); Ray starts processes, tells of their
death, and carries tables from one to the next, not by way of the driver. A stage that raises fails its shard and
nothing else. Shards that were lost with their worker are tried again; what is lost then too is run alone, pictures
decoded and own rules called in a child process, so that what kills its process costs one row.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.util.metrics
from ray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from pairmill.jobs.cluster.arrow_ipc import pack, unpack
from pairmill.jobs.cluster.live import INTERVAL_S, LiveWorkers, OnWork
from pairmill.jobs.cluster.metrics import StageMetrics
from pairmill.jobs.cluster.pools import (
    ACCELERATOR_LABEL,
    DOWNLOAD_CALLS,
    SPARE_CPUS,
    STORED_PICTURE_BYTES,
    Node,
    Pool,
    PoolError,
    plan_pools,
    shards_in_flight,
)
from pairmill.jobs.cluster.scheduler import (
    LOOKAHEAD,
    Admission,
    PayloadLost,
    PooledStage,
    Report,
    Scheduler,
    SchedulerError,
    WorkerDied,
)
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.progress import WorkCounts, WorkProgress
from pairmill.pipeline.common.text import counted, last_line
from pairmill.pipeline.select.tasks import OnPart, ignore_part
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName, StageSpec, run_stage
from pairmill.schemas.batch import ShardBatch, planned_batches
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.jobs import RunConfig
from pairmill.schemas.manifest import ShardManifest

SLACK_S = 3_600
"""Beyond the slowest shard that a job allows: then the run is stuck, and says so instead of waiting for ever."""

OBJECT_STORE_SHARE = 0.4
"""Of the object stores, for shards under way: a payload that crosses machines is there twice, and Ray spills at 0.8."""

_WATCH = "watch"
"""Concurrency group of the questions for progress."""

_FIRST_FAILURES = 3
"""Shards that a rule or a model of the job's may fail before any shard succeeds: it will fail the others too."""

_DIED = Failure(FailureKind.SHARD, "its worker process died, three times", "its worker process died, three times")

log = logging.getLogger(__name__)


class EngineError(PairmillError, RuntimeError):
    """The run cannot start or go on; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: a manifest, or a failure."""

    shard: int
    result: ShardManifest | Failure


class _StageActor:
    """Runs one stage on a worker. Never raises for what a shard holds: that is the shard's border."""

    def __init__(self, spec: StageSpec) -> None:
        warnings.filterwarnings("ignore", module="ray")
        self.name = spec.name
        self.node = ray.get_runtime_context().get_node_id()
        self.metrics = StageMetrics(ray.util.metrics, spec.name)
        self.progress = WorkProgress()
        self.broken: Failure | None = None
        try:
            self.stage = spec.open(WorkerHooks(self.metrics.observe, self.progress, _end_process))
        except Exception as error:  # no weights here, no GPU: each shard says so, where Ray would take 200 lines
            self.broken = Failure.of(error)

    def ready(self) -> Report:
        """Answers once the stage is built."""
        return Report(node=self.node)

    def counts(self) -> WorkCounts:
        """How far the worker is. Has a thread of its own, so it is answered in the middle of `run`."""
        return self.progress.counts()

    def run(self, *payloads: pa.Buffer) -> tuple[Report, pa.Buffer | None]:
        """A shard through the stage: its batch, and what stages since then changed of it."""
        with self.metrics.shard():
            report, batch = self._run(payloads)
        self.metrics.ended(report, batch)
        if batch is None:
            return report, None
        result = pack(batch)
        return replace(report, node=self.node, num_bytes=result.size), result

    def _run(self, payloads: Sequence[pa.Buffer]) -> tuple[Report, ShardBatch | None]:
        if self.broken:
            return Report(failure=self.broken), None
        try:
            batch = unpack(payloads[0])
            for changes in payloads[1:]:
                batch = batch.updated(unpack(changes))
            result = run_stage(self.name, self.stage, batch)
        except Exception as error:  # the border of a shard: it fails alone, with its traceback
            return Report(failure=Failure.of(error)), None
        return (Report(manifest=result), None) if isinstance(result, ShardManifest) else (Report(), result)


def _end_process() -> None:
    """The way out of a decoder that hangs: Ray starts another worker, and the shard is done again, isolated."""
    os._exit(1)


class RayBackend:
    """`WorkerBackend` on Ray: a worker is an actor, a payload an object that stays where it was made."""

    def __init__(self, pipeline: Pipeline, live: LiveWorkers) -> None:
        self._live = live
        self._specs = {spec.name: spec for spec in pipeline.stages}
        self._futures: dict[Any, Future[Report]] = {}
        self._done: SimpleQueue[Any] = SimpleQueue()

    def start(self, name: StageName, pool: Pool) -> tuple[Any, Any]:
        """Place one actor of a stage; returns it and the token that is done once its model or session is loaded."""
        options: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_concurrency": pool.calls}
        if pool.labels:
            options["label_selector"] = dict(pool.labels)
        if not pool.gpus:
            options["scheduling_strategy"] = "SPREAD"
        kind = type(f"{name.title()}Actor", (_StageActor,), {})  # what ps and Ray's dashboard call the process
        actor = ray.remote(concurrency_groups={_WATCH: 1})(kind).options(**options).remote(self._specs[name])
        self._live.add(actor, name, lambda: actor.counts.options(concurrency_group=_WATCH).remote().future())
        return actor, self._watched(actor.ready.remote())

    def call(self, worker: Any, payloads: Sequence[Any]) -> tuple[Any, Any]:
        """Send a shard's payloads; returns the token of the call and the reference to its result."""
        report, result = worker.run.options(num_returns=2).remote(*payloads)
        return self._watched(report), result

    def _watched(self, token: Any) -> Any:
        """Have Ray say when it is there: asking for each of thousands would cost milliseconds every time."""
        self._futures[token] = future = token.future()
        future.add_done_callback(lambda _: self._done.put(token))
        return token

    def wait(self, timeout_s: float) -> list[Any]:
        """The tokens that are done by now; waits for the first of them up to `timeout_s`, and a second at most."""
        self._live.tick()
        done = []
        with suppress(Empty):
            done.append(self._done.get(timeout=min(timeout_s, INTERVAL_S)))
            while True:
                done.append(self._done.get_nowait())
        return done

    def result(self, token: Any) -> Report:
        """What a call reported. Raises WorkerDied or PayloadLost where it never returned."""
        try:
            report: Report = self._futures.pop(token).result()
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, (ObjectLostError, ObjectStoreFullError, OutOfDiskError)):
                raise PayloadLost(last_line(str(cause))) from None
            if isinstance(cause, RayError):  # also killed for its memory, or never placed
                raise WorkerDied(last_line(str(cause))) from None
            return Report(failure=Failure.of(cause))
        return report

    def stop(self, worker: Any) -> None:
        """End an actor at once."""
        self._live.remove(worker)
        ray.kill(worker)


@contextmanager
def ray_session(run: RunConfig, modules: Path | None = None, spare_cpus: int = SPARE_CPUS) -> Iterator[None]:
    """Join the cluster of `run.address`, or start a local Ray for the duration of the block.

    `modules`: a folder with the user's own rules, shipped to the workers. `spare_cpus`: logical ones beyond the
    machine's own, for a local Ray whose actors mostly wait.
    """
    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pairmill-") as empty, redirect_stdout(sys.stderr):
        try:  # stdout is for results, and Ray reports lost tasks there
            # Ray puts the directory that it starts in at the front of its workers' sys.path. There, a secrets.py or a
            # datasets/ of the user's would replace the real module, in workers alone. It does not where workers get a
            # working_dir, but an empty one for all would leave those that Ray prestarts unused: 2 s more.
            with nullcontext() if _has_working_dir() else chdir(empty):
                _init(run, modules, spare_cpus)
            yield
        finally:
            ray.shutdown()


def _init(run: RunConfig, modules: Path | None, spare_cpus: int) -> None:
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a dead worker's results are nobody's to read
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else notes on Ray's internals reach the user
    environment = {"working_dir": str(modules)} if modules and not _has_working_dir() else None
    local = {"include_dashboard": False, "num_cpus": (os.cpu_count() or 1) + spare_cpus} if not run.address else {}
    with _held_back_stderr():
        address = run.address or "local"  # without a word, Ray would join whatever was started on this machine
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **local)


def _has_working_dir() -> bool:
    """Whether this is a submitted job, with which the modules came along: Ray takes no second folder."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return "working_dir" in submitted


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Ray's C++ core greets on stderr while it starts; that is shown only where the start fails."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(real, aside.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


class RayTasks:
    """`pairmill.pipeline.select.tasks.Tasks` on Ray: results stay in the object store until they are wanted.

    Ray runs a call again whose worker died: the functions are pure.
    """

    def __init__(self, on_part: OnPart = ignore_part) -> None:
        self._on_part = on_part
        self.memory_bytes = int(ray.cluster_resources()["object_store_memory"] // 3)

    def map(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]]) -> list[Any]:
        """References; see Tasks."""
        remote = ray.remote(num_cpus=1)(function)
        return [remote.remote(*call) for call in calls]

    def map_split(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]], outputs: int) -> list[list[Any]]:
        """References; see Tasks."""
        remote = ray.remote(num_cpus=1, num_returns=outputs)(function)
        return [remote.remote(*call) for call in calls]

    def get(self, handles: Sequence[Any]) -> Iterator[Any]:
        """Raises what the call raised."""
        for number, handle in enumerate(handles, 1):
            try:
                yield ray.get(handle)
            except RayTaskError as error:
                raise error.cause from None
            self._on_part(number, len(handles))


def run_shards(
    shards: pa.Table,
    pipeline: Pipeline,
    on_outcome: Callable[[Outcome], None],
    on_work: OnWork = lambda _: None,
    modules: Path | None = None,
) -> None:
    """Run every shard of the table (see `planned_batches`) through the pipeline; calls `on_outcome` once per shard that
    ended, and `on_work` about once a second with what the workers have done inside their shards.

    Shards that were lost with their worker are tried again, then once more, each alone and carefully. Raises
    EngineError after `run.max_failed_shards_in_a_row` failures (fewer before the first shard that succeeds), where the
    cluster has too few CPUs or GPUs, and where nothing moves any more.
    """
    verdict = _Verdict(pipeline.job.run.max_failed_shards_in_a_row)
    live = LiveWorkers(on_work)
    with ray_session(pipeline.job.run, modules):
        for isolated in (False, False, True):
            lost = []
            for shard, report in _pass(shards, pipeline.isolated() if isolated else pipeline, live):
                if report is None and isolated:
                    report = Report(failure=_DIED)
                if report is None:
                    lost.append(shard)
                    continue
                result = report.failure or report.manifest
                assert result is not None  # the scheduler hands shards on until one of both is there
                outcome = Outcome(shard, result)
                on_outcome(outcome)
                verdict.add(outcome)
            if not lost:
                return
            shards = shards.filter(pc.is_in(shards["shard"], value_set=pa.array(sorted(lost))))
            log.warning("%s lost with a worker that died; once more", counted(len(lost), "shard"))


@dataclass
class _Verdict:
    """Whether the run should go on: raises EngineError where shard after shard fails."""

    limit: int
    in_a_row: int = 0
    any_good: bool = False

    def add(self, outcome: Outcome) -> None:
        """Count one shard in."""
        failure = outcome.result
        if isinstance(failure, ShardManifest):
            self.in_a_row, self.any_good = 0, True
            return
        # Files are damaged by themselves: however many there are, the others' shards have their turn.
        self.in_a_row += failure.kind is not FailureKind.INPUT
        will_fail_all = failure.kind is FailureKind.JOB and not self.any_good
        if self.in_a_row >= (_FIRST_FAILURES if will_fail_all else self.limit):
            line = last_line(failure.traceback)
            raise EngineError(f"{counted(self.in_a_row, 'shard')} in a row failed, the last one with: {line}")


def _pass(shards: pa.Table, pipeline: Pipeline, live: LiveWorkers) -> Iterator[tuple[int, Report | None]]:
    """(shard, report) as shards end; None for one that was lost with its worker."""
    fetch, run = pipeline.job.fetch, pipeline.job.run
    # The slowest shard: all rows from one host that never answers, or wants pauses, as have the actor's other shards.
    row_s = max(fetch.timeout_s / fetch.per_host_concurrency, fetch.per_host_interval_s)
    slowest_s = pipeline.job.shard_rows * row_s * (DOWNLOAD_CALLS + LOOKAHEAD)
    try:
        pools = plan_pools(pipeline, shards.num_rows, cluster_nodes())
        scheduler = Scheduler(
            backend=RayBackend(pipeline, live),
            stages=[PooledStage(spec.name, pools[spec.name], spec.returns_changes) for spec in pipeline.stages],
            admission=_admission(pipeline, pools),
            patience_s=SLACK_S + slowest_s,
            max_deaths=shards.num_rows if pipeline.is_isolated else run.max_failed_shards_in_a_row,
        )
        try:
            yield from scheduler.run(_payloads(shards))
        finally:
            scheduler.stop()
    except (SchedulerError, PoolError) as error:
        raise EngineError(str(error)) from None


def _admission(pipeline: Pipeline, pools: Mapping[StageName, Pool]) -> Admission:
    """By number as the job says, and by bytes as the object stores allow before they would spill to disk."""
    return Admission(
        max_shards=partial(shards_in_flight, pipeline, pools),
        max_bytes=int(ray.cluster_resources().get("object_store_memory", 0) * OBJECT_STORE_SHARE),
        expected_bytes=pipeline.job.shard_rows * STORED_PICTURE_BYTES,
    )


def _payloads(shards: pa.Table) -> Iterator[tuple[int, pa.Buffer]]:
    """Each planned shard, as the first stage takes it."""
    for batch in planned_batches(shards):
        yield batch.info.shard.shard, pack(batch)


def cluster_nodes() -> list[Node]:
    """The machines of the Ray that this process is part of."""
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            accelerator=node.get("Labels", {}).get(ACCELERATOR_LABEL),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
