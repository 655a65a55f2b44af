"""Decides which rows to drop, once each cluster has found the parents of its rows: better rows that they resemble.

A row without a parent in any cluster stays, and a row with a parent that stays is dropped. The other rows are
undecided, because all their parents may be dropped themselves. They are compared again with each other and with the
rows that stay, round by round, until all are decided; each round decides at least the first of them in every cluster.
In the end, every dropped row resembles a row that stays, and no two rows that stay resemble each other if they share a
cluster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, largest, split_by_chunk
from pairmill.pipeline.select.filters import RowIndices, RowMask
from pairmill.pipeline.select.keys import fill_ranks, mix
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.semantic.near import STAYS, near_rows
from pairmill.pipeline.select.semantic.passes import EDGE

ROW_IS_OPEN, ROW_STAYS, ROW_GOES = 0, 1, 2
States = npt.NDArray[np.uint8]
"""The state of each row of a chunk, one of the three above. Rows that are in no cluster stay open."""


def no_states(num_rows: int) -> States:
    """The states of a chunk before the first round."""
    return np.full(num_rows, ROW_IS_OPEN, np.uint8)


def find_edges(threshold: float, guests_first: bool, chunk_starts: Sequence[int], *parts: Array) -> list[Any]:
    """Compare the members of one partition's clusters. Returns [number of EDGEs, EDGEs of the rows of each chunk ..].

    Better rows come first in a cluster. With `guests_first`, all guests come before the other rows.
    """
    members = np.concatenate(parts)
    late = ~members["is_guest"] & guests_first
    order = np.lexsort((members["row_index"], ~members["low_bits"], ~members["rank"], late, members["cluster"]))
    members = members[order]
    cuts = np.flatnonzero(np.diff(members["cluster"])) + 1
    edges = [_edges_of(cluster, threshold) for cluster in np.split(members, cuts) if len(cluster) > 1]
    found = np.concatenate([np.zeros(0, EDGE), *edges])
    found = found[np.argsort(found["row_index"], kind="stable")]
    return [len(found), *np.split(found, np.searchsorted(found["row_index"], np.asarray(chunk_starts[1:], np.int64)))]


def let_stay(first_row_index: int, memberships: Array, states: States, *parts: Array) -> tuple[Array, States]:
    """Let the open rows of a chunk that have no edges stay. Returns (EDGEs of the chunk; its states)."""
    edges = np.concatenate([np.zeros(0, EDGE), *parts])
    compared = np.zeros(len(states), np.bool_)
    compared[memberships["row_index"] - first_row_index] = True
    compared[edges["row_index"] - first_row_index] = False
    return edges, np.where(compared & (states == ROW_IS_OPEN), ROW_STAYS, states).astype(np.uint8)


def let_go(edges: Array, at: int, chunk_starts: Sequence[int], *states: States) -> tuple[Array, States]:
    """Drop the rows of chunk `at` that have a parent that stays.

    Returns (for each of these rows, the EDGE to its best parent that stays; the states of the chunk). `states`: the
    states of all chunks after `let_stay`.
    """
    edges = edges[_states_of(edges["parent"], chunk_starts, states) == ROW_STAYS]
    edges = edges[np.lexsort((edges["parent"], ~edges["low_bits"], ~edges["rank"], edges["row_index"]))]
    edges = edges[np.unique(edges["row_index"], return_index=True)[1]]
    result = states[at].copy()
    result[edges["row_index"] - chunk_starts[at]] = ROW_GOES
    return edges, result


def left_over(
    first_row_index: int, memberships: Array, states: States, clusters: int
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(memberships of the rows that are open or stay; their number in each cluster; the number of open rows in each).

    Rows that stay become guests, because they need not be compared with each other again.
    """
    of_rows = states[memberships["row_index"] - first_row_index]
    found = memberships[of_rows != ROW_GOES]
    found["is_guest"] = of_rows[of_rows != ROW_GOES] == ROW_STAYS
    is_open: RowMask = ~found["is_guest"]
    num_rows, num_open = (
        np.bincount(each, minlength=clusters) for each in (found["cluster"], found["cluster"][is_open])
    )
    return found, num_rows, num_open


def rows_that_go(equal: Array, buckets: int, *edges: Array) -> list[Array]:
    """Returns [the dropped rows of a chunk, sorted; DUPLICATE_GROUPs of each bucket ..].

    The size of a group is the number of rows that were dropped because of the row that stays.
    `equal`: the EDGEs of rows with the same vectors as a better row, which are always dropped. `edges`: the EDGEs from
    `let_go`.
    """
    found = np.concatenate(edges)
    found = found[np.argsort(found["row_index"])]
    of_equal = equal["parent"]
    if len(found):
        place = np.minimum(np.searchsorted(found["row_index"], of_equal), len(found) - 1)
        of_equal = np.where(found["row_index"][place] == of_equal, found["parent"][place], of_equal)
    kept, sizes = np.unique(np.concatenate([found["parent"], of_equal]), return_counts=True)
    groups = np.zeros(len(kept), DUPLICATE_GROUP)
    groups["row_index"], groups["rows"] = kept, sizes
    bucket = mix(kept.astype(np.uint64)) % np.uint64(buckets)
    goes = np.sort(np.concatenate([found["row_index"], equal["row_index"]]))
    return [goes, *(groups[bucket == number] for number in range(buckets))]


def largest_groups(*parts: Array) -> Array:
    """The largest groups of one bucket, as DUPLICATE_GROUPs that include the row that stays."""
    groups = np.concatenate([np.zeros(0, DUPLICATE_GROUP), *parts])
    kept, position = np.unique(groups["row_index"], return_inverse=True)
    merged = np.zeros(len(kept), DUPLICATE_GROUP)
    merged["row_index"] = kept
    merged["rows"] = 1 + np.bincount(position, groups["rows"], len(kept)).astype(np.int64)
    return largest(merged)


def _edges_of(members: Array, threshold: float) -> Array:
    """The EDGEs of one cluster, in the order of its members."""
    vectors = np.ascontiguousarray(members["vector"].transpose(1, 0, 2))
    parents = near_rows(vectors, members["is_guest"], threshold)
    goes = np.flatnonzero(parents != STAYS)
    edges = np.zeros(len(goes), EDGE)
    edges["row_index"], edges["parent"] = members["row_index"][goes], members["row_index"][parents[goes]]
    fill_ranks(edges, members[parents[goes]])
    return edges


def _states_of(rows: RowIndices, chunk_starts: Sequence[int], states: Sequence[States]) -> States:
    """The states of the given rows, which can be anywhere in the dataset."""
    order = np.argsort(rows)
    found = np.zeros(len(rows), np.uint8)
    parts = split_by_chunk(rows[order], chunk_starts)
    of_parts = [each[part - start] for each, part, start in zip(states, parts, chunk_starts, strict=True)]
    found[order] = np.concatenate(of_parts)
    return found
