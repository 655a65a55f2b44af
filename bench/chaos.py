"""Kills something at random in the middle of a build, then reruns the same command until it succeeds.

    python -m bench.chaos [--runs 30] [--seed 1] [--here]

Uses a Ray cluster of three nodes (`ray.cluster_utils`, on one machine) or, with --here, this machine without Ray; a
slow loopback web server, and S3 (moto's server behind a proxy). Each run builds a dataset of 240 pairs in 20 shards on
S3, with `tiny`. At a random moment, the driver, a download worker, an encode worker, a node or (with --here) the server
that forks workers is killed, or S3 stops for ten seconds; or else 5% of all S3 requests fail throughout the run. Every
run must end with exactly the rows of the undisturbed run (row_id and status), none twice, and `verify` must find no
problems.
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
import uuid
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
"""Approximate time of an undisturbed run, from its first download worker to the end."""
S3_DOWN_S = 10.0
MAX_RESUMES = 5
PAIRMILL = [sys.executable, "-m", "pairmill"]


def add_node(cluster: Any, **resources: Any) -> Any:
    """Add a node that unpacks the job's files into a folder of its own.

    Simulated nodes share a session's folder. When two of them start a job's workers, the later one deletes the current
    folder of the earlier one's workers: it replaces files that it has not unpacked itself.
    """
    return cluster.add_node(runtime_env_dir_name=f"runtime_resources_{uuid.uuid4().hex[:8]}", **resources)


@dataclass
class World:
    """The cluster, if there is one, the web server and the bucket that all runs share."""

    cluster: Any | None
    s3: FaultyS3
    source: str
    web: str
    nodes: list[Any] = field(default_factory=list)

    def add_node(self) -> None:
        """Add a node with two CPUs."""
        assert self.cluster
        self.nodes.append(add_node(self.cluster, num_cpus=2, object_store_memory=300_000_000))


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
    workers = _workers(world, driver, "download")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(workers)  # which Linux or Ray ends
    return True


def kill_download_worker(world: World, driver: Driver, rng: random.Random) -> bool:
    return _kill_one(_workers(world, driver, "download"), rng)


def kill_encode_worker(world: World, driver: Driver, rng: random.Random) -> bool:
    return _kill_one(_workers(world, driver, "encode"), rng)


def kill_fork_server(world: World, driver: Driver, rng: random.Random) -> bool:
    return _kill_one(_fork_servers(driver), rng)


def kill_node(world: World, driver: Driver, rng: random.Random) -> bool:
    assert world.cluster
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
    "download worker": kill_download_worker,
    "encode worker": kill_encode_worker,
    "node": kill_node,
    "fork server": kill_fork_server,
    "S3 for 10 s": stop_s3,
    "5% of S3 requests": kill_nothing,
}


def _kill_one(found: list[psutil.Process], rng: random.Random) -> bool:
    if found:
        rng.choice(found).kill()
    return bool(found)


def _workers(world: World, driver: Driver, stage: str) -> list[psutil.Process]:
    """The processes of a stage; other clusters and builds may be running on the same machine."""
    if world.cluster is None:
        return [each for server in _fork_servers(driver) for each in server.children() if each.name() == stage]
    raylets = {node.all_processes["raylet"][0].process.pid for node in [world.cluster.head_node, *world.nodes]}
    title = f"ray::{stage.title()}Actor"
    return [
        process
        for process in psutil.process_iter(["cmdline", "ppid"])
        if title in " ".join(process.info["cmdline"] or []) and process.info["ppid"] in raylets
    ]


def _fork_servers(driver: Driver) -> list[psutil.Process]:
    try:
        return [each for each in psutil.Process(driver.pid).children() if "fork_server" in " ".join(each.cmdline())]
    except psutil.NoSuchProcess:
        return []


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
        *([] if world.cluster is None else [f"run.address={world.cluster.address}"]),
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
    """Wait until there is a download worker."""
    while driver.poll() is None:
        if _workers(world, driver, "download"):
            return
        time.sleep(0.1)


def _rows(store: Store) -> Iterator[str]:
    for manifest in read_manifests(store):
        for part in ("pairs", "rejects"):
            with store.open(manifest.files[part].path) as file:
                rows = pq.ParquetFile(file).read(columns=["row_id", "status"])
                yield from (f"{row['row_id']} {row['status']}" for row in rows.to_pylist())


@contextmanager
def world(folder: Path, is_here: bool = False) -> Iterator[World]:
    """Start everything, and stop it at the end of the block. `is_here`: without a cluster."""
    with s3_server("mill") as url, credentials(), slow_web(DELAY_S) as web:
        s3 = FaultyS3(url)
        rows = [f"{web}/{number}.jpg" for number in range(ROWS)]
        pq.write_table(pa.table({"url": rows, "caption": rows}), folder / "in.parquet")
        Store("s3://mill/in", S3Config(endpoint=s3.url)).create("in.parquet", (folder / "in.parquet").read_bytes())
        made = World(None if is_here else _cluster(), s3, "s3://mill/in/in.parquet", web)
        for _ in range(0 if is_here else 2):
            made.add_node()
        try:
            yield made
        finally:
            if made.cluster is not None:
                made.cluster.shutdown()
            s3.close()


def _cluster() -> Any:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "object_store_memory": 300_000_000, "include_dashboard": False}
    return Cluster(initialize_head=True, head_node_args=head)


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
    parser.add_argument("--here", action="store_true", help="on this machine, without Ray")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kills = [name for name in KILLS if name != ("node" if options.here else "fork server")]
    with tempfile.TemporaryDirectory() as folder, world(Path(folder), options.here) as made:
        calm = [run(made, f"calm{number}", [], rng) for number in range(3)]
        times = [each.seconds for each in calm]
        calm_s = statistics.median(times)
        print(f"undisturbed: {calm_s:.1f} s ({min(times):.1f} to {max(times):.1f})", flush=True)
        runs = []
        for number in range(options.runs):
            killed = kills[number % len(kills)]
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
