"""Kills something at random in the middle of a build, then reruns the same command until it succeeds.

    python -m bench.chaos [--runs 30] [--seed 1]

Uses a Ray cluster of three nodes (`ray.cluster_utils`, on one machine), a slow loopback web server, and S3 (moto's
server behind a proxy). Each run builds a dataset of 240 pairs in 20 shards on S3, with `tiny`. At a random moment, the
driver, a download actor, an encode actor or a node is killed, or S3 stops for ten seconds; or else 5% of all S3
requests fail throughout the run. Every run must end with exactly the rows of the undisturbed run (row_id and status),
none twice, and `verify` must find no problems.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.faulty_s3 import Faults, FaultyS3, credentials, s3_server
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.schemas.s3 import S3Config

ROWS, SHARD_ROWS = 240, 12
DELAY_S = 0.4
WORK_S = 6.0
"""Approximate time of an undisturbed run, from its first download actor to the end."""
S3_DOWN_S = 10.0
MAX_RESUMES = 5
PAIRMILL = [sys.executable, "-m", "pairmill"]


@dataclass
class World:
    """The cluster, the web server and the bucket that all runs share."""

    cluster: Any
    s3: FaultyS3
    source: str
    web: str
    nodes: list[Any] = field(default_factory=list)

    def add_node(self) -> None:
        """Add a node with two CPUs."""
        self.nodes.append(self.cluster.add_node(num_cpus=2, object_store_memory=300_000_000))


@dataclass(frozen=True)
class Run:
    """The outcome of a build, including the reruns that it needed."""

    killed: str
    hit: bool
    """Whether every fault took effect: the run was still in progress, and had a process of the kind to kill."""
    seconds: float
    resumed: int
    rows: list[str]
    """row_id and status of each row, sorted."""
    problems: list[str]


Driver = subprocess.Popen[str]


def kill_driver(world: World, driver: Driver, rng: random.Random) -> bool:
    """Kill the driver. Like all functions in KILLS, this returns whether it found something to kill."""
    os.killpg(driver.pid, signal.SIGKILL)
    return True


def kill_download_actor(world: World, driver: Driver, rng: random.Random) -> bool:
    return _kill_actor(world, "DownloadActor", rng)


def kill_encode_actor(world: World, driver: Driver, rng: random.Random) -> bool:
    return _kill_actor(world, "EncodeActor", rng)


def kill_node(world: World, driver: Driver, rng: random.Random) -> bool:
    world.cluster.remove_node(world.nodes.pop(rng.randrange(len(world.nodes))), allow_graceful=False)
    world.add_node()
    return True


def stop_s3(world: World, driver: Driver, rng: random.Random) -> bool:
    world.s3.faults.down = True
    time.sleep(S3_DOWN_S)
    world.s3.faults.down = False
    return True


def kill_nothing(world: World, driver: Driver, rng: random.Random) -> bool:
    return True


KILLS: dict[str, Callable[[World, Driver, random.Random], bool]] = {
    "driver": kill_driver,
    "download actor": kill_download_actor,
    "encode actor": kill_encode_actor,
    "node": kill_node,
    "S3 for 10 s": stop_s3,
    "5% of S3 requests": kill_nothing,
}


def _kill_actor(world: World, title: str, rng: random.Random) -> bool:
    found = _processes(world, title)
    if found:
        rng.choice(found).kill()
    return bool(found)


def _processes(world: World, title: str) -> list[psutil.Process]:
    """The processes of this cluster's actors; other clusters may be running on the same machine."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in [world.cluster.head_node, *world.nodes]}
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if f"ray::{title}" in " ".join(process.info["cmdline"] or []) and process.info["ppid"] in raylets:
            found.append(process)
    return found


def run(world: World, name: str, kills: Sequence[str], rng: random.Random) -> Run:
    """Run a build until it succeeds, and inject the faults `kills` one after another within the first WORK_S of its
    work."""
    output = f"s3://mill/{name}"
    world.s3.faults = (
        Faults(slow_down=0.03, reset=0.015, lost_replies=0.005) if "5% of S3 requests" in kills else Faults()
    )
    started, resumed, hit = time.perf_counter(), 0, True
    driver = _start(world, output)
    for killed in kills:
        if driver.poll():
            driver.communicate()
            resumed, driver = resumed + 1, _start(world, output)
        _wait_for_work(world, driver)
        time.sleep(rng.uniform(0, WORK_S / len(kills)))
        hit = driver.poll() is None and KILLS[killed](world, driver, rng) and hit
        if killed == "driver":
            driver.wait()
            while _processes(world, "DownloadActor"):  # until Ray ends the actors of the dead driver
                time.sleep(0.1)
    said = driver.communicate(timeout=300)
    while driver.returncode != 0:
        if resumed == MAX_RESUMES:
            raise SystemExit(f"{name}: still failing after {resumed} resumptions:\n{said[0]}{said[1]}")
        resumed += 1
        driver = _start(world, output)
        said = driver.communicate(timeout=300)
    seconds = time.perf_counter() - started
    world.s3.faults = Faults()
    store = Store(output, S3Config(endpoint=world.s3.url))
    return Run(
        " and ".join(kills) or "nothing", hit, seconds, resumed, sorted(_rows(store)), verify(store, rescore=0).problems
    )


