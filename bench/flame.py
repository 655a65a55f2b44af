"""Draws a flame graph of one of the workloads that miss their targets.

    make bench-peers && .venv/bin/python -m bench.flame resize ../shared/data/pairs flame.svg

The width of a box is the fraction of samples that contain its function. Frames of C libraries are shown where their
names are known, except for `embed`. `resize` runs the photographs of 640 px through `ImageProcessor`, and `large` does
so for synthetic pictures of 1,600 px or more. `download` runs the download stage on photographs from nginx, without
Ray, `laion` on synthetic pictures of LAION's sizes, and `https` on the URLs of `bench.fetch --https`, as root, with new
connections after every 4,000 rows. `embed` runs the plain loop of bench.embed over 240 pairs. `select` runs the steps
of bench.select on a million rows, in one process. `model` is a whole build with `tiny`, with all its processes, as in
bench.model_cost; only the time on a CPU counts.
"""

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from bench import name_server
from bench.embed import run_pairmill, save_weights, write_tars
from bench.fetch import MEDIAN_PX, SHARD_ROWS, corpus, named_hosts, photos
from bench.model_cost import build_seconds, write_urls
from bench.nginx import nginx
from bench.process import LARGE, MEDIUM, pictures, processor
from bench.select import STEPS
from tests.synthetic_dataset import write_dataset

if TYPE_CHECKING:
    from pairmill.pipeline.fetch.downloader import Downloader, _Engine

PY_SPY = Path(".venv-peers/bin/py-spy")
SECONDS, RATE = 15, 200
TLS_ROWS = 4_000
EMBED_ROWS = 240
_COMMAND_LINE = re.compile(r"process \d+:&quot;(?P<words>[^<]*?)(?:&quot;|\.\.(?=</text>))")


def for_a_while(work: Callable[[], object]) -> None:
    """Repeat the work for SECONDS."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        work()


def process(folder: Path, name: str) -> None:
    work, bodies = processor(), pictures(folder)[name]
    for_a_while(lambda: [work(body) for body in bodies])


def new_downloader() -> "Downloader":
    """A downloader for loopback servers, with garbage collection as in a worker."""
    from pairmill.pipeline.fetch.downloader import Downloader
    from pairmill.schemas.jobs import BuildJob

    fetch = {"allow_networks": ["127.0.0.0/8"], "retries": 0}
    job = BuildJob.model_validate({"source": {"paths": ["in.parquet"]}, "output": "out", "fetch": fetch})
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    return Downloader(job)


def download(pictures: Path) -> None:
    """Download the pictures of a folder."""
    files = sorted(path.name for path in pictures.iterdir())
    with nginx(pictures) as bases:
        urls = [f"{bases[n % len(bases)]}/{files[n % len(files)]}?{n}" for n in range(2_000)]
        engine = new_downloader()._start()
        for_a_while(lambda: run_shards(engine, [urls] * 4))
        engine.close()


def https(folder: Path) -> None:
    """Download the URLs that `main` has written."""
    urls = Path(folder, "urls.txt").read_text().split()

    def once() -> None:
        engine = new_downloader()._start()
        run_shards(engine, [urls[n : n + SHARD_ROWS] for n in range(0, len(urls), SHARD_ROWS)])
        engine.close()

    for_a_while(once)


def run_shards(engine: "_Engine", shards: list[list[str]]) -> None:
    """Download shards, four at a time."""
    from pairmill.pipeline.common.progress import unwatched

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda urls: engine.run(dict.fromkeys(urls, frozenset[str]()), unwatched()), shards))


def select(folder: Path) -> None:
    from pairmill.jobs.select import select as run
    from pairmill.schemas.subset import SelectJob

    with tempfile.TemporaryDirectory() as dataset:
        write_dataset(Path(dataset), 1_000_000)
        job = SelectJob.model_validate({"dataset": dataset, "name": "flame", "steps": STEPS})
        for_a_while(lambda: run(job, overwrite=True))


def embed(folder: Path) -> None:
    """Embed tars that `_pictures` has written."""
    run_pairmill(sorted(map(str, folder.glob("*.tar"))), str(folder), str(folder / "out"))


def model(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        web = Path(name)
        web.chmod(0o755)
        files = photos(folder, web)
        with nginx(web) as bases:
            build_seconds(write_urls(web / "urls.parquet", bases, files), web / "out")


WORKLOADS: dict[str, Callable[[Path], None]] = {
    "resize": lambda folder: process(folder, MEDIUM),
    "large": lambda folder: process(folder, LARGE),
    "download": download,
    "laion": download,
    "https": https,
    "embed": embed,
    "select": select,
    "model": model,
}


def _process_name(found: re.Match[str]) -> str:
    """A name without the paths of this machine."""
    scripts = re.findall(r"([\w.]+)\.py\b", found["words"])
    return f"process {scripts[-1] if scripts else 'raylet' if 'raylet' in found['words'] else 'bench.flame'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("photos", type=Path)
    parser.add_argument("svg", nargs="?", type=Path, default=Path("flame.svg"))
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        WORKLOADS[options.name](options.photos)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record(options.name, _prepared(stack, options.name, options.photos, folder), options.svg)


def _prepared(stack: ExitStack, name: str, photographs: Path, folder: Path) -> Path:
    """The folder that a workload reads, prepared before recording starts."""
    folder.chmod(0o755)  # nginx's worker runs as another user
    match name:
        case "embed":
            write_tars(folder, EMBED_ROWS)
            save_weights(folder)
        case "laion":
            corpus(folder, 500, MEDIAN_PX)
        case "download":
            photos(photographs, folder)
        case "https":
            (folder / "web").mkdir()
            files = photos(photographs, folder / "web")
            hosts = named_hosts(stack, folder, TLS_ROWS)
            urls = [f"{host}/{files[n % len(files)]}?{n}" for n, host in enumerate(hosts)]
            (folder / "urls.txt").write_text("\n".join(urls))
        case _:
            return photographs
    return folder


def record(name: str, folder: Path, svg: Path) -> None:
    """Run a workload in a process of its own, and draw its flame graph."""
    work = [os.path.relpath(sys.executable), "-m", "bench.flame", name, str(folder), "--run"]
    if name == "model":  # sampling many processes takes long
        scope = ["--subprocesses", "--nonblocking", "--rate", str(RATE // 5)]
    elif name == "embed":  # torch's symbols take py-spy seconds per sample
        scope = ["--rate", str(RATE // 5)]
    else:
        scope = ["--native", "--rate", str(RATE)]
    command = [str(PY_SPY), "record", *scope, "--output", str(svg), "--", *work]
    command = name_server.command(folder, command) if name == "https" else command
    subprocess.run(command, check=True)
    drawn = _COMMAND_LINE.sub(_process_name, svg.read_text())
    svg.write_text(drawn.replace(str(folder), "PICTURES").replace(str(svg), svg.name))


if __name__ == "__main__":
    main()
