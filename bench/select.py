"""Compares `select` on Ray with DuckDB, on ten million rows of metadata in the same files.

    python -m bench.select --rows 10000000 --rounds 5

The steps keep one row per uid, rows with similarity >= 0.2, the top 30% by similarity, and one row per sha256. Both
sides write the selected rows as Parquet; DuckDB uses one thread per core. The two sides alternate, each in its own
process. The clock for pairmill starts once Ray is up. MB is the peak private memory of the process and Ray's workers
together.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.watched import private, run_watched
from tests.synthetic_dataset import write_dataset

STEPS = [
    {"where": "similarity >= 0.2"},
    {"top": {"by": "similarity", "fraction": 0.3}},
    {"dedup": {"by": "sha256"}},
]
QUERY = """
copy (
    with all_rows as (
        select filename, file_row_number as row, uid, sha256, similarity
        from read_parquet('{dataset}/pairs/*.parquet', filename = true, file_row_number = true) where status = 'ok'),
    firsts as (
        select * from all_rows qualify row_number() over (partition by uid order by filename, row) = 1),
    good as (select * from firsts where similarity >= 0.2),
    best as (
        select * from good
        qualify row_number() over (order by similarity desc, uid) <= (select floor(0.3 * count(*) + 0.5) from good)),
    answer as (select * from best qualify row_number() over (partition by sha256 order by filename, row) = 1)
    select filename, row, uid from answer order by filename, row
) to '{out}' (format parquet, compression zstd)
"""


def pairmill(dataset: str) -> dict[str, float]:
    """Select with pairmill. Returns the seconds, not counting Ray's start-up, and the number of selected rows."""
    from pairmill.jobs.cluster import session
    from pairmill.jobs.select import select
    from pairmill.schemas.job.run import RunConfig
    from pairmill.schemas.subset import SelectJob

    with session.ray_session(RunConfig(), spare_cpus=0):
        started = time.perf_counter()
        job = SelectJob.model_validate({"dataset": dataset, "name": "bench", "steps": STEPS})
        subset = select(job, overwrite=True)
        return {"seconds": time.perf_counter() - started, "rows": subset.rows_out}


def duckdb(dataset: str) -> dict[str, float]:
    """Select with DuckDB. Returns the seconds of the query, and the number of selected rows."""
    import duckdb as database

    with tempfile.TemporaryDirectory() as folder:
        connection = database.connect()
        connection.execute(f"set threads = {os.cpu_count()}; set temp_directory = '{folder}'")
        started = time.perf_counter()
        connection.execute(QUERY.format(dataset=dataset, out=f"{folder}/answer.parquet"))
        seconds = time.perf_counter() - started
        rows = connection.execute(f"select count(*) from '{folder}/answer.parquet'").fetchall()[0][0]  # noqa: S608
    return {"seconds": seconds, "rows": rows}


SIDES = {"pairmill": pairmill, "duckdb": duckdb}


def measure(side: str, dataset: Path) -> dict[str, float]:
    """Run one side in its own process."""
    result, peak = run_watched("bench.select", ["--side", side, "--dataset", str(dataset)], private)
    return {**result, "megabytes": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", type=Path, help="written if missing, and kept; by default, a temporary folder")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](str(options.dataset))))
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or Path(folder)
        started = time.perf_counter()
        maker = multiprocessing.get_context("spawn").Process(target=write_dataset, args=(dataset, options.rows))
        maker.start()
        maker.join()
        print(f"{options.rows:,} rows written in {time.perf_counter() - started:.0f} s")
        print(f"{'round':<6}" + "".join(f"{side + ' s':>14}{side + ' MB':>14}{'rows':>12}" for side in SIDES))
        ratios = []
        for number in range(options.rounds):
            results = {side: measure(side, dataset) for side in SIDES}
            cells = "".join(f"{r['seconds']:>14.1f}{r['megabytes']:>14.0f}{r['rows']:>12,}" for r in results.values())
            print(f"{number + 1:<6}{cells}", flush=True)
            ratios.append(results["pairmill"]["seconds"] / results["duckdb"]["seconds"])
        print(f"pairmill / duckdb: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
