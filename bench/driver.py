"""Measures how much CPU time a shard costs the driver, on Ray, with the real `run_shards` and stages that do nothing.

    python -m bench.driver [--shards 10000]

Prints the CPU time of the driver's process (user and system, all threads) per shard, counted once the workers are up.
"""

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pairmill.jobs.cluster.lost_shards import Outcome
from pairmill.jobs.cluster.run_shards import run_shards
from pairmill.jobs.cluster.session import ray_session
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import PLAN_SCHEMA, ShardManifest


@dataclass(frozen=True)
class NoOpStage:
    """A stage that returns its input unchanged. It also serves as its StageSpec."""

    name: StageName
    isolated: bool = False
    returns_changes: bool = False

    def isolate(self) -> "NoOpStage":
        return self

    def open(self, hooks: WorkerHooks) -> "NoOpStage":
        return self

    def __call__(self, batch: ShardBatch) -> ShardBatch | ShardManifest:
        return batch

    def close(self) -> None: ...


class LastStage(NoOpStage):
    """The last stage, which returns a manifest without files."""

    def __call__(self, batch: ShardBatch) -> ShardManifest:
        return ShardManifest(
            shard=batch.info.shard.shard,
            attempt="0" * 32,
            uri="in.parquet",
            first_row=0,
            num_rows=1,
            rows_in=1,
            pairs=1,
            rejects=0,
            kept=1,
            statuses={"ok": 1},
            job_fingerprint="0" * 32,
            files={},
            seconds={},
            bytes_fetched=0,
            versions={},
        )


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    options = parser.parse_args()
    numbers = np.arange(options.shards)
    columns = [numbers, ["in.parquet"] * options.shards, numbers, np.ones_like(numbers), ["x"] * options.shards]
    shards = pa.Table.from_arrays([pa.array(column) for column in columns], schema=PLAN_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        job = BuildJob.model_validate({"source": {"paths": ["in.parquet"]}, "output": str(Path(folder, "out"))})
        pipeline = Pipeline(job, (NoOpStage("read"), NoOpStage("download"), LastStage("commit")))
        done = 0
        first = (0.0, 0.0)

        def on_outcome(outcome: Outcome) -> None:
            nonlocal done, first
            assert isinstance(outcome.result, ShardManifest), outcome.result
            done += 1
            if done == 1:
                first = (time.perf_counter(), cpu_s())

        with ray_session(job.run):
            run_shards(shards, pipeline, on_outcome)
    wall_s, used_s = time.perf_counter() - first[0], cpu_s() - first[1]
    assert done == options.shards
    print(f"{done:,} shards: {used_s / done * 1e3:.2f} ms of driver CPU each, {done / wall_s:,.0f} shards/s")


if __name__ == "__main__":
    main()
