"""What a shard costs the driver: shards whose stages do nothing, through the real engine.

    python -m bench.driver [--shards 10000]

CPU seconds of the driver's process (user and system, all threads) after the workers are up, per shard.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from pairmill.jobs.cluster import engine
from pairmill.pipeline.source.files import ColumnMapping
from pairmill.pipeline.stages import Context
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import PLAN_SCHEMA, ShardManifest, shards_from_table


class Nothing:
    """A stage that passes on what it gets."""

    def __init__(self, context: Context) -> None: ...

    def __call__(self, table: pa.Table) -> pa.Table:
        return table

    def close(self) -> None: ...


class Read(Nothing):
    """The planned shard itself is its one row."""

    def __call__(self, table: pa.Table) -> pa.Table:
        (shard,) = shards_from_table(table)
        return table.replace_schema_metadata({"shard": json.dumps(asdict(shard))})


class Committed(Nothing):
    """The last stage: a manifest that nothing stands behind."""

    def __call__(self, table: pa.Table) -> pa.Table:
        manifest = ShardManifest(
            shard=table["shard"][0].as_py(),
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
        return pa.table({"manifest": [manifest.model_dump_json()]})


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    options = parser.parse_args()
    engine.build_stages = lambda _: [("read", Read), ("download", Nothing), ("commit", Committed)]  # type: ignore[attr-defined,assignment]
    numbers = np.arange(options.shards)
    columns = [numbers, ["in.parquet"] * options.shards, numbers, np.ones_like(numbers), ["x"] * options.shards]
    shards = pa.Table.from_arrays([pa.array(column) for column in columns], schema=PLAN_SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        job = BuildJob.model_validate({"source": {"paths": ["in.parquet"]}, "output": str(Path(folder, "out"))})
        facts = ColumnMapping("url", "caption", None, None, None, pa.schema([]), (), None)
        done = 0
        first = (0.0, 0.0)

        def on_outcome(outcome: engine.Outcome) -> None:
            nonlocal done, first
            assert outcome.error is None, outcome.error
            done += 1
            if done == 1:
                first = (time.perf_counter(), cpu_s())

        engine.run_shards(shards, Context(job, facts, "0" * 32), on_outcome)
    wall_s, used_s = time.perf_counter() - first[0], cpu_s() - first[1]
    assert done == options.shards
    print(f"{done:,} shards: {used_s / done * 1e3:.2f} ms of driver CPU each, {done / wall_s:,.0f} shards/s")


if __name__ == "__main__":
    main()
