"""Measures dedup by embedding on Ray, on generated embeddings of 128 dimensions.

    python -m bench.semantic_dedup /tmp/embedded --rows 1000000
    python -m bench.semantic_dedup /tmp/embedded --rows 10000000

The embeddings are a mixture of 100 topics in each of 500 subjects; one row in five is a near copy of an earlier one,
with a cosine between 0.9 and 1. The dataset is kept, and is written again only if it has too few rows.

- `cpu_s`: CPU time of the process and Ray's workers, once Ray is up.
- `megabytes`: the peak of their combined memory, including Ray's object store; shared memory counts once (PSS).
- `found`: the share of planted pairs, with a cosine of at least the threshold, from which at least one row was dropped,
  in a sample of the shards.
"""

import argparse
import json
import multiprocessing
import time
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.watched import cpu_s, proportional, run_watched
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import NOT_DROPPED, read_shards, read_subset
from pairmill.pipeline.known.embeddings import exact_cosines
from tests.embedded_dataset import add_embeddings
from tests.synthetic_dataset import SHARD_ROWS, write_dataset

DIM, SUBJECTS, TOPICS, SPREAD, COPIES = 128, 500, 50_000, 0.9, 0.2


def write(folder: Path, rows: int) -> None:
    write_dataset(folder, rows)
    add_embeddings(folder, "m", lambda span: vectors(span.start // SHARD_ROWS)[: span.stop - span.start])


def whole_shards(rows: int) -> int:
    """The number of rows, rounded up to whole shards, because any row of the last shard can have copies."""
    return -(-rows // SHARD_ROWS) * SHARD_ROWS


def vectors(shard: int) -> npt.NDArray[np.float16]:
    """The embeddings of a shard."""
    found = _own(shard)
    copies, _, _, planted = copies_of(shard)
    found[copies] = planted
    return found.astype(np.float16)


def copies_of(shard: int) -> tuple[npt.NDArray[np.int64], int, npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns (the rows that are copies, the shard of their originals, the originals' rows, the copies' vectors)."""
    rng = np.random.default_rng([2, shard])
    source = int(rng.integers(0, shard + 1))
    copies = np.flatnonzero(rng.random(SHARD_ROWS) < COPIES)
    is_own = np.random.default_rng([2, source])
    is_own.integers(0, source + 1)
    originals = rng.choice(np.flatnonzero(is_own.random(SHARD_ROWS) >= COPIES), len(copies))
    cosine = rng.uniform(0.9, 1, (len(copies), 1)).astype(np.float32)
    of_original = _own(source)[originals]
    other = rng.standard_normal(of_original.shape, np.float32)
    other = _unit(other - (other * of_original).sum(axis=1, keepdims=True) * of_original)
    made: npt.NDArray[np.float32] = (cosine * of_original + np.sqrt(1 - cosine**2) * other).astype(np.float32)
    return copies, source, originals, made


def _own(shard: int) -> npt.NDArray[np.float32]:
    """The embeddings of a shard before copies replace some of them."""
    rng = np.random.default_rng([1, shard])
    noise = _unit(rng.standard_normal((SHARD_ROWS, DIM), np.float32))
    return _unit(_topics()[rng.integers(0, TOPICS, SHARD_ROWS)] + SPREAD * noise)


@cache
def _topics() -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    subjects = _unit(rng.standard_normal((SUBJECTS, DIM), np.float32))
    noise = _unit(rng.standard_normal((TOPICS, DIM), np.float32))
    return _unit(subjects[rng.integers(0, SUBJECTS, TOPICS)] + SPREAD * noise)


def _unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.sqrt((values * values).sum(axis=1, keepdims=True))
    found: npt.NDArray[np.float32] = (values / lengths).astype(np.float32)
    return found


def select(dataset: str, threshold: float) -> dict[str, float]:
    """Run the step on Ray, in this process."""
    from pairmill.jobs.cluster import session
    from pairmill.jobs.select import select as run_select
    from pairmill.schemas.job.run import RunConfig
    from pairmill.schemas.subset import SelectJob

    with session.ray_session(RunConfig(), spare_cpus=0):
        before, started = cpu_s(), time.perf_counter()
        step = {"dedup": {"by": "embedding", "model": "m", "threshold": threshold}}
        subset = run_select(
            SelectJob.model_validate({"dataset": dataset, "name": "b", "steps": [step]}), overwrite=True
        )
        last = subset.reports[-1]
        seconds = {"seconds": time.perf_counter() - started, "cpu_s": cpu_s() - before}
        return {**seconds, "rows_in": last.rows_in, "rows_out": last.rows_out}


def found(dataset: Path, threshold: float, sampled: int = 50) -> float:
    """The share of planted near pairs of which the last step dropped a row, among the pairs that reached this step."""
    store = Store(str(dataset))
    subset = read_subset(store, "b")
    steps = {each.shard: each.drop_step for each in read_shards(store, subset)}
    pairs = missed = 0
    for shard in sorted(steps)[:: max(1, len(steps) // sampled)]:
        copies, source, originals, _ = copies_of(shard)
        copies, originals = copies[copies < len(steps[shard])], originals[copies < len(steps[shard])]
        cosines = exact_cosines(vectors(shard)[copies], vectors(source)[originals])
        one, other = steps[shard][copies], steps[source][originals]
        earlier = range(len(subset.reports) - 1)  # the steps before the dedup
        took_part = (cosines >= threshold) & ~np.isin(one, earlier) & ~np.isin(other, earlier)
        pairs += int(took_part.sum())
        missed += int((took_part & (one == NOT_DROPPED) & (other == NOT_DROPPED)).sum())
    return 1 - missed / pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(select(str(options.dataset), options.threshold)))
        return
    maker = multiprocessing.get_context("spawn").Process(
        target=write, args=(options.dataset, whole_shards(options.rows))
    )
    maker.start()
    maker.join()
    arguments = [str(options.dataset), "--run", "--threshold", str(options.threshold)]
    result, peak = run_watched("bench.semantic_dedup", arguments, proportional)
    result |= {"megabytes": peak / 1e6, "cpu_us_per_row": result["cpu_s"] / result["rows_in"] * 1e6}
    print(json.dumps(result | {"found": found(options.dataset, options.threshold)}))


if __name__ == "__main__":
    main()
