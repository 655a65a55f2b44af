"""Peak memory of a build against the number of its shards.

    python -m bench.memory [--shards 10 40 160] [--shard-rows 200] [--width 640]

Each build runs in a process of its own with a local Ray of its own. Twice a second the resident memory of the driver
and of each stage's actor is read (shared memory, which is the object store's, is counted apart); the table gives peaks,
and the last line how the largest actor's grows with the rows.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.decode import draw
from bench.web import serving
from jobs.build import build
from schemas.jobs import BuildJob

INTERVAL_S = 0.5


def run_build(urls: list[str], folder: str, shard_rows: int) -> None:
    """One build without a model."""
    pq.write_table(
        pa.table({"url": urls, "caption": [f"number {n}" for n in range(len(urls))]}), f"{folder}/in.parquet"
    )
    values = {
        "source": {"paths": [f"{folder}/in.parquet"]},
        "output": f"{folder}/out",
        "shard_rows": shard_rows,
        "fetch": {"allow_networks": ["127.0.0.0/8"]},
    }
    result = build(BuildJob.model_validate(values))
    assert result.kept == len(urls), result.statuses


def watch(driver: psutil.Process, peaks: dict[str, int], stop: threading.Event) -> None:
    """Note the highest private and shared memory per kind of process until `stop`."""
    while not stop.wait(INTERVAL_S):
        shared = 0
        for process in _processes(driver):
            try:
                memory, name = process.memory_info(), " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            kind = "driver" if process == driver else "largest actor" if name.startswith("ray::") else "ray itself"
            peaks[kind] = max(peaks[kind], memory.rss - memory.shared)
            shared = max(shared, memory.shared)
        peaks["object store"] = max(peaks["object store"], shared)


def _processes(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def measure(urls: list[str], shard_rows: int) -> tuple[dict[str, int], float]:
    """(peak bytes by kind, seconds) of one build."""
    peaks: dict[str, int] = defaultdict(int)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=run_build, args=(urls, folder, shard_rows))
        started = time.perf_counter()
        process.start()
        assert process.pid
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), peaks, stop))
        watcher.start()
        process.join()
        stop.set()
        watcher.join()
        assert process.exitcode == 0
        assert Path(folder, "out", "manifests").is_dir()
    return peaks, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 40, 160])
    parser.add_argument("--shard-rows", type=int, default=200)
    parser.add_argument("--width", type=int, default=640, help="of the pictures, in pixels")
    options = parser.parse_args()
    pictures = [draw(options.width, options.width * 3 // 4, seed=n) for n in range(100)]
    actors: list[tuple[int, float]] = []  # rows, MB
    print(f"{'shards':<8}{'rows':>8}{'seconds':>10}{'driver MB':>12}{'largest actor MB':>18}{'object store MB':>17}")
    with serving(pictures) as bases:
        for shards in options.shards:
            urls = [f"{bases[n % len(bases)]}/{n}.jpg" for n in range(shards * options.shard_rows)]
            peaks, seconds = measure(urls, options.shard_rows)
            actors.append((len(urls), peaks["largest actor"] / 1e6))
            megabytes = [peaks[kind] / 1e6 for kind in ("driver", "largest actor", "object store")]
            print(
                f"{shards:<8}{len(urls):>8}{seconds:>10.0f}"
                f"{megabytes[0]:>12.0f}{megabytes[1]:>18.0f}{megabytes[2]:>17.0f}",
                flush=True,
            )
    if len(actors) > 1:
        (rows, start), (most_rows, end) = actors[0], actors[-1]
        print(f"largest actor: {(end - start) / (most_rows - rows) * 1e5:+.1f} MB per 100,000 rows")


if __name__ == "__main__":
    main()
