"""Runs the benchmarks that compare pairmill with other tools and with an earlier version, and prints one table.

    make bench-peers && .venv/bin/python -m bench.table [NAME ...]

The ratio says how many times as fast pairmill is; above 1, pairmill is faster. Each benchmark alternates between the
two sides for five rounds and computes a ratio per round; the table gives their median and range. Without names,
all benchmarks run, which takes 38 minutes on slow cores. Needs root, nginx, the Python environments of the other tools
(`make bench-peers`), the git history (for the earlier version) and the photographs.
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
    """One benchmark: a command that prints labeled ratios, some of which become rows of the table."""

    module_and_options: str
    rows: dict[str, tuple[str, float]]
    """Label that the command prints -> (row of the table, target)."""
    less_is_better: bool = False
    """Whether the command prints the ratio of pairmill's time to the other tool's, which has to be inverted."""


def steady(rows: int) -> str:
    return f"pairmill / img2dataset, steady, {rows} rows"


def wall(rows: int) -> str:
    return f"img2dataset / pairmill, wall, {rows} rows"


BENCHES = {
    "process": Bench(
        f"bench.process {PHOTOS}",
        {
            "process / OpenCV, <= 512 px": ("`process` vs. OpenCV's steps, <= 512 px", 1.5),
            "process / OpenCV, 640 -> 512 px": ("`process` vs. OpenCV's steps, 640 -> 512 px", 1.3),
            "process, chroma 420 / OpenCV, 640 -> 512 px": ("the same, 640 -> 512 px, both storing 4:2:0", 1.3),
            "process / earlier version, >= 1600 px": ("`process` vs. the earlier version, >= 1600 px", 1.6),
        },
    ),
    "photos": Bench(
        f"bench.fetch --rows 20000 6000 --only= --photos {PHOTOS}",
        {
            steady(20000): ("download vs. img2dataset, photographs", 1.7),
            wall(20000): ("wall-clock time vs. img2dataset, 20,000 rows", 1.5),
            wall(6000): ("wall-clock time vs. img2dataset, 6,000 rows", 1.4),
        },
    ),
    "laion": Bench("bench.fetch --rows 6000 --only=", {steady(6000): ("download vs. img2dataset, LAION's sizes", 2.0)}),
    "https": Bench(
        f"bench.fetch --rows 4000 --only= --https --photos {PHOTOS}",
        {steady(4000): ("download vs. img2dataset, HTTPS", 1.7)},
    ),
    "slow": Bench(
        "bench.fetch --rows 4500 --only= --slow",
        {
            steady(4500): ("download vs. img2dataset, slow web", 4.0),
            wall(4500): ("wall-clock time vs. img2dataset, slow web, 4,500 rows", 4.0),
        },
    ),
    "select": Bench("bench.select", {"pairmill / duckdb": ("select vs. DuckDB", 1 / 1.2)}, less_is_better=True),
    "feed": Bench(
        "bench.feed --rows 500 --pictures-only", {"feed / webdataset": ("`PairDataset` vs. webdataset", 1.3)}
    ),
    "embed": Bench("bench.towers --rows 240", {"pairmill / model": ("embed on the CPU vs. the model alone", 0.95)}),
    "model": Bench(
        f"bench.model_cost {PHOTOS}",
        {"earlier version / now": ("CPU time outside the model vs. the earlier version", 1 / 0.6)},
    ),
}


def table_rows(bench: Bench, printed: str) -> list[str]:
    """The rows of the table for the ratios that the benchmark printed."""
    ratios = {match["label"]: match for match in _RATIO.finditer(printed)}
    rows = []
    for label, (row, target) in bench.rows.items():
        if label not in ratios:
            continue  # the benchmark failed before
        values = [float(ratios[label][name]) for name in ("median", "low", "high")]
        median, low, high = [1 / values[0], 1 / values[2], 1 / values[1]] if bench.less_is_better else values
        is_met = "yes" if low >= target else "no" if high < target else "inconclusive"
        rows.append(f"| {row} | {median:.2f} | {low:.2f} to {high:.2f} | {target:.2f} | {is_met} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| measure | ratio | range | target | target met |\n|---|---|---|---|---|", flush=True)
    for name in options.names or BENCHES:
        started = time.perf_counter()
        command = [sys.executable, "-m", *BENCHES[name].module_and_options.split(), "--rounds", str(options.rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, f"{name}: {time.perf_counter() - started:.0f} s", sep="\n", file=sys.stderr, flush=True)
        if done.returncode:
            print(f"{name} failed: {done.stderr[-2000:]}", file=sys.stderr, flush=True)
        print("\n".join(table_rows(BENCHES[name], done.stdout)), flush=True)


if __name__ == "__main__":
    main()
