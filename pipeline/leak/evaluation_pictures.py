"""Numbers the distinct pictures of an evaluation set, which can have several captions each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.leak.evaluation_set import EvaluationSet, Indices, NewPictures
from pairmill.pipeline.reader.picture_ids import input_row, picture_ids
from pairmill.pipeline.select.step_error import StepError

MAX_ITEMS = 1_000_000
_COLUMNS = ("row_id", "uid", "url", "sha256")


@dataclass(frozen=True)
class EvaluationPictures:
    """The pictures that are compared, numbered in the order of their first rows: first those of pairs, then those of
    rejects, of which only the SHA-256 is known."""

    rows: pa.Table
    """`row_id`, `uid`, `url` and `sha256` of all rows of these pictures."""
    item_of: Indices
    """The number of the picture of each row."""
    new: Sequence[NewPictures]
    """The pictures of the pairs of each shard."""
    rejected: int
    """Number of pictures of rejects, which are the last ones."""
    missing: int
    """Number of rejected pictures that cannot be compared, and so have no number."""

    @classmethod
    def read(cls, evaluation: EvaluationSet) -> "EvaluationPictures":
        """Read the rows that count. Raises StepError if there are no pictures or too many, and DatasetError."""
        against, shards = evaluation.leak.against, range(len(evaluation.snapshot.chunk.shards))
        tables, ids, seen = list[pa.Table](), list[np.ndarray](), set[int]()
        for position in shards:
            tables.append(evaluation.read(position, _COLUMNS))
            ids.append(picture_ids(tables[-1]))
            seen.update(ids[-1].tolist())
            if len(seen) > MAX_ITEMS:
                raise StepError(f"{against} has more than {MAX_ITEMS:,} pictures, too many for an evaluation set")
        if not seen:
            raise StepError(f"{against} has no pictures to compare with")
        rejects = pa.concat_tables([evaluation.read_rejects(position, _COLUMNS) for position in shards])
        known, unknown = _rejects(pa.concat_tables(tables), rejects, seen, "sha256" in evaluation.leak.by)
        item_of = _in_order(np.concatenate([*ids, picture_ids(known)]))
        new = _new(item_of, [table.num_rows for table in tables])
        rows = pa.concat_tables([*tables, known])
        return cls(rows, item_of, new, int(item_of.max()) + 1 - len(seen), unknown)

    @cached_property
    def items(self) -> pa.Table:
        """The first row of each picture, in the order of their numbers."""
        return self.rows.take(pa.array(np.unique(self.item_of, return_index=True)[1]))

    def rows_of(self, items: Indices) -> tuple[Indices, Indices]:
        """All rows of these pictures, picture by picture: (positions in `items`, row indices)."""
        order = np.argsort(self.item_of, kind="stable")
        starts = np.searchsorted(self.item_of[order], items)
        counts = np.searchsorted(self.item_of[order], items, "right") - starts
        before = np.cumsum(counts) - counts
        positions = np.repeat(np.arange(len(items)), counts)
        return positions, order[np.arange(len(positions)) + (starts - before)[positions]]


def _rejects(pairs: pa.Table, rejects: pa.Table, seen: set[int], by_sha256: bool) -> tuple[pa.Table, int]:
    """(the rejects whose pictures can be compared by SHA-256, number of the other pictures). Leaves out the pictures
    that pairs have: the duplicate of a pair, for example, is rejected."""
    is_new = np.array([each not in seen for each in picture_ids(rejects).tolist()], np.bool_)
    rejects = rejects.filter(pa.array(is_new))
    can_compare = rejects["sha256"].is_valid() if by_sha256 else pa.array(np.zeros(rejects.num_rows, np.bool_))
    known, others = rejects.filter(can_compare), rejects.filter(pc.invert(can_compare))
    urls = pa.concat_tables([pairs, known])["url"]
    others = others.filter(pc.invert(pc.is_in(others["url"], value_set=urls.combine_chunks(), skip_nulls=True)))
    keys = zip(*(others[name].to_pylist() for name in ("sha256", "url", "row_id")), strict=True)
    return known, len({sha256 or url or input_row(row_id) for sha256, url, row_id in keys})


def _in_order(ids: np.ndarray) -> Indices:
    """The number of each id [rows], counted in the order in which they first occur."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


def _new(item_of: Indices, rows: Sequence[int]) -> list[NewPictures]:
    """The pictures that each shard is the first to contain. `rows`: number of rows of each shard."""
    items, first = np.unique(item_of, return_index=True)
    starts = np.concatenate([[0], np.cumsum(rows)])
    bounds = np.searchsorted(first, starts)
    return [
        NewPictures(first[begin:end] - start, items[begin:end])
        for start, begin, end in zip(starts, bounds, bounds[1:], strict=False)
    ]
