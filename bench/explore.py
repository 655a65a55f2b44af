"""Measures `pairmill explore`: the first page, counts while a slider moves, pages of pictures, and memory.

    python -m bench.million_rows /tmp/million --rows 1000000
    python -m bench.explore /tmp/million

The server runs in a separate process, first without a cache of columns, then with one. Times are those of an HTTP
client on the same machine.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil

SLIDES = 40
TARGETS = {"first page, warm": 1.0, "count, number": 0.2, "count, text": 0.2}
"""Name of a measurement -> its target, in seconds."""


@dataclass
class Client:
    """A client with one connection that stays open, like a browser's."""

    host: str

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection(self.host, timeout=120)

    def get(self, address: str) -> tuple[float, bytes]:
        """Request a path. Returns (the seconds until the whole response has arrived, the response)."""
        started = time.perf_counter()
        self.connection.request("GET", address)
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{address}: {answer.status} {body[:200]!r}")
        return time.perf_counter() - started, body


@contextmanager
def server(dataset: str, cache: str) -> Iterator[tuple[Client, psutil.Process, float]]:
    """Start a server. Returns (a client, the server's process, the seconds until it printed its address)."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pairmill", "explore", dataset, "--port", "0"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "XDG_CACHE_HOME": cache},
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    ready_s = time.perf_counter() - started
    try:
        yield Client(urlsplit(address).netloc), psutil.Process(process.pid), ready_s
    finally:
        process.terminate()
        process.wait()


def sliding(client: Client, parameter: str, values: list[str]) -> list[float]:
    """The seconds that each count takes while a filter moves through the values."""
    return [client.get(f"/api/count?{quote(parameter)}={quote(value)}")[0] for value in values]


def report(name: str, seconds: list[float]) -> None:
    """Print the median and the maximum, and whether the target is met."""
    target = TARGETS.get(name)
    verdict = "" if target is None else f"  target {target:g} s: {'met' if max(seconds) <= target else 'MISSED'}"
    print(f"{name:<34} median {statistics.median(seconds):7.3f} s  max {max(seconds):7.3f} s{verdict}")


def memory(process: psutil.Process) -> str:
    """The memory of the process: its own, and that of mapped files, which the kernel can reclaim."""
    info = process.memory_info()
    return f"{(info.rss - info.shared) / 1e9:.2f} GB own, {info.shared / 1e9:.2f} GB mapped files"


def measure(dataset: str, cache: str, label: str) -> None:
    """Start the server once, and print all measurements."""
    with server(dataset, cache) as (client, process, ready_s):
        report(f"start to address, {label}", [ready_s])
        seconds, page = client.get("/")
        report(f"first page, {label}", [seconds])
        pictures = re.findall(rb'src="(/picture/[^"]+)"', page)
        started = time.perf_counter()
        for picture in pictures:
            client.get(picture.decode().replace("&amp;", "&"))
        report(f"its {len(pictures)} pictures, {label}", [time.perf_counter() - started])
        if label == "warm":
            report("count, number", sliding(client, "min:similarity", [f"{0.15 + n / 400:.4f}" for n in range(SLIDES)]))
            client.get("/api/count?has%3Acaption_clean=warm")
            report("count, text", sliding(client, "has:caption_clean", [f"a {n}" for n in range(8)]))
            order = [client.get(f"/?min%3Asimilarity={0.2 + n / 100:.2f}")[0] for n in range(8)]
            report("gallery, new filter", order)
            report("gallery, next pages", [client.get(f"/?page={n}")[0] for n in range(2, 10)])
            report("duplicates", [client.get("/duplicates")[0]])
            report("rejects", [client.get("/rejects")[0]])
            print(json.loads(client.get("/api/count")[1])["of"], "rows to choose from")
        print(f"memory, {label}: {memory(process)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-explore-") as cache:
        for label in ("cold", "warm"):
            measure(options.dataset, cache, label)
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        print(f"cache: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
