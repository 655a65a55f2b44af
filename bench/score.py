"""Measures how fast scores are computed from stored embeddings, in rows per second of one core.

    python -m bench.score [--rows 200000] [--dim 512] [--rounds 5]

`head` is the scoring function on a table in memory; `numpy` is the same product on the same memory, converted to
float32 in blocks of the fastest size. Both run on one thread; rates are in rows per second of CPU time. Each
round runs both, and the ratio is the median over the rounds. `command` is all of `pairmill score`, with reading and
writing, on a dataset with shards of 4,096 rows, in rows per second of wall-clock time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.numpy import save_file

from pairmill.jobs.score import score
from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.encode.embedding_columns import float16_column
from pairmill.pipeline.score.kinds import kind_of
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.scores import ScoreJob
from tests.unit.scores.embedded import ALIAS, write_embedded

Halves = npt.NDArray[np.float16]
BLOCKS = (256, 1_024, 4_096)


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    started = clock()
    work()
    return clock() - started


def numpy_head(vectors: Halves, weight: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """The scores of the linear head, computed with NumPy."""
    scores = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), block):
        scores[start : start + block] = vectors[start : start + block].astype(np.float32) @ weight
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((options.rows, options.dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weight = rng.standard_normal(options.dim, np.float32)
    column = float16_column(vectors, np.ones(options.rows, bool))
    table = pa.table({f"image_embedding_{ALIAS}": column})
    halves: Halves = column.flatten().to_numpy(zero_copy_only=False).reshape(options.rows, options.dim)
    state = State({"0.weight": weight[None], "0.bias": np.zeros(1, np.float32)})
    for normalize in (True, False):
        head = {"weights": "x", "model": ALIAS, "activation": "none", "output": "none", "normalize": normalize}
        opened = kind_of("head", ScoreConfig.model_validate({"head": head})).open(state, RunConfig())
        opened(table)
        rounds = []
        for _ in range(options.rounds):
            ours = options.rows / seconds(partial(opened, table))
            theirs = max(options.rows / seconds(partial(numpy_head, halves, weight, block)) for block in BLOCKS)
            rounds.append((ours, theirs))
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        print(
            f"head, normalize {normalize}: {median(ours for ours, _ in rounds) / 1e6:.1f} M rows/s; numpy "
            f"{median(theirs for _, theirs in rounds) / 1e6:.1f}; ratio {median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = min(options.rows, 100_000)
        write_embedded(folder / "out", vectors[:rows], vectors[:rows], 4_096)
        save_file({"weight": weight[None], "bias": np.zeros(1, np.float32)}, folder / "head.safetensors")
        kinds: dict[str, dict[str, object]] = {
            "head": {"head": str(folder / "head.safetensors")},
            "mix": {"mix": "rank(similarity) + zscore(similarity)"},
            "density": {"density": {}},
            "neg_clip": {"neg_clip": {"batch": 4_096, "repeats": 1}},
        }
        for name, kind in kinds.items():
            job = ScoreJob.model_validate({"dataset": str(folder / "out"), "name": f"a_{name}", **kind})
            taken = seconds(partial(score, job), time.perf_counter)
            print(f"command, {name}: {rows / taken:,.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
