"""Measures the CPU time that a build spends outside its model, compared with an earlier version.

    python -m bench.model_cost ../shared/data/pairs --rounds 5

Builds a dataset from the 308 photographs of `bench.fetch --photos`, ten rows for each, with `tiny`. nginx serves them.
Adds up the CPU time of all processes except nginx (and except Ray's start, which the earlier version needs), and
subtracts the CPU time that a process takes to import and load the model and to run it on as many inputs in memory.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.earlier_version import earlier_version, run
from bench.fetch import photos
from bench.nginx import nginx

PHOTOS, ROWS_PER_PHOTO = 308, 10
SHARD_ROWS = 500
_POLL_S = 0.25


class CpuTime:
    """CPU seconds that this process and its descendants, including those that have ended, use within the block."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> "CpuTime":
        self._sample()
        self._before = dict(self._seconds)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values()) - sum(self._before.values())

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._sample()

    def _sample(self) -> None:
        here = psutil.Process()
        for process in [here, *here.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._seconds[process.pid] = times.user + times.system


def write_urls(path: Path, bases: Sequence[str], files: Sequence[str]) -> Path:
    """Write a list with ROWS_PER_PHOTO rows for each file."""
    rows = range(len(files) * ROWS_PER_PHOTO)
    urls = [f"{bases[n % len(bases)]}/{files[n % len(files)]}?{n}" for n in rows]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture number {n}" for n in rows]}), path)
    return path


def build_seconds(urls: Path, output: Path) -> float:
    """CPU seconds of a build with `tiny` per 1,000 pairs. The earlier version runs on Ray, whose start does not
    count."""
    from pairmill.jobs.build import build
    from pairmill.jobs.cluster.session import ray_session
    from pairmill.schemas.jobs import BuildJob

    job = BuildJob.model_validate(
        {
            "source": {"paths": [str(urls)]},
            "output": str(output),
            "shard_rows": SHARD_ROWS,
            "fetch": {"allow_networks": ["127.0.0.0/8"], "retries": 0},
            "models": [{"name": "tiny"}],
        }
    )
    needs_ray = importlib.util.find_spec("pairmill.jobs.cluster.process_backend") is None
    with ray_session(job.run) if needs_ray else nullcontext():
        with CpuTime() as cpu:
            result = build(job)
        return cpu.seconds / result.kept * 1000


def model_seconds() -> float:
    """CPU seconds that importing, loading and running the model takes in this process, per 1,000 pairs."""
    started = time.process_time()
    import torch

    from pairmill.pipeline.encode.clip_model import load_model
    from pairmill.schemas.job.models import ModelConfig
    from pairmill.schemas.job.run import RunConfig

    model = load_model(ModelConfig(name="tiny"), RunConfig(device="cpu"))
    start_s = time.process_time() - started
    inputs = torch.zeros((PHOTOS, 3, 64, 64), dtype=torch.uint8)  # equal pictures in a shard are encoded only once
    captions = [f"picture number {number}" for number in range(SHARD_ROWS)]
    started = time.process_time()
    model.encode_images(inputs)
    model.encode_captions(captions)
    return (time.process_time() - started) / SHARD_ROWS * 1000 + start_s / (PHOTOS * ROWS_PER_PHOTO) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", nargs=2, metavar=("URLS", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--model-alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model_alone:
        print(model_seconds())
        return
    if options.run:
        print("\n" + json.dumps(build_seconds(Path(options.run[0]), Path(options.run[1]))))
        return
    with tempfile.TemporaryDirectory() as name, earlier_version() as environment:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "web").mkdir()
        files = photos(options.folder, folder / "web")
        with nginx(folder / "web") as bases:
            write_urls(folder / "urls.parquet", bases, files)
            compare(options, folder, environment)


def compare(options: argparse.Namespace, folder: Path, earlier: dict[str, str]) -> None:
    """Run both versions in turn and print the results."""
    found: dict[str, list[float]] = {"now": [], "earlier version": []}
    model_s = float(run("bench.model_cost", [str(options.folder.resolve()), "--model-alone"]))
    print(f"the model alone: {model_s:.2f} CPU s per 1,000 pairs", flush=True)
    for number in range(options.rounds):
        for side, environment in (("now", None), ("earlier version", earlier)):
            with tempfile.TemporaryDirectory() as out:
                arguments = [str(options.folder.resolve()), "--run", str(folder / "urls.parquet"), f"{out}/out"]
                found[side].append(json.loads(run("bench.model_cost", arguments, environment)) - model_s)
        print(number + 1, {side: round(values[-1], 2) for side, values in found.items()}, flush=True)
    for side, values in found.items():
        print(f"{side}: {statistics.median(values):.2f} CPU s outside the model per 1,000 pairs")
    ratios = [old / new for old, new in zip(found["earlier version"], found["now"], strict=True)]
    print(f"earlier version / now: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    main()
