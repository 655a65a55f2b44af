"""`pairmill build --explain`: shows the pools, memory, objects and rate of a job without starting anything."""

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from pairmill.jobs.check import check, difference, open_output
from pairmill.jobs.cluster.machines import open_machines
from pairmill.jobs.cluster.pools import (
    STORED_PICTURE_BYTES,
    Pool,
    PoolError,
    shards_in_flight,
    source_of,
)
from pairmill.jobs.live_line import duration
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.plan import make_plan, unplanned
from pairmill.pipeline.source.planned import Plan, load
from pairmill.pipeline.stages.pipelines import Pipeline, build_pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest, manifest_name
from pairmill.schemas.record import JobRecord

DOWNLOAD_ACTOR_BYTES = 900_000_000
"""Memory of a download actor: 230 MB of libraries, and the downloaded and stored pictures of four shards
(docs/scale.md)."""
ENCODE_ACTOR_BYTES = 1_200_000_000
"""Memory of an encoder without its weights: PyTorch, and a few batches of decoded pictures."""
SMALL_ACTOR_BYTES = 300_000_000
_SAMPLE = 64
"""Number of manifests that the rate is computed from."""


@dataclass(frozen=True)
class Explanation:
    """What a run would do and need."""

    plan: str
    pools: Mapping[StageName, Pool]
    memory_bytes: int
    """Memory of all workers and of the pictures that pass between them, on all machines together."""
    machines: int
    rows_per_s: float | None
    """Measured from the finished shards. None if there are none."""
    rows_left: int
    """Rows of unfinished shards, and those of planned files that are in no shard yet because of an earlier limit."""
    unplanned_rows: int = 0
    """How many of `rows_left` are in no shard yet."""
    unplanned_files: int = 0
    """Files that the next run looks for rows in; `rows_left` does not include these."""

    def as_dict(self) -> dict[str, object]:
        """The explanation as plain JSON values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The explanation as text, line by line."""
        yield self.plan
        if self.unplanned_rows:
            rows = counted(self.unplanned_rows, "row")
            yield f"the next run adds {rows} of these files, which an earlier limit left out"
        if self.unplanned_files:
            files = counted(self.unplanned_files, "file")
            yield f"the next run adds the rows of {files} that are not in the plan; these are not counted here"
        if not self.rows_left:
            if not self.unplanned_files:
                yield "everything is done: there is nothing to run"
            return
        for name, pool in self.pools.items():
            growing = f", up to {pool.max_actors:,}" if pool.max_actors > pool.actors else ""
            gpus = f", {counted(pool.gpus, 'GPU')}" if pool.gpus else ""
            where = ", not on machines with GPUs" if pool.labels else ""
            yield f"  {name:<9}{counted(pool.actors, 'worker')}{growing}: {counted(pool.cpus, 'CPU')}{gpus} each{where}"
        each = self.memory_bytes / max(self.machines, 1) / 1e9
        yield f"memory: about {each:.1f} GB{f' on each of {self.machines:,} machines' if self.machines > 1 else ''}"
        if self.rows_per_s is None:
            yield "rate: no shard is done yet; run with --limit 10000 first to measure it"
        else:
            left = f"{duration(self.rows_left / self.rows_per_s)} for {counted(self.rows_left, 'row')} left"
            yield f"rate: about {self.rows_per_s:,.0f} rows/s, {left}"


def explain(job: BuildJob) -> Explanation:
    """What `build` would do. Joins the job's cluster to see its machines, but writes nothing. Raises JobError."""
    store = open_output(job)
    job, fingerprint = check(job, dry_run=True)
    existing = load(store)
    plan = existing or _planned_aside(job, fingerprint)
    if plan.record.fingerprint != fingerprint:
        raise JobError(difference(store, plan.job, job))
    pipeline = build_pipeline(job, plan.mapping, fingerprint)
    done = committed(store)
    left = plan.shards.filter([shard not in done for shard in plan.shards["shard"].to_pylist()])
    unplanned_rows, unplanned_files = unplanned(plan, job, store) if existing else (0, 0)
    rows_left = sum(left["num_rows"].to_pylist()) + unplanned_rows
    shards_left = left.num_rows + math.ceil(unplanned_rows / job.shard_rows)
    with open_machines(pipeline) as machines:
        num_machines = len(machines.nodes())
        try:
            pools = machines.plan_pools(pipeline, max(shards_left, 1), rows_left)
        except PoolError as error:
            raise JobError(str(error)) from None
    newest = sorted(done.items())[-_SAMPLE:]
    manifests = [read_manifest(store, manifest_name(shard, generation)) for shard, generation in newest]
    return Explanation(
        plan=describe_plan(plan, job),
        pools=pools,
        memory_bytes=_memory_bytes(pipeline, pools),
        machines=num_machines,
        rows_per_s=rows_per_s(pools, manifests),
        rows_left=rows_left,
        unplanned_rows=unplanned_rows,
        unplanned_files=unplanned_files,
    )


def rows_per_s(pools: Mapping[StageName, Pool], manifests: Sequence[ShardManifest]) -> float | None:
    """Throughput of the slowest pool, based on the times of finished shards. None if there are none."""
    rates = []
    for name, pool in pools.items():
        seconds = [each.seconds[name] / each.num_rows for each in manifests if name in each.seconds and each.num_rows]
        if seconds and (per_row_s := statistics.median(seconds)) > 0:
            rates.append(max(pool.actors, pool.max_actors) * pool.calls / per_row_s)
    return min(rates, default=None)


def _planned_aside(job: BuildJob, fingerprint: str) -> Plan:
    with tempfile.TemporaryDirectory(prefix="pairmill-explain-") as folder:
        return make_plan(JobRecord(job, fingerprint), Store(folder, job.s3))


def _memory_bytes(pipeline: Pipeline, pools: Mapping[StageName, Pool]) -> int:
    sizes = {"download": DOWNLOAD_ACTOR_BYTES, "encode": ENCODE_ACTOR_BYTES}
    actors = sum(pool.actors * sizes.get(name, SMALL_ACTOR_BYTES) for name, pool in pools.items())
    between = (
        shards_in_flight(pipeline, pools, pools[source_of(pools)].actors)
        * pipeline.job.shard_rows
        * STORED_PICTURE_BYTES
    )
    return actors + between
