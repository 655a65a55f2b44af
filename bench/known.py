"""Measures `rules.known`: making a filter from lists of URLs, the filter's size, and the time that it adds to each row.

    python -m bench.known --values 1000000 10000000 100000000

For each number of URLs, separate processes write synthetic URLs as text, make the filter, and apply the rules of the
`input` step to shards of 4,096 rows, half of which are known, with and without the filter. Times are CPU times of these
processes. The first lookups find the filter in the page cache, because it has just been written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.prepare import prepared
from pairmill.pipeline.rules import SourceRules, apply_rules
from pairmill.schemas.known import KnownRows
from pairmill.schemas.pairs import in_flight_schema
from pairmill.schemas.status import Status, Step

SHARD_ROWS = 4_096
PIECE = 5_000_000


def urls(first: int, count: int) -> pa.Array:
    """Distinct URLs of about 60 bytes for a range of numbers."""
    numbers = pa.array(np.arange(first, first + count))
    mixed = pa.array(np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    parts = ["http://cdn", pc.cast(pa.array(np.arange(count) % 977), pa.string()), ".example.com/photos/"]
    return pc.binary_join_element_wise(*parts, mixed.cast(pa.string()), "/", numbers.cast(pa.string()), ".jpg", "")


def write(folder: Path, values: int) -> int:
    """Write lists of URLs. Returns their size in bytes."""
    (folder / "lists").mkdir()
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    for first in range(0, values, PIECE):
        table = pa.table({"url": urls(first, min(PIECE, values - first))})
        pacsv.write_csv(table, folder / f"lists/{first:012d}.txt", options)
    return sum(path.stat().st_size for path in (folder / "lists").iterdir())


def peak_mb() -> float:
    """The peak resident memory of this process. Unlike ru_maxrss, it excludes the parent's memory before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def make(folder: Path) -> dict[str, float]:
    """Make the filter. Returns the time and memory that this took, and the filter's size."""
    started, wall = time.process_time(), time.perf_counter()
    known = KnownRows(path=str(folder / "lists"), by=["url"])
    record = prepared(Store(str(folder / "out")), [known])
    (found,) = record.filters
    return {
        "make_cpu_s": time.process_time() - started,
        "make_wall_s": time.perf_counter() - wall,
        "make_peak_mb": peak_mb(),
        "bits_per_value": 8 * found.file.num_bytes / found.values,
    }


def shard(number: int, values: int) -> pa.Table:
    """A shard of which every other row is known."""
    rng = np.random.default_rng(number)
    known, new = (urls_at(rng.integers(first, first + values, SHARD_ROWS // 2)) for first in (0, values))
    column = pa.concat_arrays([known, new]).take(pa.array(rng.permutation(SHARD_ROWS)))
    schema = in_flight_schema(pa.schema([]))
    fixed = {"url": column, "status": pa.repeat("ok", SHARD_ROWS), "status_detail": pa.nulls(SHARD_ROWS, pa.string())}
    columns = [fixed[field.name] if field.name in fixed else pa.nulls(SHARD_ROWS, field.type) for field in schema]
    return pa.Table.from_arrays(columns, names=schema.names)


def urls_at(numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pa.Array:
    """The URLs with these numbers."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hosts = pa.array(numbers % PIECE % 977).cast(pa.string())
    parts = ["http://cdn", hosts, ".example.com/photos/", pa.array(mixed).cast(pa.string()), "/"]
    return pc.binary_join_element_wise(*parts, pa.array(numbers).cast(pa.string()), ".jpg", "")


def look_up(folder: Path, values: int, rows: int) -> dict[str, float]:
    """Apply the rules of the `input` step. Returns the time per row that the filter adds, in two passes."""
    shards = [shard(number, values) for number in range(rows // SHARD_ROWS)]
    with_filter, without = SourceRules(output=str(folder / "out")), SourceRules()
    seconds: dict[str, float] = {}
    for name, rules in [("first", with_filter), ("again", with_filter), ("without", without)]:
        started, dropped = time.process_time(), 0
        for table in shards:
            result = apply_rules(table, Step.INPUT, rules)
            if name == "again":
                dropped += pc.sum(pc.equal(result["status"], Status.KNOWN_URL.value)).as_py()
        seconds[name] = (time.process_time() - started) / (len(shards) * SHARD_ROWS)
        assert name != "again" or dropped == len(shards) * SHARD_ROWS // 2, dropped
    return {
        "first_us_per_row": 1e6 * (seconds["first"] - seconds["without"]),
        "again_us_per_row": 1e6 * (seconds["again"] - seconds["without"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to look up")
    parser.add_argument("--step", choices=["make", "look_up"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "make":
        print(json.dumps(make(options.folder)))
        return
    if options.step == "look_up":
        print(json.dumps(look_up(options.folder, options.values[0], options.rows)))
        return
    for values in options.values:
        with tempfile.TemporaryDirectory() as name:
            found: dict[str, float] = {"values": values, "list_mb": write(Path(name), values) / 1e6}
            for step in ("make", "look_up"):
                command = [sys.executable, "-m", "bench.known", "--step", step, "--folder", name]
                command += ["--values", str(values), "--rows", str(options.rows)]
                found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
