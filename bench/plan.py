"""Measures how long planning takes, how fast shards are read, and how much memory both need.

    python -m bench.plan [--rows 10000000] [--files 8] [--shard-rows 4096]

Makes Parquet files of URLs and captions, plans them, plans them again, and reads shards, each in a separate process.
Then converts a tenth as many rows from CSV and JSON lines. Prints a table.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.plan import load_plan, make_plan
from pairmill.pipeline.source.rows import ShardReader
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from pairmill.schemas.record import JobRecord

_WORDS = ["a", "the", "red", "old", "photo", "of", "woman", "dog", "house", "car", "with", "street", "kitchen", "2019"]
_TEXT_SHARE = 10
_READ_SHARDS = 250


def make_rows(num_rows: int, seed: int) -> pa.Table:
    """URLs of about 75 and captions of about 55 characters, plus three columns as in LAION's lists."""
    rng = np.random.default_rng(seed)
    words = rng.choice(_WORDS, (num_rows, 11))
    captions = np.array([" ".join(row) for row in words])
    ids = rng.integers(0, 1 << 62, num_rows)
    urls = [f"https://images{i % 997}.example-shop.com/media/catalog/{i:016x}/picture-{i % 9973}.jpg" for i in ids]
    sizes = rng.integers(100, 2000, num_rows)
    return pa.table(
        {"URL": urls, "TEXT": captions, "WIDTH": sizes, "HEIGHT": sizes[::-1], "similarity": rng.random(num_rows)}
    )


def make_inputs(folder: Path, num_rows: int, files: int) -> None:
    """Write Parquet files with one row group per million rows."""
    folder.mkdir(parents=True)
    for index in range(files):
        rows = num_rows // files + (index < num_rows % files)
        pq.write_table(make_rows(rows, index), folder / f"part-{index:05d}.parquet", row_group_size=1_000_000)


def make_texts(folder: Path, num_rows: int) -> None:
    """Write the same kind of rows as CSV and as JSON lines."""
    folder.mkdir(parents=True)
    table = make_rows(num_rows, 0)
    pa.csv.write_csv(table, folder / "rows.csv")
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in table.to_pylist())


def plan_and_report(source: str, output: str, shard_rows: int) -> dict[str, float]:
    """Plan the source. Returns rows and shards."""
    job = BuildJob(source=SourceConfig(paths=[source]), output=output, shard_rows=shard_rows)
    plan = make_plan(JobRecord(job, "bench"), Store(output))
    return {"rows": plan.num_rows, "shards": plan.num_shards}


def read_and_report(source: str, output: str, shard_rows: int) -> dict[str, float]:
    """Read the first shards in order."""
    del source, shard_rows
    store = Store(output)
    plan = load_plan(store)
    reader = ShardReader(store, plan.mapping)
    shards = shards_from_table(plan.shards.slice(0, _READ_SHARDS))
    return {"rows": sum(reader.read(shard).num_rows for shard in shards), "shards": len(shards)}


_TASKS: dict[str, Callable[[str, str, int], dict[str, float]]] = {"plan": plan_and_report, "read": read_and_report}


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a separate process. This process must stay small, because a child's peak memory is at least the
    size of its parent when it starts."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def measure(task: str, source: Path, output: Path, shard_rows: int) -> dict[str, float]:
    """Run a task in a fresh process. Returns its result, wall seconds and peak memory."""
    arguments = [sys.executable, "-m", "bench.plan", "--task", task, str(source), str(output), str(shard_rows)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_task(task: str, source: str, output: str, shard_rows: str) -> None:
    """Run the task in this process and print the result as JSON."""
    started, cpu = time.perf_counter(), time.process_time()
    result = _TASKS[task](source, output, int(shard_rows))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**result, "seconds": seconds, "cpu_s": cpu, "peak_mb": peak_mb}))


def show(what: str, result: dict[str, float]) -> None:
    """Print one line of the table."""
    rows, seconds = result["rows"], result["seconds"]
    print(
        f"{what:24} {rows:>11,} {result['shards']:>8,} {seconds:>8.2f} s {result['cpu_s']:>8.2f} s "
        f"{rows / seconds:>12,.0f} rows/s {result['peak_mb']:>6.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        run_task(*arguments.task)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = folder / "source", folder / "out"
        in_own_process(make_inputs, source, arguments.rows, arguments.files)
        num_bytes = sum(path.stat().st_size for path in source.iterdir())
        print(f"{arguments.rows:,} rows in {arguments.files} Parquet files, {num_bytes / 1e6:,.0f} MB")
        print(f"{'':24} {'rows':>11} {'shards':>8} {'wall':>10} {'CPU':>10} {'':>19} {'peak':>9}")
        show("plan", measure("plan", source, output, arguments.shard_rows))
        show("plan again (resume)", measure("plan", source, output, arguments.shard_rows))
        show("plan, 40 rows per shard", measure("plan", source, folder / "small", 40))
        show("read in order", measure("read", source, output, arguments.shard_rows))
        in_own_process(make_texts, folder / "texts", arguments.rows // _TEXT_SHARE)
        for text in ("rows.csv", "rows.jsonl"):
            result = measure("plan", folder / "texts" / text, folder / f"out-{text}", arguments.shard_rows)
            show(f"convert {text}", result)


if __name__ == "__main__":
    main()
