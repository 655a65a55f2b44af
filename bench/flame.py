"""Draws a flame graph of one of the workloads that miss their targets.

    make bench-peers && .venv/bin/python -m bench.flame resize ../shared/data/pairs flame.svg

The width of a box is the fraction of samples that contain its function. Frames of C libraries are shown where their
names are known, except for `embed`. `resize` runs the photographs of 640 px through `ImageProcessor`, and `large` does
so for synthetic pictures of 1,600 px or more. `download` runs the download stage on photographs from nginx, without
Ray, and `laion` on synthetic pictures of LAION's sizes. `embed` runs the plain loop of bench.embed over 240 pairs.
`select` runs the steps of bench.select on a million rows, in one process. `model` is a whole build with `tiny`, with
all its processes, as in bench.model_cost; only the time on a CPU counts.
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
from pathlib import Path

from bench.embed import run_pairmill, save_weights, write_tars
from bench.fetch import MEDIAN_PX, corpus, photos
from bench.model_cost import build_seconds, write_urls
from bench.nginx import nginx
from bench.process import LARGE, MEDIUM, pictures, processor
from bench.select import STEPS
from tests.synthetic_dataset import write_dataset

PY_SPY = Path(".venv-peers/bin/py-spy")
SECONDS, RATE = 15, 200
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


def download(pictures: Path) -> None:
    """Download the pictures of a folder, with garbage collection as in a worker."""
    from pairmill.pipeline.common.progress import unwatched
    from pairmill.pipeline.fetch.downloader import Downloader
    from pairmill.schemas.jobs import BuildJob

    fetch = {"allow_networks": ["127.0.0.0/8"], "retries": 0}
    job = BuildJob.model_validate({"source": {"paths": ["in.parquet"]}, "output": "out", "fetch": fetch})
    files = sorted(path.name for path in pictures.iterdir())
    with nginx(pictures) as bases, ThreadPoolExecutor(4) as shards:
        urls = {f"{bases[n % len(bases)]}/{files[n % len(files)]}?{n}": frozenset[str]() for n in range(2_000)}
        engine = Downloader(job)._start()
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        for_a_while(lambda: list(shards.map(lambda _: engine.run(urls, unwatched()), range(4))))
        engine.close()


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
    with tempfile.TemporaryDirectory() as web:
        record(options.name, _pictures(options.name, options.photos, Path(web)), options.svg)


def _pictures(name: str, folder: Path, web: Path) -> Path:
    """The folder with pictures that a workload reads, prepared before recording starts."""
    if name not in ("download", "laion", "embed"):
        return folder
    web.chmod(0o755)  # nginx's worker runs as another user
    if name == "embed":
        write_tars(web, EMBED_ROWS)
        save_weights(web)
    elif name == "laion":
        corpus(web, 500, MEDIAN_PX)
    else:
        photos(folder, web)
    return web


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
    subprocess.run(command, check=True)
    drawn = _COMMAND_LINE.sub(_process_name, svg.read_text())
    svg.write_text(drawn.replace(str(folder), "PICTURES").replace(str(svg), svg.name))


if __name__ == "__main__":
    main()
