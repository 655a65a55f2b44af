"""Compares ways of assigning rows to clusters: how many pairs of near duplicates each way finds, and at what cost.

    python -m bench.semantic_recall ../shared/data/clip_b32/flickr8k500_pairs/image_embeddings.npy

There are two datasets: mixtures of two or three of CLIP's embeddings of 500 photographs, and a mixture of 2,000 topics
in 128 dimensions. A fifth of the rows are near copies, half of them displaced in a random direction, and half toward
another row.

- `recall`: the share of the planted pairs at or above the threshold that meet in a cluster.
- `at the edge`: the same, for the pairs within 0.01 of the threshold.
- `cost`: comparisons per row, in units of the mean size of a cluster.

Finally, the whole step runs on 20,000 rows. Brute force finds all rows that have a near row; `found` is the share of
these that are not kept, or are kept without any of their near rows.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.semantic.centers import SAMPLES_PER_CLUSTER, find_centers
from pairmill.pipeline.select.semantic.vectors import on_grid
from tests.embedded_dataset import write_embedded
from tests.unit.select.test_dedup_embedding import check, goes, near_pairs, unit, with_copies

Floats = npt.NDArray[np.float32]
MOST = 8


def photographs(file: Path, rows: int) -> npt.NDArray[np.float64]:
    rng, real = np.random.default_rng(1), np.load(file).astype(np.float64)
    found = np.zeros((rows, real.shape[1]))
    weights = rng.dirichlet([0.7] * 3, rows)
    for weight in weights.T:
        found += weight[:, None] * real[rng.integers(0, len(real), rows)]
    return unit(found + 0.005 * rng.standard_normal(found.shape))


def topics(rows: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(1)
    centers = unit(rng.standard_normal((2_000, 128)))
    return unit(centers[rng.integers(0, 2_000, rows)] + 0.9 * unit(rng.standard_normal((rows, 128))))


def nearest(points: Floats, centers: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Returns (the nearest `MOST` centers of each row, how much less similar each is than the nearest)."""
    found, less = np.zeros((len(points), MOST), np.int64), np.zeros((len(points), MOST), np.float32)
    for start in range(0, len(points), 4_096):
        similar = points[start : start + 4_096] @ centers.T
        best = np.argsort(-similar, axis=1)[:, :MOST]
        values = np.take_along_axis(similar, best, axis=1)
        found[start : start + 4_096], less[start : start + 4_096] = best, values[:, :1] - values
    return found, less


def ways(radius: float, less: Floats) -> Iterator[tuple[str, npt.NDArray[np.bool_], bool]]:
    """Yield (name, which of its nearest clusters each row is in, whether guests are compared with each other)."""
    place = np.arange(MOST)
    for most in (1, 2, 3):
        yield f"nearest {most}, all compared", np.broadcast_to(place < most, less.shape), True
    for most in (2, 4, 8):
        yield f"nearest {most}, guests not compared", np.broadcast_to(place < most, less.shape), False
    for share in (0.05, 0.1, 0.15, 0.2, 0.3):
        yield f"margin of {share:g} of the distance, at most 8", less <= share * radius, False


def measure(name: str, vectors: npt.NDArray[np.float64], threshold: float, clusters: int) -> None:
    copied = with_copies(vectors, threshold)
    points = on_grid(copied[None])
    sampled = np.random.default_rng(3).permutation(len(points))[: clusters * SAMPLES_PER_CLUSTER]
    centers = find_centers(clusters, points.shape[1], points[sampled].astype(np.float16))
    found, less = nearest(points, centers)
    copies = len(vectors) // 5
    originals = np.random.default_rng(2).integers(0, len(vectors) - copies, copies)  # as in with_copies
    one, other = originals, np.arange(len(vectors) - copies, len(vectors))
    cosine = (unit(copied[one]) * unit(copied[other])).sum(axis=1)
    one, other, cosine = one[cosine >= threshold], other[cosine >= threshold], cosine[cosine >= threshold]
    print(f"\n{name}, threshold {threshold}, {len(vectors):,} rows in {len(centers):,} clusters")
    print(f"{'':<48}{'recall':>8}{'at the edge':>13}{'cost':>7}")
    for label, member, all_compared in ways(float(np.sqrt(2 - 2 * threshold)), less):
        meets = (found[one][:, :, None] == found[other][:, None]) & member[one][:, :, None] & member[other][:, None]
        if not all_compared:
            meets[:, 1:, 1:] = False
        meeting = meets.any(axis=(1, 2))
        mean = member.sum(axis=1).mean()
        cost = mean**2 / 2 if all_compared else mean - 0.5
        print(f"{label:<48}{meeting.mean():>8.4f}{meeting[cosine < threshold + 0.01].mean():>13.4f}{cost:>7.2f}")


def whole_step(name: str, vectors: npt.NDArray[np.float64], threshold: float) -> None:
    """Compare the step with brute force. `check` also checks that every dropped row resembles a kept one."""
    copied = with_copies(vectors, threshold)
    with tempfile.TemporaryDirectory() as folder:
        write_embedded(Path(folder), copied, shard_rows=4_096)
        gone, report = goes(Path(folder), threshold=threshold)
    found = check(gone, near_pairs(copied[None], threshold))
    print(f"{name}, threshold {threshold}: {report.rows_in:,} -> {report.rows_out:,} rows, found {found:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--rows", type=int, default=60_000)
    options = parser.parse_args()
    for threshold in (0.95, 0.9):
        measure("photographs", photographs(options.embeddings, options.rows), threshold, options.rows // 2_000)
        measure("topics", topics(options.rows), threshold, options.rows // 2_000)
    print()
    for threshold in (0.95, 0.9):
        whole_step("photographs", photographs(options.embeddings, 20_000), threshold)
        whole_step("topics", topics(20_000), threshold)


if __name__ == "__main__":
    main()
