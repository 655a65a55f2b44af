"""Defines a total order of rows that does not depend on where the rows are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import RANK, SAMPLE, TIES, U64, Ranks, fill_ranks, ranks, uid_hashes

ORDER_KEY = np.dtype([*RANK.descr, ("tie", "<u8")])
"""The dtype of an OrderKey in an array."""

OrderKeys = npt.NDArray[np.void]
"""An array of shape (rows,) and dtype `ORDER_KEY`."""


ReadUids = Callable[[npt.NDArray[np.int64]], pa.ChunkedArray]
"""Reads the uids of the rows at the given positions of a table; both have shape (rows,)."""


class OrderKey(NamedTuple):
    """The position of one row in an order. Keys are compared by `rank`, then `low_bits`, then `tie`; the best row has
    the highest key."""

    rank: int
    """Together with `low_bits`, the score as in `keys.RANK`."""
    low_bits: int
    tie: int
    """Hash of the uid."""


LOWEST = OrderKey(0, 0, 0)
NO_SCORE = OrderKey(0, 2**64 - 1, 2**64 - 1)
"""A key at or above the key of every row without a score, and below the keys of all other rows."""
HIGHEST = OrderKey(2**64 - 1, 2**64 - 1, 2**64 - 1)
"""A key above the key of every row, because no number has this rank."""


@dataclass(frozen=True)
class Order:
    """Orders rows by score, and breaks ties by a hash of the uid. Without a score, orders them by that hash alone."""

    by: str | None
    seed: int = 0

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `keys` reads."""
        return self.first_columns | {"uid"}

    @property
    def first_columns(self) -> frozenset[str]:
        """Columns that `compare` reads for all rows: those of the score or, without a score, the uid."""
        return Expression(self.by).columns if self.by else frozenset({"uid"})

    def keys(self, table: pa.Table) -> OrderKeys:
        """The key of each row; shape (rows,)."""
        keys = np.empty(table.num_rows, ORDER_KEY)
        fill_ranks(keys, self._ranks(table))
        keys["tie"] = self._ties(table["uid"])
        return keys

    def compare(self, table: pa.Table, key: OrderKey, read_uids: ReadUids) -> npt.NDArray[np.int8]:
        """For each row, whether its key is lower than `key` (-1), equal to it (0) or higher (1).

        Reads and hashes only the uids of rows with the same score.
        """
        found = self._ranks(table)
        result = _compare(found["rank"], key.rank)
        same = np.flatnonzero(result == 0)
        result[same] = _compare(found["low_bits"][same], key.low_bits)
        same = same[result[same] == 0]
        if len(same):
            result[same] = _compare(self._ties(read_uids(same)), key.tie)
        return result

    def _ranks(self, table: pa.Table) -> Ranks:
        return ranks(table, self.by) if self.by else np.zeros(table.num_rows, RANK)

    def _ties(self, uids: pa.ChunkedArray) -> U64:
        return uid_hashes(uids, TIES if self.by else SAMPLE, self.seed)


def uids_in(table: pa.Table) -> ReadUids:
    """Takes uids from a table with the column `uid`."""
    return lambda at: table["uid"].take(pa.array(at))


def _compare(values: npt.NDArray[Any], limit: int) -> npt.NDArray[np.int8]:
    number = values.dtype.type(limit)
    result: npt.NDArray[np.int8] = (values > number).astype(np.int8) - (values < number).astype(np.int8)
    return result
