"""Shards through a pipeline on Ray, and what happens to those that are lost.

Shard boundaries, accounting, back-pressure and resume are ours (`scheduler.py`). Ray (`ray_backend.py`) starts
processes, reports their deaths, and moves tables between them without the driver. A stage that raises fails its shard
and nothing else. Shards lost with a worker run once more; those lost again run alone and isolated, with pictures
decoded and the user's rules called in a child process, so that whatever kills the process costs one row.
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
from pairmill.jobs.cluster.scheduler import (
    LOOKAHEAD,
    Admission,
    PooledStage,
    Report,
    Scheduler,
    SchedulerError,
)
from pairmill.jobs.cluster.session import cluster_nodes, ray_session
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.text import counted, last_line
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.batch import planned_batches
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import ShardManifest

SLACK_S = 3_600
"""Added to the time of the slowest shard that the job allows. After that the run counts as stuck, and stops."""

OBJECT_STORE_SHARE = 0.4
"""Of the object stores, for shards under way: a payload that crosses machines is there twice, and Ray spills at 0.8."""

_FIRST_FAILURES = 3
"""How many shards a rule or a model may fail before any shard succeeds; beyond that, it would fail the rest too."""

_DIED = Failure(FailureKind.SHARD, "its worker process died, three times", "its worker process died, three times")

log = logging.getLogger(__name__)


class EngineError(PairmillError, RuntimeError):
    """The run cannot start or go on; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: a manifest, or a failure."""

    shard: int
    result: ShardManifest | Failure


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
                assert result is not None  # the scheduler hands shards on until one of the two exists
                outcome = Outcome(shard, result)
                on_outcome(outcome)
                verdict.add(outcome)
            if not lost:
                return
            shards = shards.filter(pc.is_in(shards["shard"], value_set=pa.array(sorted(lost))))
            log.warning("%s lost when a worker died; running again", counted(len(lost), "shard"))


@dataclass
class _Verdict:
    """Whether the run should go on: raises EngineError where shard after shard fails."""

    limit: int
    in_a_row: int = 0
    any_good: bool = False

    def add(self, outcome: Outcome) -> None:
        """Count one finished shard."""
        failure = outcome.result
        if isinstance(failure, ShardManifest):
            self.in_a_row, self.any_good = 0, True
            return
        # Damaged input files say nothing about the others, so they never stop the run.
        self.in_a_row += failure.kind is not FailureKind.INPUT
        will_fail_all = failure.kind is FailureKind.JOB and not self.any_good
        if self.in_a_row >= (_FIRST_FAILURES if will_fail_all else self.limit):
            line = last_line(failure.traceback)
            raise EngineError(f"{counted(self.in_a_row, 'shard')} in a row failed, the last one with: {line}")


def _pass(shards: pa.Table, pipeline: Pipeline, live: LiveWorkers) -> Iterator[tuple[int, Report | None]]:
    """(shard, report) as shards end; None for one that was lost with its worker."""
    fetch, run = pipeline.job.fetch, pipeline.job.run
    # The slowest shard: all rows from one host that never answers, or requires pauses, like the actor's other shards.
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
