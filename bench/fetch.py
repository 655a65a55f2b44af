"""Compares the downloads of pairmill, its img2dataset engine, img2dataset and Daft from an nginx that imitates the web.

    make bench-peers && .venv/bin/python -m bench.fetch --rows 6000 --rounds 5
    .venv/bin/python -m bench.fetch --rows 6000 --rounds 5 --slow      # as root
    .venv/bin/python -m bench.fetch --rows 20000 --photos ../shared/data/pairs --only "codec in memory"

`--https` (as root) downloads over TLS from named hosts with 1 to 30 pictures each, in random order. `--slow` (as root)
adds a latency of 300 ms to 2 s and a name server that takes 20 ms and fails for 3% of the names. In addition, 5% of the
hosts never answer, and failed rows count as done. `--photos` serves real photographs instead of synthetic pictures.

All tools download from the same nginx on the same cores, resize pictures whose longer side exceeds 512 px, and store
JPEGs at quality 95. Each run is a separate process. `steady` is the slope of rows over time, without start-up: for
pairmill, of downloaded rows without the first and the last twentieth; for img2dataset, of the rows of finished shards;
for Daft, rows over the time of its query. `wall` is the wall-clock time of the whole process. `codec in memory` is the
upper limit: decode + resize + encode on the same bytes in memory, one thread per core. Rounds are interleaved; ratios
are medians over the rounds.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import trustme
from PIL import Image

from bench import name_server
from bench.nginx import delaying_proxies, nginx, silent_hosts
from bench.pictures import draw, srgb, wide, with_profile
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig

PEERS = Path(".venv-peers/bin/python")
FORMATS = ["JPEG"] * 17 + ["PNG", "WEBP", "GIF"]
"""Roughly the mix of formats on the web: https://almanac.httparchive.org/en/2024/media"""
MEDIAN_PX, SPREAD = 340, 0.72
"""Log-normal distribution of the longer side. In LAION-400M, it is at least 256 px for 65% of the pictures, 512 px for
27% and 1,024 px for 6.3%. This distribution gives 65%, 28% and 6.3%. https://laion.ai/blog/laion-400-open-dataset/"""
FULL_CHROMA_SHARE, SRGB_SHARE, WIDE_SHARE = 0.24, 0.08, 0.035
"""Of the 918 photographs in ../shared/data/pairs (COCO, Flickr8k, Conceptual Captions), 219 are 4:4:4 and the others
4:2:0; 72 have an sRGB profile and 32 a different profile, mostly Adobe RGB. None is progressive or has EXIF data."""
SHARD_ROWS = 500
TRIAL_ROWS, CODEC_ROWS = 2_000, 3_000
MAX_PICTURES_PER_HOST = 30
"""Maximum number of pictures per host with `--https`; the minimum is one."""
THUMBNAIL_PX = 200
TIMEOUT_S = 10
LATENCY_S = (0.3, 2.0)
DEAD_SHARE, NO_NAME_SHARE = 0.05, 0.03
"""The share of hosts that accept connections but never answer, and the share of names that do not resolve."""
DNS_S = 0.020
ENGINE, DAFT, CODEC = "img2dataset engine", "daft", "codec in memory"
Figures = dict[str, float]


def corpus(folder: Path, count: int, median_px: int) -> list[str]:
    """Write pictures whose longer side is 100 to 4,000 px (median `median_px`). Returns their file names."""
    rng = np.random.default_rng(11)
    files = []
    for number in range(count):
        longer = int(np.clip(rng.lognormal(np.log(median_px), SPREAD), 100, 4000))
        format = FORMATS[number % len(FORMATS)]
        longer = min(longer, 1200) if format in ("PNG", "GIF") else longer
        chroma = "444" if rng.random() < FULL_CHROMA_SHARE else "420"
        body = draw(longer, int(longer / rng.uniform(1.0, 1.8)), seed=number, chroma=chroma)
        kind = rng.random()
        if kind < SRGB_SHARE + WIDE_SHARE:
            body = with_profile(body, srgb() if kind < SRGB_SHARE else wide())
        if format != "JPEG":
            file = io.BytesIO()
            Image.open(io.BytesIO(body)).save(file, format)
            body = file.getvalue()
        files.append(f"{number}.{format.lower().replace('jpeg', 'jpg')}")
        (folder / files[-1]).write_bytes(body)
    return files


