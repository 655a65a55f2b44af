"""Decides which rows stay: from the best down, each row that has not been dropped drops the rows near it.

The rows that stay are the lexicographically first maximal independent set, by rank, of the graph that connects near
rows. Blelloch, Fineman and Shun 2012, "Greedy sequential maximal independent set and matching are parallel on average",
decide many rows at a time: a row stays once all better rows near it are dropped, and is dropped once one of them stays.
Where rows are crowded, each round decides only about the best rows, then drops all rows near those that stay.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, largest, split_by_chunk
from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.near_compare import Pairs
from pairmill.pipeline.select.near_join import DROPPED, KEPT, LATER, NEW, UNDECIDED, States
from pairmill.pipeline.select.outputs import Array

_SHARE = 16
"""If a pass settles fewer than one in this many pairs, as in long chains of rows that each resemble the next, deciding
row by row is faster."""


def decide(most: int, first: int, states: States, pairs: Pairs) -> tuple[States, int]:
    """Decide about the `first` best of the UNDECIDED rows. Returns (the states, number of rows still UNDECIDED).

    `pairs`: sorted; each of these rows is paired with the `most` best of the better UNDECIDED rows near it, or with all
    of them if there are fewer. A row remains UNDECIDED only if it has `most` pairs and all their better rows are
    dropped, or if it depends on such a row. No row may be near a KEPT row.
    """
    states = states.copy()
    worse, better = _halves(pairs)
    rows, sizes = np.unique(worse, return_counts=True)
    is_cut = np.zeros(len(states), np.bool_)  # whether `pairs` may lack some of a row's better rows
    is_cut[rows[sizes == most]] = True
    alone = np.zeros(len(states), np.bool_)
    alone[np.flatnonzero(states == UNDECIDED)[:first]] = True
    alone[rows] = False
    states[alone] = NEW
    while len(worse):
        states[worse[states[better] == NEW]] = DROPPED
        open_pairs = (states[worse] == UNDECIDED) & (states[better] == UNDECIDED)
        before, worse, better = worse, worse[open_pairs], better[open_pairs]
        waiting = np.unique(before)
        freed = waiting[(states[waiting] == UNDECIDED) & ~is_cut[waiting] & ~np.isin(waiting, worse)]
        states[freed] = NEW
        if len(before) - len(worse) < len(before) // _SHARE + _SHARE:
            _decide_one_by_one(states, worse, better, is_cut)
            break
    return states, int((states == UNDECIDED).sum())


def drop_near_new(states: States, pairs: Pairs) -> tuple[States, int, int]:
    """Drop the rows that are near NEW rows, and mark the NEW rows as KEPT.

    `pairs`: each consists of a row to drop and a NEW row. Returns (the states, number of UNDECIDED rows, number of
    LATER rows).
    """
    states = states.copy()
    states[_halves(pairs)[0]] = LATER
    states[states == NEW] = KEPT
    return states, int((states == UNDECIDED).sum()), int((states == LATER).sum())


def conclude(
    chunk_starts: Sequence[int], num_rounds: int, states: States, row_index: RowIndices, *arrays: Array
) -> tuple[Array, ...]:
    """Returns (the largest DUPLICATE_GROUPs, and for each chunk the rows to drop, sorted).

    `arrays`: the pairs of each of the `num_rounds` rounds, then the groups of equal hashes. A dropped row and all rows
    with the same hash count as duplicates of the best row that is near it and stays.
    """
    states = np.array([UNDECIDED, KEPT, DROPPED, KEPT, KEPT, DROPPED], np.uint8)[states]
    worse, better = _halves(np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays[:num_rounds]])))
    of_dropped = (states[worse] == DROPPED) & (states[better] == KEPT)
    worse, better = worse[of_dropped], better[of_dropped]
    is_first = np.ones(len(worse), np.bool_)
    is_first[1:] = worse[1:] != worse[:-1]
    sizes = _sizes(row_index, np.concatenate([np.zeros(0, DUPLICATE_GROUP), *arrays[num_rounds:]]))
    np.add.at(sizes, better[is_first], sizes[worse[is_first]])
    found = np.flatnonzero((sizes > 1) & (states != DROPPED))
    groups = np.zeros(len(found), DUPLICATE_GROUP)
    groups["row_index"], groups["rows"] = row_index[found], sizes[found]
    return largest(groups), *split_by_chunk(np.sort(row_index[states == DROPPED]), chunk_starts)


def _decide_one_by_one(
    states: States, worse: npt.NDArray[np.int64], better: npt.NDArray[np.int64], is_cut: npt.NDArray[np.bool_]
) -> None:
    """Decide about the rows of these pairs, one row after the other. The pairs are sorted by the worse row."""
    if not len(worse):
        return
    rows, starts = np.unique(worse, return_index=True)
    known = dict(zip(better.tolist(), states[better].tolist(), strict=True))
    others, ends = better.tolist(), [*starts[1:].tolist(), len(worse)]
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends, strict=True):
        of_others = {known[other] for other in others[start:end]}
        if NEW in of_others:
            known[row] = DROPPED
        elif UNDECIDED in of_others or is_cut[row]:
            known[row] = UNDECIDED
        else:
            known[row] = NEW
    states[rows] = [known[row] for row in rows.tolist()]


def _sizes(row_index: RowIndices, groups: Array) -> npt.NDArray[np.int64]:
    """For the best row of each hash, the number of rows with that hash."""
    sizes = np.ones(len(row_index), np.int64)
    order = np.argsort(groups["row_index"])
    groups = groups[order]
    if len(groups):
        at = np.minimum(np.searchsorted(groups["row_index"], row_index), len(groups) - 1)
        is_group = groups["row_index"][at] == row_index
        sizes[is_group] = groups["rows"][at[is_group]]
    return sizes


def _halves(pairs: Pairs) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(worse, better), each int64 [pairs]."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
