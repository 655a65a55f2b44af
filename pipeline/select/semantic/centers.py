"""Finds the centers of clusters of embeddings, by spherical k-means on a sample (Dhillon and Modha 2001).

Everything is computed on the GRID, without rounding, so equal samples give equal centers on every machine.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.known.embeddings import Floats, Halves
from pairmill.pipeline.select.semantic.vectors import GRID

MIN_CLUSTER_ROWS = 2_000
"""Mean number of rows per cluster, except in huge datasets. Larger clusters separate fewer pairs but need more
comparisons."""
SAMPLES_PER_CLUSTER = 32
_ITERATIONS = 8
_MAX_SHARE = 4
"""Clusters with more than this many times the mean number of samples are cut again, because the cost of a cluster grows
with the square of its size."""
_BLOCK_CELLS = 1 << 23

Labels = npt.NDArray[np.intp]


def num_clusters(num_rows: int) -> int:
    """The number of clusters for this many rows.

    Beyond 16 million rows, the number of clusters and their mean size both grow with the square root of the number of
    rows, and so does the cost per row.
    """
    return max(1, round(num_rows / max(MIN_CLUSTER_ROWS, math.sqrt(num_rows) / 2)))


def find_centers(clusters: int, dim: int, *samples: Halves) -> Floats:
    """The centers of approximately `clusters` clusters, float32 [clusters, dim] on the GRID.

    `samples`: [n, dim] on the GRID.
    """
    points = _shuffled(np.concatenate([np.zeros((0, dim), np.float16), *samples]))
    if clusters == 1 or not len(points):
        return np.zeros((1, dim), np.float32)
    centers = _k_means(points, clusters)
    labels = nearest(points, centers)
    sizes, mean = np.bincount(labels, minlength=len(centers)), len(points) / clusters
    finer = [
        _k_means(points[labels == cluster], math.ceil(sizes[cluster] / mean))
        for cluster in np.flatnonzero(sizes > _MAX_SHARE * mean)
    ]
    return np.concatenate([centers[sizes <= _MAX_SHARE * mean], *finer])


def _shuffled(sample: Halves) -> Floats:
    """The distinct vectors of a sample, in an order that does not depend on the order of the dataset."""
    row = np.dtype((np.void, sample.shape[1] * sample.itemsize))
    found = np.unique(np.ascontiguousarray(sample).view(row)).view(np.float16).reshape(-1, sample.shape[1])
    return found[np.random.default_rng(0).permutation(len(found))].astype(np.float32)


def nearest(points: Floats, centers: Floats) -> Labels:
    """For each point, the index of the center with the largest dot product (the first if several are equal); [rows]."""
    return np.concatenate([np.argmax(points[rows] @ centers.T, axis=1) for rows in _blocks(len(points), len(centers))])


def _blocks(rows: int, cells_per_row: int) -> Iterator[slice]:
    size = max(1, _BLOCK_CELLS // cells_per_row)
    return (slice(start, start + size) for start in range(0, rows, size))


def _k_means(points: Floats, clusters: int) -> Floats:
    """Run Lloyd's algorithm with the first points as centers. A cluster that becomes empty keeps its center."""
    centers = points[:clusters].copy()
    for _ in range(_ITERATIONS):
        labels = nearest(points, centers)
        order = np.argsort(labels, kind="stable")
        used, starts = np.unique(labels[order], return_index=True)
        sums = np.stack([points[rows].sum(axis=0, dtype=np.float64) for rows in np.split(order, starts[1:])])
        lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        used, sums, lengths = used[lengths[:, 0] > 0], sums[lengths[:, 0] > 0], lengths[lengths[:, 0] > 0]
        centers[used] = (np.rint(sums / lengths * GRID) / GRID).astype(np.float32)
    return centers