def photos(folder: Path, web: Path) -> list[str]:
    """Link to 308 photographs from ../shared/data/pairs. Returns the names of the links.

    The 308 are every full-size picture from Flickr8k (500 px, 4:2:0), and the pictures from COCO that have a color
    profile (mostly 640 px, 4:4:4). Of the 308 pictures, 31% are larger than 512 px, and 34% have a profile.
    """
    chosen = [
        path
        for path in sorted(folder.resolve().rglob("*.jpg"))
        for image in [Image.open(path)]
        if ("flickr8k" in path.parts and max(image.size) > THUMBNAIL_PX)
        or ("coco" in path.parts and "icc_profile" in image.info)
    ]
    for number, index in enumerate(np.random.default_rng(11).permutation(len(chosen))):
        (web / f"{number}.jpg").symlink_to(chosen[index])
    return [f"{number}.jpg" for number in range(len(chosen))]


def codec(bodies: list[bytes], rows: int) -> Figures:
    """Pictures per second of decode + resize + encode, one thread per core."""
    process = ImageProcessor(ImagesConfig()).process
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda n: process(bodies[n % len(bodies)]), range(rows)))
    seconds = time.perf_counter() - started
    return {"wall_s": seconds, "rows_per_s": rows / seconds, "good": rows}


def measured(command: list[str]) -> Figures:
    """Run a command that prints its figures as its last line. The wall-clock time is that of the whole process."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    figures = {**json.loads(lines[-1]), "wall_s": time.perf_counter() - started}
    if not figures["good"]:
        raise RuntimeError(f"{' '.join(command)}: downloaded no pictures")
    return figures


def sides(urls: Path, folder: Path, threads: int, is_named: bool) -> dict[str, list[str]]:
    """Name of a tool -> the command that runs it. `is_named`: whether the hosts of the URLs have names."""
    ours, limits = [sys.executable, "-m", "bench.build_run"], [str(SHARD_ROWS), str(TIMEOUT_S)]
    commands = {
        "pairmill": [*ours, "aiohttp", str(urls), str(folder / "ours"), *limits],
        "img2dataset": [
            *(str(PEERS), "-m", "bench.peers.img2dataset_run", str(urls), str(folder / "theirs")),
            *(str(os.cpu_count()), str(threads), str(TIMEOUT_S)),
        ],
        ENGINE: [*ours, "img2dataset", str(urls), str(folder / "engine"), *limits],
        DAFT: [
            str(PEERS),
            "bench/peers/daft_run.py",
            str(urls),
            str(folder / "daft"),
            str(pq.read_metadata(urls).num_rows),
        ],
    }
    return {name: name_server.command(urls.parent, words) for name, words in commands.items()} if is_named else commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[6_000], help="one comparison for each number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--median-px", type=int, default=MEDIAN_PX, help="median length of the longer side")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="serve real photographs: ../shared/data/pairs")
    parser.add_argument("--https", action="store_true", help="TLS, with thousands of host names; as root")
    parser.add_argument("--slow", action="store_true", help="latency, slow and failing DNS, dead hosts; as root")
    parser.add_argument(
        "--only", default=f"{ENGINE},{DAFT},{CODEC}", help="what runs besides pairmill and img2dataset, comma-separated"
    )
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # if root starts nginx, its worker runs as another user
        (folder / "web").mkdir()
        web = folder / "web"
        files = photos(options.photos, web) if options.photos else corpus(web, options.pictures, options.median_px)
        if options.https:
            hosts = named_hosts(stack, folder, max(options.rows))
        else:
            bases = stack.enter_context(nginx(web))
            bases = slow_web(stack, bases) if options.slow else bases
            hosts = [bases[n % len(bases)] for n in range(max(options.rows))]
        urls = [f"{host}/{files[n % len(files)]}?{n}" for n, host in enumerate(hosts)]
        captions = [f"n {n}" for n in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "urls.parquet")
        compare(options, folder, [(folder / "web" / name).read_bytes() for name in files])


def named_hosts(stack: ExitStack, folder: Path, rows: int) -> list[str]:
    """Serve over TLS, with one certificate from our own authority for all hosts. Returns a base URL for each row."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("*.bench.example").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    os.environ["SSL_CERT_FILE"] = str(folder / "ca.pem")
    bases = [urlsplit(base) for base in stack.enter_context(nginx(folder / "web", certificate=folder / "server.pem"))]
    rng = np.random.default_rng(7)
    counts: list[int] = []
    while sum(counts) < rows:
        counts.append(int(rng.integers(1, MAX_PICTURES_PER_HOST + 1)))
    addresses = {f"host{n}.bench.example": bases[n % len(bases)].hostname or "" for n in range(len(counts))}
    stack.enter_context(name_server.name_server(addresses, frozenset(), 0.0))
    origins = [f"https://{name}:{bases[0].port}" for name in addresses]
    hosts = [origin for origin, count in zip(origins, counts, strict=True) for _ in range(count)]
    return [hosts[index] for index in rng.permutation(len(hosts))[:rows]]


