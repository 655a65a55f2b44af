"""Measures the `balance` and `repeat` steps of `select` on Ray, on 1 and then 10 million rows of generated metadata.

    python -m bench.balance --rows 1000000 10000000

Captions have eight words, drawn from a vocabulary of 200,000 words whose frequencies are as skewed as those of natural
language (Zipf, exponent 1.1). The list of concepts has 500,000 entries: all words, and 300,000 pairs of words. URLs
have a million hosts, with frequencies that are just as skewed. The clock starts once Ray is up. `CPU` is the CPU time
of all of Ray's workers, which depends less on other work on the machine than wall-clock time does, and `MB` is the
private memory of the largest worker at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from tests.synthetic_dataset import default_columns, write_dataset

WORDS, PAIRS, HOSTS, CAPTION_WORDS, EXPONENT = 200_000, 300_000, 1_000_000, 8, 1.1


def columns(shard: int, first: int, rows: int, seed: int) -> dict[str, pa.Array]:
    """The generated columns of a shard."""
    rng = np.random.default_rng([seed, shard, 7])
    words = vocabulary().take(pa.array(zipf(rng, rows * CAPTION_WORDS, WORDS)))
    captions = pc.binary_join(pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * CAPTION_WORDS, words), " ")
    hosts = pc.cast(pa.array(zipf(rng, rows, HOSTS)), pa.string())
    urls = pc.binary_join_element_wise("https://h", hosts, ".example/albums/1.jpg", "")
    return default_columns(shard, first, rows, seed) | {"caption_clean": captions, "url": urls}


@cache
def vocabulary() -> pa.Array:
    """Distinct words of 3 to 9 letters."""
    rng = np.random.default_rng(8)
    letters, lengths = rng.integers(97, 123, (WORDS * 2, 9), np.uint8), rng.integers(3, 10, WORDS * 2)
    words = dict.fromkeys(bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True))
    return pa.array(list(words)[:WORDS])


@cache
def cumulative(values: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The cumulative probabilities of a Zipf distribution, float64 [values]."""
    sums = np.cumsum(np.arange(1, values + 1) ** -EXPONENT)
    return np.asarray(sums / sums[-1])


def zipf(rng: np.random.Generator, size: int, values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Random numbers below `values` that follow a Zipf distribution: low numbers are frequent."""
    return np.searchsorted(cumulative(values), rng.random(size))


def write_entries(path: Path) -> None:
    """Write a list of entries: all words, and pairs of frequent words."""
    pairs = np.stack([zipf(np.random.default_rng(n), PAIRS, WORDS) for n in (1, 2)], axis=1)
    words = vocabulary().to_pylist()
    path.write_text("\n".join([*words, *(f"{words[one]} {words[other]}" for one, other in pairs.tolist())]))


def steps(entries: Path) -> dict[str, dict[str, object]]:
    """Name -> the step that is measured under this name."""
    return {
        "concept": {"balance": {"by": "concept", "entries": str(entries), "curve": 2_000}},
        "concept, 30 %": {"balance": {"by": "concept", "entries": str(entries), "curve": {"fraction": 0.3}}},
        "host": {"balance": {"by": "host", "curve": 100}},
        "width": {"balance": {"by": "width", "curve": 100}},
        "repeat": {"repeat": {"by": "20 * similarity", "mean": 1}},
        "nothing": {"where": "width > 0"},
    }


def select_once(dataset: str, step: str) -> dict[str, float]:
    """Run `select` with one step. Returns the seconds and the number of selected rows."""
    from pairmill.jobs import select as jobs
    from pairmill.jobs.cluster import session
    from pairmill.schemas.job.run import RunConfig
    from pairmill.schemas.subset import SelectJob

    jobs.ROWS_FOR_RAY = 0
    with session.ray_session(RunConfig(), spare_cpus=0):
        started = time.perf_counter()
        job = {"dataset": dataset, "name": "bench", "steps": [json.loads(step)]}
        subset = jobs.select(SelectJob.model_validate(job), overwrite=True)
        workers = [each for each in psutil.Process().children(recursive=True) if is_worker(each)]
        cpu = sum(sum(each.cpu_times()[:2]) for each in workers)
        peak = max(each.memory_info().rss - each.memory_info().shared for each in workers)
        return {
            "seconds": time.perf_counter() - started,
            "cpu": cpu,
            "rows": subset.rows_out,
            "megabytes": peak / 1e6,
        }


def is_worker(process: psutil.Process) -> bool:
    try:
        return bool(process.cmdline()[0].startswith("ray::"))
    except (psutil.Error, IndexError):
        return False


def measure(dataset: Path, step: dict[str, object]) -> dict[str, float]:
    """Measure a step in a separate process. Returns the figures that the process prints."""
    command = [sys.executable, "-m", "bench.balance", "--dataset", str(dataset), "--step", json.dumps(step)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def lines(dataset: Path, rows: int, only: list[str]) -> Iterator[str]:
    entries = dataset / "entries.txt"
    if not entries.exists():
        write_entries(entries)
    for name, step in steps(entries).items():
        if name in only or not only:
            found = measure(dataset, step)
            micros = found["cpu"] / rows * 1e6
            yield (
                f"{rows:>12,}  {name:<14}{found['seconds']:>8.1f} s{found['cpu']:>8.1f} s CPU{micros:>8.2f} us/row"
                f"{found['megabytes']:>8.0f} MB{found['rows']:>12,.0f} rows"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--dataset", type=Path, help="written if missing, and kept; by default, a temporary folder")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(select_once(str(options.dataset), options.step)))
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or Path(folder)
        for rows in sorted(options.rows):
            values = {"folder": dataset, "num_rows": rows, "columns": columns}
            maker = get_context("spawn").Process(target=write_dataset, kwargs=values)
            maker.start()
            maker.join()
            for line in lines(dataset, rows, options.only):
                print(line, flush=True)


if __name__ == "__main__":
    main()
