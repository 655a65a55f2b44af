"""Runs shards through a pipeline, on this machine or on Ray.

Our own code handles shard boundaries, accounting, back-pressure and resume (`scheduler.py`). A backend starts
processes, reports their deaths, and moves tables between them without going through the driver: `process_backend.py` on
this machine, `ray_backend.py` on a cluster. `lost_shards.py` decides what happens to a shard that failed or was lost
when its worker died.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.jobs.cluster.arrow_ipc import pack
from pairmill.jobs.cluster.live import LiveWorkers, OnWork
from pairmill.jobs.cluster.lost_shards import Ended, EngineError, Outcome, outcomes
from pairmill.jobs.cluster.machines import Machines, open_machines
from pairmill.jobs.cluster.pools import (
    DOWNLOAD_CALLS,
    STORED_PICTURE_BYTES,
    Pool,
    PoolError,
    shards_in_flight,
)
from pairmill.jobs.cluster.scheduler import LOOKAHEAD, Admission, PooledStage, Scheduler, SchedulerError
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.batch import planned_batches

SLACK_S = 3_600
"""Added to the time that the slowest shard may take. A run without progress for that long is stuck, and stops."""

PAYLOAD_SHARE = 0.4
"""Share of the memory for payloads that shards in flight may fill. Payloads sent between machines exist twice. Ray
spills at 0.8."""


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
    the cluster has too few CPUs or GPUs, or if shards stop making progress.
    """
    live = LiveWorkers(on_work)
    with open_machines(pipeline, modules) as machines:

        def run(left: pa.Table, isolated: bool) -> Iterator[Ended]:
            return _pass(left, pipeline.isolated() if isolated else pipeline, live, machines)

        for outcome in outcomes(shards, run, pipeline.job.run.max_failed_shards_in_a_row):
            on_outcome(outcome)


def _pass(shards: pa.Table, pipeline: Pipeline, live: LiveWorkers, machines: Machines) -> Iterator[Ended]:
    """Yield (shard, report) as shards end. The report is None if the shard was lost with its worker."""
    fetch, run = pipeline.job.fetch, pipeline.job.run
    # The worst case: all rows, even in the actor's other shards, are from one host that never answers or needs pauses.
    row_s = max(fetch.timeout_s / fetch.per_host_concurrency, fetch.per_host_interval_s)
    downloads = any(spec.name == "download" for spec in pipeline.stages)
    slowest_s = pipeline.job.shard_rows * row_s * (DOWNLOAD_CALLS + LOOKAHEAD) if downloads else 0.0
    try:
        pools = machines.plan_pools(pipeline, shards.num_rows, pc.sum(shards["num_rows"]).as_py() or 0)
        scheduler = Scheduler(
            backend=machines.backend(pipeline, live),
            stages=[PooledStage(spec.name, pools[spec.name], spec.returns_changes) for spec in pipeline.stages],
            admission=_admission(pipeline, pools, machines),
            patience_s=SLACK_S + slowest_s,
            max_deaths=shards.num_rows if pipeline.is_isolated else run.max_failed_shards_in_a_row,
        )
        try:
            yield from scheduler.run(_payloads(shards))
        finally:
            scheduler.stop()
    except (SchedulerError, PoolError, LocalFault) as error:
        raise EngineError(str(error)) from None


def _admission(pipeline: Pipeline, pools: Mapping[StageName, Pool], machines: Machines) -> Admission:
    """Limit the number of shards in flight as the job says, and their size, so that they fit into memory."""
    return Admission(
        max_shards=partial(shards_in_flight, pipeline, pools),
        max_bytes=int(machines.payload_bytes * PAYLOAD_SHARE),
        expected_bytes=pipeline.job.shard_rows * STORED_PICTURE_BYTES,
    )


def _payloads(shards: pa.Table) -> Iterator[tuple[int, pa.Buffer]]:
    """Yield each planned shard as input for the first stage."""
    for batch in planned_batches(shards):
        yield batch.info.shard.shard, pack(batch)
