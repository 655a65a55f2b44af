"""Finds the rows that a query starts from, before any filter: one per uid, or those of a subset."""

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.subset import NOT_DROPPED, SubsetError, read_shards, read_subset
from pairmill.pipeline.reader.snapshot import Snapshot

Mask = npt.NDArray[np.bool_]
"""For each row of a snapshot, whether it is included [rows]."""


def first_of_each(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], among: Mask) -> Mask:
    """A mask of the rows of `among` that are the first with their 128-bit key. All arrays have the shape [rows]."""
    rows = np.flatnonzero(among)
    order = np.lexsort((low[rows], high[rows]))  # stable: rows with equal keys stay in order
    ordered = rows[order]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (high[ordered[1:]] != high[ordered[:-1]]) | (low[ordered[1:]] != low[ordered[:-1]])
    found = np.zeros(len(among), np.bool_)
    found[ordered[is_first]] = True
    return found


def of_subset(snapshot: Snapshot, name: str) -> Mask:
    """The rows of a subset. Skips shards that are not in the snapshot. Raises SubsetError if a shard has been rebuilt
    since the subset was made."""
    store, found = snapshot.store, np.zeros(snapshot.chunk.num_rows, np.bool_)
    spans = {shard.shard: (shard, span) for shard, span in snapshot.chunk.spans()}
    for selection in read_shards(store, read_subset(store, name)):
        if selection.shard not in spans:
            continue
        shard, span = spans[selection.shard]
        if shard.pairs_blake2b != selection.pairs_blake2b:
            raise SubsetError(
                f"shard {shard.shard:09d} was rebuilt after {name!r} was made; "
                f"select again: {pairmill_command('select', store.root, '--refresh', name)}"
            )
        found[span] = selection.drop_step == NOT_DROPPED
    return found
