"""Measures how long it takes to purge uids from a synthetic dataset, and checks which shards the purge rewrites.

    python -m bench.purge [--rows 10000000] [--uids 10000] [--shards 500]
    python -m bench.purge --rows 400000 --kills 10

The uids are drawn from `--shards` shards. One row in ten repeats the uid of an earlier row in any shard, so some of the
uids are in other shards too. The oracle is a plain scan with Arrow. With `--kills`, the command is killed (SIGKILL) at
random times, and then run to completion. Afterwards, no purged uid may be left in any file, and no other row may be
missing.
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import pairmill
from tests.synthetic_dataset import write_dataset


def uid_column(path: Path) -> pa.Array:
    """The uids of a shard."""
    return pq.read_table(path, columns=["uid"])["uid"].combine_chunks()


def draw(out: Path, uids: int, shards: int, rng: random.Random) -> list[str]:
    """Distinct uids, with about the same number from each of the randomly chosen shards."""
    paths = rng.sample(sorted((out / "pairs").glob("*.parquet")), shards)
    found = set[str]()
    for number, path in enumerate(paths):
        wanted = (number + 1) * uids // shards - number * uids // shards
        found.update(rng.sample(uid_column(path).to_pylist(), wanted))
    return sorted(found)


def shards_with(out: Path, uids: pa.Array) -> dict[str, int]:
    """Shard -> the number of rows with these uids, found by a plain scan."""
    found = {}
    for path in sorted((out / "pairs").glob("*.parquet")):
        if rows := pc.sum(pc.is_in(uid_column(path), value_set=uids)).as_py():
            found[path.name[:9]] = int(rows)
    return found


def run_killed(command: list[str], kills: int, rng: random.Random, longest_s: float) -> float:
    """Kill a command this many times, then run it to completion. Returns the seconds of the last run."""
    killed = 0
    while killed < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.5, longest_s))
            print(f"  the run ended by itself with exit status {process.returncode}, after {killed} kills")
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    started = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"  {killed} kills")
    return time.perf_counter() - started


def main() -> None:
    """Write the dataset, purge the uids, and compare the result with the oracle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard-rows", type=int, default=4_096)
    parser.add_argument("--uids", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--longest", type=float, default=3.0, help="maximum number of seconds until a kill")
    parser.add_argument("--folder", type=Path, help="a folder in which the dataset is kept")
    options = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.folder or Path(temporary)) / "out"
        started = time.perf_counter()
        write_dataset(out, options.rows, shard_rows=options.shard_rows)
        names = sorted(path.name for path in (out / "pairs").glob("*.parquet"))
        print(f"{options.rows:,} rows in {len(names):,} shards, written in {time.perf_counter() - started:.0f} s")
        uids = draw(out, options.uids, min(options.shards, len(names)), rng)
        before = shards_with(out, pa.array(uids))
        print(f"{len(uids):,} uids, in {sum(before.values()):,} rows of {len(before):,} shards")
        listed = out.parent / "uids.txt"
        listed.write_text("\n".join(uids))
        if options.kills:
            command = [sys.executable, "-m", "pairmill", "purge", str(out), "--uids", str(listed), "--reason", "bench"]
            seconds = run_killed(command, options.kills, rng, options.longest)
        else:
            started, cpu = time.perf_counter(), time.process_time()
            result = pairmill.purge(out, uids=listed, reason="bench")
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            assert result.purged.rows == sum(before.values())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"purged in {seconds:.1f} s ({cpu:.1f} s of CPU in this process), at most {peak:.1f} GB")
        check(out, uids, before, options.rows)
        print(f"last run {seconds:.1f} s; rewrote exactly the {len(before):,} shards with these uids; no uid is left")


def check(out: Path, uids: list[str], before: dict[str, int], rows: int) -> None:
    """Compare the purged dataset with the oracle."""
    generations = Counter(path.name.partition(".")[2] for path in (out / "manifests").iterdir())
    touched = {path.name[:9] for path in (out / "manifests").glob("*.g*.json")}
    assert touched == before.keys(), (len(touched), len(before))
    assert not shards_with(out, pa.array(uids))
    left = sum(pq.read_metadata(path).num_rows for path in (out / "pairs").glob("*.parquet"))
    assert left == rows - sum(before.values()), (left, generations)


if __name__ == "__main__":
    main()