def _start(world: World, output: str) -> Driver:
    settings = [
        f"run.address={world.cluster.address}",
        f"s3.endpoint={world.s3.url}",
        "fetch.allow_networks=[127.0.0.0/8]",
        "fetch.per_host_concurrency=4",
        f"shard_rows={SHARD_ROWS}",
        "run.download_actors=2",
        "run.encode_threads=1",
    ]
    flags = [part for setting in settings for part in ("--set", setting)]
    command = [*PAIRMILL, "build", world.source, output, "--model", "tiny", "--no-report", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _wait_for_work(world: World, driver: Driver) -> None:
    """Wait until there is a download actor."""
    while driver.poll() is None:
        if _processes(world, "DownloadActor"):
            return
        time.sleep(0.1)


def _rows(store: Store) -> Iterator[str]:
    for manifest in read_manifests(store):
        for part in ("pairs", "rejects"):
            with store.open(manifest.files[part].path) as file:
                rows = pq.ParquetFile(file).read(columns=["row_id", "status"])
                yield from (f"{row['row_id']} {row['status']}" for row in rows.to_pylist())


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start everything, and stop it at the end of the block."""
    from ray.cluster_utils import Cluster

    with s3_server("mill") as url, credentials(), slow_web(DELAY_S) as web:
        s3 = FaultyS3(url)
        rows = [f"{web}/{number}.jpg" for number in range(ROWS)]
        pq.write_table(pa.table({"url": rows, "caption": rows}), folder / "in.parquet")
        Store("s3://mill/in", S3Config(endpoint=s3.url)).create("in.parquet", (folder / "in.parquet").read_bytes())
        head = {"num_cpus": 2, "object_store_memory": 300_000_000, "include_dashboard": False}
        made = World(Cluster(initialize_head=True, head_node_args=head), s3, "s3://mill/in/in.parquet", web)
        for _ in range(2):
            made.add_node()
        try:
            yield made
        finally:
            made.cluster.shutdown()
            s3.close()


@contextmanager
def slow_web(delay_s: float) -> Iterator[str]:
    """Serve the same picture at every path, after a delay."""
    pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
    body = cv2.imencode(".jpg", pixels)[1].tobytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay_s)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed here
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as made:
        calm = [run(made, f"calm{number}", [], rng) for number in range(3)]
        times = [each.seconds for each in calm]
        calm_s = statistics.median(times)
        print(f"undisturbed: {calm_s:.1f} s ({min(times):.1f} to {max(times):.1f})", flush=True)
        runs = []
        for number in range(options.runs):
            killed = list(KILLS)[number % len(KILLS)]
            each = run(made, f"run{number}", [killed], rng)
            as_calm = each.rows == calm[0].rows and not each.problems
            said = ("ok" if as_calm else str(each)) + ("" if each.hit else ", but the fault came too late")
            print(f"{number + 1:>3} {killed:<20}{each.seconds:7.1f} s, resumed {each.resumed}: {said}", flush=True)
            runs.append((each, as_calm))
    _print_table(runs, calm_s)
    if not all(good for _, good in runs):
        raise SystemExit("not all runs ended like the undisturbed run")


def _print_table(runs: list[tuple[Run, bool]], calm_s: float) -> None:
    print("\n| fault | runs | same rows as undisturbed | had to be rerun | extra seconds, median (range) |")
    print("|---|---|---|---|---|")
    for killed in KILLS:
        some = [(each, good) for each, good in runs if each.killed == killed and each.hit]
        if some:
            more = [each.seconds - calm_s for each, _ in some]
            resumed, good = sum(each.resumed > 0 for each, _ in some), sum(good for _, good in some)
            spread = f"{statistics.median(more):.0f} ({min(more):.0f} to {max(more):.0f})"
            print(f"| {killed} | {len(some)} | {good} | {resumed} | {spread} |")


if __name__ == "__main__":
    main()
