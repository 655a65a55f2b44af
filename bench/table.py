"""Runs the benchmarks that compare pairmill with other tools and with an earlier version, and prints one table.

    make bench-peers && .venv/bin/python -m bench.table [NAME ...]

Each ratio is the median of five interleaved pairs, with their range, and says how many times as fast pairmill is. Needs
root, nginx, the peers' environments, git's history and the photographs. Without names: all rows, in about 40 minutes.
"""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass

PHOTOS = "../shared/data/pairs"
_RATIO = re.compile(r"^(?P<label>.*): median (?P<median>[\d.]+), (?P<low>[\d.]+) to (?P<high>[\d.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Bench:
    """One command, and which of its ratios are rows of the table: label -> (row, bar)."""

    words: str
    rows: dict[str, tuple[str, float]]
    is_seconds: bool = False
    """Whether the ratio is one of seconds, where less is better, and is to be inverted."""


STEADY, WALL = "pairmill / img2dataset, steady", "img2dataset / pairmill, wall"
BENCHES = {
    "process": Bench(
        f"bench.process {PHOTOS}",
        {
            "process / OpenCV, <= 512 px": ("`process` / OpenCV's steps, <= 512 px", 1.5),
            "process / OpenCV, 640 -> 512 px": ("same, 640 -> 512 px", 1.3),
            "process, chroma 420 / OpenCV, 640 -> 512 px": ("same, 640 -> 512 px, both 4:2:0", 1.3),
            "process / process before, >= 1600 px": (">= 1600 px / before", 1.6),
        },
    ),
    "photos": Bench(
        f"bench.fetch --rows 20000 --only= --photos {PHOTOS}",
        {STEADY: ("download / img2dataset, photographs", 1.7), WALL: ("wall at 20,000 / img2dataset", 1.5)},
    ),
    "short": Bench(f"bench.fetch --rows 6000 --only= --photos {PHOTOS}", {WALL: ("wall at 6,000 / img2dataset", 1.4)}),
    "laion": Bench("bench.fetch --rows 6000 --only=", {STEADY: ("download / img2dataset, LAION's sizes", 2.0)}),
    "https": Bench(
        f"bench.fetch --rows 4000 --only= --https --photos {PHOTOS}", {STEADY: ("download / img2dataset, HTTPS", 1.7)}
    ),
    "slow": Bench("bench.fetch --rows 2000 --only= --slow", {STEADY: ("slow web / img2dataset", 4.0)}),
    "select": Bench("bench.select", {"pairmill / duckdb": ("select / DuckDB", 1 / 1.2)}, is_seconds=True),
    "feed": Bench("bench.feed --rows 1000", {"feed / webdataset": ("feed / webdataset", 1.3)}),
    "embed": Bench(
        "bench.embed --rows 320 --no-peer", {"pairmill / forward": ("embed on the CPU / model alone", 0.95)}
    ),
    "model": Bench(
        f"bench.model_cost {PHOTOS}",
        {"before / now": ("CPU outside the model: before / now", 1 / 0.6)},
    ),
}


def table_rows(bench: Bench, printed: str) -> list[str]:
    """The lines of the table that a benchmark's output gives."""
    found = {match["label"]: match for match in _RATIO.finditer(printed)}
    lines = []
    for label, (row, bar) in bench.rows.items():
        values = [float(found[label][name]) for name in ("median", "low", "high")]
        median, low, high = [1 / values[0], 1 / values[2], 1 / values[1]] if bench.is_seconds else values
        verdict = "yes" if low >= bar else "no" if high < bar else "not shown"
        lines.append(f"| {row} | {median:.2f} | {low:.2f} to {high:.2f} | {bar:.2f} | {verdict} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| measure | ratio | range | bar | reached |\n|---|---|---|---|---|", flush=True)
    for name in options.names or BENCHES:
        started = time.perf_counter()
        command = [sys.executable, "-m", *BENCHES[name].words.split(), "--rounds", str(options.rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, f"{name}: {time.perf_counter() - started:.0f} s", sep="\n", file=sys.stderr, flush=True)
        if done.returncode:
            print(f"{name} failed: {done.stderr[-2000:]}", file=sys.stderr, flush=True)
            continue
        print("\n".join(table_rows(BENCHES[name], done.stdout)), flush=True)


if __name__ == "__main__":
    main()
