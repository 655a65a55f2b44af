"""Measures how the peak memory of a job depends on its number of shards.

    python -m bench.memory [--embed] [--shards 10 40 160] [--shard-rows 200] [--width 640]

The job builds from URLs without a model; with --embed, it embeds tars with `tiny`. Each job runs in a separate process,
on this machine without Ray. The resident memory of the driver and of each worker is sampled twice a second, without
the memory of the payloads, which they share and which is counted separately. The table gives the peaks. Its last line
says how the largest worker's peak grows with the number of rows.
"""

import argparse
import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import get_args

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.embed import write_tars
from bench.pictures import draw
from bench.web import serving
from pairmill.jobs.build import build
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.jobs import BuildJob

INTERVAL_S = 0.5
KINDS = ("driver", "fork server", "largest worker", "payloads")


Job = dict[str, object]


def run_job(values: Job, rows: int) -> None:
    """Run one job. `measure` calls this in a separate process."""
    result = build(BuildJob.model_validate(values))
    assert result.kept == rows, result.statuses


def url_job(bases: list[str], folder: Path, rows: int) -> Job:
    """A job that builds a dataset from `rows` URLs, without a model."""
    urls = [f"{bases[n % len(bases)]}/{n}.jpg" for n in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": [f"number {n}" for n in range(rows)]}), folder / "in.parquet")
    return {"source": {"paths": [f"{folder}/in.parquet"]}, "fetch": {"allow_networks": ["127.0.0.0/8"]}}


def corpus_job(folder: Path, rows: int) -> Job:
    """A job that embeds `rows` pairs from tars."""
    (folder / "tars").mkdir()
    write_tars(folder / "tars", rows)
    return {"source": {"paths": [f"{folder}/tars"], "kind": "corpus"}, "models": [{"name": "tiny"}]}


def watch(driver: psutil.Process, peaks: dict[str, int], stop: threading.Event) -> None:
    """Record peak private memory per kind of process, and the peak of all payloads, until `stop`."""
    while not stop.wait(INTERVAL_S):
        for process in _processes(driver):
            try:
                memory, name = process.memory_info(), process.name()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            kind = "driver" if process == driver else "largest worker" if name in get_args(StageName) else "fork server"
            peaks[kind] = max(peaks[kind], memory.rss - memory.shared)
        peaks["payloads"] = max(peaks["payloads"], _payloads(driver))


def _payloads(driver: psutil.Process) -> int:
    """Bytes of the payloads that the driver has open: those of all shards in flight."""
    total = 0
    for path in Path(f"/proc/{driver.pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if "memfd:pairmill" in str(path.readlink()):
                total += path.stat().st_size
    return total


def _processes(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def measure(job: Job, rows: int) -> tuple[dict[str, int], float]:
    """Run one job. Returns (the peak bytes for each kind of process, the seconds)."""
    peaks: dict[str, int] = defaultdict(int)
    stop = threading.Event()
    process = multiprocessing.get_context("spawn").Process(target=run_job, args=(job, rows))
    started = time.perf_counter()
    process.start()
    assert process.pid
    listener = threading.Thread(target=watch, args=(psutil.Process(process.pid), peaks, stop))
    listener.start()
    process.join()
    stop.set()
    listener.join()
    assert process.exitcode == 0
    return peaks, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 40, 160])
    parser.add_argument("--shard-rows", type=int, default=200)
    parser.add_argument("--width", type=int, default=640, help="width of the pictures, in pixels")
    parser.add_argument("--embed", action="store_true", help="embed tars instead of building from URLs")
    options = parser.parse_args()
    workers: list[tuple[int, float]] = []  # rows, MB
    print("".join(f"{name:>18}" for name in ("shards", "rows", "seconds", *(f"{kind} MB" for kind in KINDS))))
    pictures = [draw(options.width, options.width * 3 // 4, seed=n) for n in range(100)]
    with serving(pictures) as bases:
        for shards in options.shards:
            rows = shards * options.shard_rows
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                job = corpus_job(folder, rows) if options.embed else url_job(bases, folder, rows)
                job |= {"output": f"{folder}/out", "shard_rows": options.shard_rows}
                peaks, seconds = measure(job, rows)
            workers.append((rows, peaks["largest worker"] / 1e6))
            megabytes = [peaks[kind] / 1e6 for kind in KINDS]
            print("".join(f"{number:>18,.0f}" for number in (shards, rows, seconds, *megabytes)), flush=True)
    if len(workers) > 1:
        (rows, start), (most_rows, end) = workers[0], workers[-1]
        print(f"largest worker: {(end - start) / (most_rows - rows) * 1e5:+.1f} MB per 100,000 rows")


if __name__ == "__main__":
    main()
