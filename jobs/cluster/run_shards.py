"""Runs shards through a pipeline on Ray. THE place that decides what happens to a shard that failed or lost its worker.

Our own code handles shard boundaries, accounting, back-pressure and resume (`scheduler.py`). Ray (`ray_backend.py`)
starts processes, reports their deaths, and moves tables between them without going through the driver. A stage that
raises fails only its shard. Shards lost with a worker run once more. If they are lost again, each runs alone and
isolated: a child process decodes the pictures and calls the user's rules, so a crash loses only one row.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pairmill.jobs.cluster.arrow_ipc import pack
from pairmill.jobs.cluster.live import LiveWorkers, OnWork
from pairmill.jobs.cluster.pools import (
    DOWNLOAD_CALLS,
    STORED_PICTURE_BYTES,
    Pool,
    PoolError,
    plan_pools,
    shards_in_flight,
)
from pairmill.jobs.cluster.ray_backend import RayBackend
from pairmill.jobs.cluster.scheduler import LOOKAHEAD, Admission, PooledStage, Scheduler, SchedulerError
from pairmill.jobs.cluster.session import cluster_nodes, ray_session
from pairmill.jobs.cluster.worker_backend import Report
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted, last_line
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.batch import planned_batches
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import ShardManifest

SLACK_S = 3_600
"""Grace period on top of the slowest shard that the job allows. After that, the run counts as stuck and stops."""

OBJECT_STORE_SHARE = 0.4
"""Share of the object stores for shards in flight. Payloads sent between machines exist twice; Ray spills at 0.8."""

_FIRST_FAILURES = 3
"""Stop if a rule or a model fails this many shards before any shard succeeds, because it would fail all others too."""

_WORKER_DIED = Failure(
    FailureKind.SHARD, "its worker process died, three times", "its worker process died, three times"
)

log = logging.getLogger(__name__)


class EngineError(PairmillError, RuntimeError):
    """The run cannot start or continue; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """How a shard ended: with a manifest or a failure."""

    shard: int
    result: ShardManifest | Failure


def run_shards(
    shards: pa.Table,
    pipeline: Pipeline,
    on_outcome: Callable[[Outcome], None],
    on_work: OnWork = lambda _: None,
    modules: Path | None = None,
) -> None:
    """Run every shard of the table (see `planned_batches`) through the pipeline. Calls `on_outcome` once for each shard
    that ends, and `on_work` about once a second with what the workers have done inside their shards.

    Shards lost with their worker run again, and if they are lost again, once more: alone and isolated. Raises
    EngineError after `run.max_failed_shards_in_a_row` consecutive failures (fewer until the first shard succeeds), if
    the cluster has too few CPUs or GPUs, and if no shard advances any more.
    """
    verdict = _Verdict(pipeline.job.run.max_failed_shards_in_a_row)
    live = LiveWorkers(on_work)
    with ray_session(pipeline.job.run, modules):
        for isolated in (False, False, True):
            lost = []
            for shard, report in _pass(shards, pipeline.isolated() if isolated else pipeline, live):
                if report is None and isolated:
                    report = Report(failure=_WORKER_DIED)
                if report is None:
                    lost.append(shard)
                    continue
                result = report.failure or report.manifest
                assert result is not None  # the scheduler reports a shard only once it has one of the two
                outcome = Outcome(shard, result)
                on_outcome(outcome)
                verdict.add(outcome)
            if not lost:
                return
            shards = shards.filter(pc.is_in(shards["shard"], value_set=pa.array(sorted(lost))))
            log.warning("%s lost when a worker died; running again", counted(len(lost), "shard"))


@dataclass
class _Verdict:
    """Decides whether the run continues: raises EngineError after too many consecutive failures."""

    limit: int
    in_a_row: int = 0
    any_good: bool = False

    def add(self, outcome: Outcome) -> None:
        """Count one finished shard."""
        failure = outcome.result
        if isinstance(failure, ShardManifest):
            self.in_a_row, self.any_good = 0, True
            return
        # A damaged input file says nothing about the other files, so it never stops the run.
        self.in_a_row += failure.kind is not FailureKind.INPUT
        will_fail_all = failure.kind is FailureKind.JOB and not self.any_good
        if self.in_a_row >= (_FIRST_FAILURES if will_fail_all else self.limit):
            line = last_line(failure.traceback)
            raise EngineError(f"{counted(self.in_a_row, 'shard')} in a row failed, the last one with: {line}")


def _pass(shards: pa.Table, pipeline: Pipeline, live: LiveWorkers) -> Iterator[tuple[int, Report | None]]:
    """Yield (shard, report) as shards end. The report is None if the shard was lost with its worker."""
    fetch, run = pipeline.job.fetch, pipeline.job.run
    # The slowest case: all rows are from one host that never answers or needs pauses, in the actor's other shards too.
    row_s = max(fetch.timeout_s / fetch.per_host_concurrency, fetch.per_host_interval_s)
    downloads = any(spec.name == "download" for spec in pipeline.stages)
    slowest_s = pipeline.job.shard_rows * row_s * (DOWNLOAD_CALLS + LOOKAHEAD) if downloads else 0.0
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
    """Limit the number of shards in flight as the job says, and their bytes so that the object stores do not spill."""
    return Admission(
        max_shards=partial(shards_in_flight, pipeline, pools),
        max_bytes=int(ray.cluster_resources().get("object_store_memory", 0) * OBJECT_STORE_SHARE),
        expected_bytes=pipeline.job.shard_rows * STORED_PICTURE_BYTES,
    )


def _payloads(shards: pa.Table) -> Iterator[tuple[int, pa.Buffer]]:
    """Yield each planned shard as input for the first stage."""
    for batch in planned_batches(shards):
        yield batch.info.shard.shard, pack(batch)
