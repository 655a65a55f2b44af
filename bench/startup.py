"""Measures how long a run takes to start its first shard if the output already has many finished shards.

    python -m bench.startup [--shards 100000]

The plan has one more shard than there are manifests. Prints the seconds on a local disk, and the seconds and requests
on S3 (moto's server).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.faulty_s3 import FaultyS3, credentials, s3_server
from pairmill.jobs.build import build
from pairmill.jobs.check import check
from pairmill.jobs.progress import ProgressListener
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.plan import make_plan
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.record import JobRecord
from pairmill.schemas.s3 import S3Config


class FirstShardReady(Exception):
    """Raised to end a run when its first shard would start."""


class StopWhenPlanned(ProgressListener):
    """A listener that stops the run once it is planned."""

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        raise FirstShardReady(f"{shards_left:,} shards left, {rows_done:,} rows done")


def job(source: str, output: str, endpoint: str | None = None) -> BuildJob:
    """A job with one row per shard."""
    s3 = {"endpoint": endpoint} if endpoint else {}
    return BuildJob.model_validate({"source": {"paths": [source]}, "output": output, "shard_rows": 1, "s3": s3})


def write_source(path: Path, rows: int) -> bytes:
    """Write a list of URLs, which are never fetched."""
    urls = [f"https://pictures.example/{number}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), path)
    return path.read_bytes()


def plan(what: BuildJob) -> None:
    """Write the plan of an output that has manifests but no plan. A build would reject such an output, because it does
    not look like one of pairmill's."""
    checked, fingerprint = check(what)
    make_plan(JobRecord(checked, fingerprint), Store(checked.output, checked.s3))


def start(what: BuildJob) -> float:
    """Seconds until the first shard can start."""
    started = time.perf_counter()
    try:
        build(what, StopWhenPlanned())
    except FirstShardReady as ready:
        print(f"  {ready}", file=sys.stderr)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    options = parser.parse_args()
    names = [f"manifests/{manifest_name(shard, 0)}" for shard in range(options.shards)]
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "in.parquet"), Path(name, "out")
        data = write_source(source, options.shards + 1)
        planning_s = start(job(str(source), str(out)))
        (out / "manifests").mkdir()
        for path in names:
            (out / path).write_bytes(b"{}")
        print(f"local disk: {start(job(str(source), str(out))):.2f} s (including planning: {planning_s:.1f} s)")
        with s3_server("mill", [f"out/{path}" for path in names]) as url, credentials():
            proxy = FaultyS3(url)
            Store("s3://mill/in", S3Config(endpoint=proxy.url)).create("in.parquet", data)
            on_s3: Any = job("s3://mill/in/in.parquet", "s3://mill/out", proxy.url)
            plan(on_s3)
            start(on_s3)
            proxy.requests.clear()
            seconds = start(on_s3)
            print(f"S3: {seconds:.1f} s, {dict(proxy.requests)}")
            proxy.close()


if __name__ == "__main__":
    main()