def slow_web(stack: ExitStack, bases: list[str]) -> list[str]:
    """Add latency to the hosts and to name lookups; some hosts never answer, and some lookups fail. Returns base
    URLs."""
    delays = np.random.default_rng(5).uniform(*LATENCY_S, len(bases)).tolist()
    dead = stack.enter_context(silent_hosts(round(DEAD_SHARE * len(bases))))
    hosts = [*stack.enter_context(delaying_proxies(bases, delays))[: len(bases) - len(dead)], *dead]
    urls = {f"host{number}.bench.example": urlsplit(base) for number, base in enumerate(hosts)}
    broken = frozenset(list(urls)[: round(NO_NAME_SHARE * len(bases))])
    addresses = {name: url.hostname or "" for name, url in urls.items()}
    stack.enter_context(name_server.name_server(addresses, broken, DNS_S))
    return [f"http://{name}:{url.port}" for name, url in urls.items()]


def compare(options: argparse.Namespace, folder: Path, bodies: list[bytes]) -> None:
    """Run all tools in turn for each number of rows, and print the tables."""
    print(f"{len(bodies)} pictures, {sum(map(len, bodies)) / len(bodies) / 1000:.0f} kB on average", flush=True)
    is_named = options.slow or options.https
    threads = faster_threads(head(folder, TRIAL_ROWS), is_named)
    wanted = {"pairmill", "img2dataset", *options.only.split(",")}
    for rows in options.rows:
        urls, found = head(folder, rows), dict[str, list[Figures]]()
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as out:
                for name, command in sides(urls, Path(out), threads, is_named).items():
                    if name in wanted:
                        found.setdefault(name, []).append(measured(command))
            if CODEC in wanted:
                found.setdefault(CODEC, []).append(codec(bodies, min(rows // 2, CODEC_ROWS)))
            print(number + 1, {name: round(each[-1]["rows_per_s"], 1) for name, each in found.items()}, flush=True)
        print_tables(found, f"{rows} rows")


def head(folder: Path, rows: int) -> Path:
    """The first rows of the URLs, as a file."""
    path = folder / f"{rows}.parquet"
    pq.write_table(pq.read_table(folder / "urls.parquet").slice(0, rows), path)
    return path


def faster_threads(urls: Path, is_named: bool) -> int:
    """The number of threads with which img2dataset is faster, of two."""
    with tempfile.TemporaryDirectory() as out:
        rates = {
            threads: measured(sides(urls, Path(out, str(threads)), threads, is_named)["img2dataset"])["rows_per_s"]
            for threads in (64, 256)
        }
    threads = max(rates, key=lambda count: rates[count])
    print({count: round(rate, 1) for count, rate in rates.items()}, f"-> {threads} threads", flush=True)
    return threads


def print_tables(found: dict[str, list[Figures]], label: str) -> None:
    """Print the medians for every tool, then the ratios with their ranges."""
    print(f"\n{label:<30}{'steady rows/s':>15}{'wall s':>9}{'success':>9}")
    for name, rounds in found.items():
        steady, wall, good = (
            statistics.median(each[key] for each in rounds) for key in ("rows_per_s", "wall_s", "good")
        )
        print(f"{name:<30}{steady:>15.0f}{wall:>9.1f}{good:>9.0f}")
    print()
    for name in list(found)[1:]:
        print_ratio(f"pairmill / {name}, steady, {label}", found["pairmill"], found[name], "rows_per_s")
    print_ratio(f"img2dataset / pairmill, wall, {label}", found["img2dataset"], found["pairmill"], "wall_s")


def print_ratio(label: str, above: list[Figures], below: list[Figures], key: str) -> None:
    ratios = [one[key] / other[key] for one, other in zip(above, below, strict=True)]
    print(f"{label}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
