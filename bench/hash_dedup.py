"""Measures `dedup` with a distance on generated hashes: seconds, memory and rounds, on Ray.

    python -m bench.hash_dedup --rows 10000000 --by phash --distance 4
    python -m bench.hash_dedup --rows 1000000 --hashes ball

In the kind `random`, one hash in five is within a few bits of another. The other kinds are crowded:

- `equal`: all hashes are equal.
- `ball`: all hashes are within 8 bits of each other.
- `flat`: few bits are set.
- `chain`: each hash differs from the next in one bit.
- `cube`: the hashes differ only in the same 20 bits.

Rows have a phash and a pdq. The clock starts once Ray is up and includes reading the columns and writing the subset.

- `cpu_s`: CPU time of this process and Ray's workers.
- `megabytes`: the peak of their combined memory, including Ray's object store; shared memory counts once (PSS).
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.watched import cpu_s, proportional, run_watched
from tests.synthetic_dataset import default_columns, hex_digits, write_dataset

U64 = npt.NDArray[np.uint64]

BITS = {"phash": 64, "pdq": 256}


def bit(words: int, at: npt.NDArray[np.int64]) -> U64:
    """For each row, words in which only the bit `at` is set, uint64 [rows, words]."""
    rows = np.arange(len(at))
    found = np.zeros((len(at), words), np.uint64)
    found[rows, at // 64] = np.uint64(1) << (at % 64).astype(np.uint64)
    return found


def hashes(kind: str, words: int, first: int, rows: int) -> U64:
    """The hashes of a range of rows, uint64 [rows, words].

    Except for `flat` and `ball`, a row's hash does not depend on how the rows are divided into ranges.
    """
    rng = np.random.default_rng([first, words])
    if kind == "equal":
        return np.full((rows, words), 0x0F0F, np.uint64)
    if kind == "cube":  # the reflected Gray code
        numbers = np.arange(first, first + rows, dtype=np.uint64)
        found = np.zeros((rows, words), np.uint64)
        found[:, 0] = numbers ^ (numbers >> np.uint64(1))
        return found
    if kind == "chain":  # 64 bits in random order, then again in another order, and so on
        order = np.random.default_rng(0).permuted(np.tile(np.arange(64 * words), ((first + rows) // 64 + 1, 1)), axis=1)
        return np.bitwise_xor.accumulate(bit(words, order.ravel()[: first + rows]), axis=0)[first:]
    found = np.zeros((rows, words), np.uint64)
    if kind == "ball":
        for _ in range(4):
            found ^= bit(words, rng.integers(0, 64, rows))
        return found
    if kind == "flat":
        for _ in range(8 * words):
            found |= bit(words, rng.integers(0, 64 * words, rows))
        return found
    own = np.where(rng.random(rows) < 0.2, rng.integers(0, first + rows, rows), np.arange(first, first + rows))
    found = np.stack([scrambled(own.astype(np.uint64) + np.uint64(word << 50)) for word in range(words)], axis=1)
    for _ in range(2 if words == 1 else 10):
        found ^= bit(words, rng.integers(0, 64 * words, rows))
    return found


def scrambled(numbers: U64) -> U64:
    """Pseudorandom bits for each number (SplitMix64)."""
    numbers = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def write(folder: str, rows: int, kind: str) -> None:
    """Write a dataset in which every row has a different uid."""

    def columns(shard: int, first: int, some: int, seed: int) -> dict[str, pa.Array]:
        numbers = np.arange(first, first + some, dtype=np.uint64)
        return {
            **default_columns(shard, first, some, seed),
            "uid": hex_digits(np.stack([scrambled(numbers), numbers], axis=1)),
            "phash": hex_digits(hashes(kind, 1, first, some)),
            "pdq": hex_digits(hashes(kind, 4, first, some)),
            "pdq_quality": pa.array(np.full(some, 100, np.uint8)),
        }

    write_dataset(Path(folder), rows, columns=columns)


def select(dataset: str, by: str, distance: int) -> dict[str, float]:
    """Run `select`. Returns the seconds that it takes once Ray is up, and the figures of the step."""
    from pairmill.jobs import select as module
    from pairmill.jobs.cluster import session
    from pairmill.schemas.job.run import RunConfig
    from pairmill.schemas.subset import SelectJob

    with session.ray_session(RunConfig(), spare_cpus=0):
        cpu, started = cpu_s(), time.perf_counter()
        steps = [{"dedup": {"by": by, "distance": distance}}]
        module.ROWS_FOR_RAY = 0
        subset = module.select(
            SelectJob.model_validate({"dataset": dataset, "name": "bench", "steps": steps}), overwrite=True
        )
        seconds, cpu = time.perf_counter() - started, cpu_s() - cpu
    largest = max([cluster.rows for cluster in subset.reports[-1].largest_clusters], default=0)
    return {
        "seconds": seconds,
        "cpu_s": cpu,
        "rows": subset.rows_out,
        "largest": largest,
    }


def measure(options: argparse.Namespace, dataset: str) -> dict[str, float]:
    """Run the step in a separate process. Returns its figures and the peak memory."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("by", "distance")]
    result, peak = run_watched("bench.hash_dedup", ["--inner", f"--dataset={dataset}", *arguments], proportional)
    return {**result, "megabytes": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--by", choices=BITS, default="phash")
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--hashes", choices=["random", "equal", "ball", "flat", "chain", "cube"], default="random")
    parser.add_argument("--dataset", help="written if missing, and kept; by default, a temporary folder")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        print(json.dumps(select(options.dataset, options.by, options.distance)))
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or folder
        maker = multiprocessing.get_context("spawn").Process(target=write, args=(dataset, options.rows, options.hashes))
        maker.start()
        maker.join()
        found = measure(options, dataset)
        numbers = ", ".join(f"{name} {value:,.0f}" for name, value in found.items())
        print(f"{options.rows:,} {options.hashes} rows by {options.by}, distance {options.distance}: {numbers}")


if __name__ == "__main__":
    main()
