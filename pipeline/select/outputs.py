"""Defines scan outputs: the data that a scan collects about the remaining rows for the decisions of the next step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.known.hash_index import is_hash
from pairmill.pipeline.known.keys import HASH_WORDS, PDQ, is_text
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import RowIndices, to_mask
from pairmill.pipeline.select.keys import RANK, U64, fill_ranks, is_comparable, key_halves, mix, ranks
from pairmill.pipeline.select.order import ORDER_KEY, Order, OrderKey, uids_in

Array = npt.NDArray[Any]

DEDUP_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), *RANK.descr, ("row_index", "<i8")])
"""The 128-bit key that duplicates share, the rank of the row's score (0 if it has none), and the row's index."""

_SAMPLE_SALT = np.uint64(0x9A1B)


class ScanOutput(Protocol):
    """The data that a scan collects about the remaining rows."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `collect` reads."""

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """Data types of the arrays that `collect` returns."""

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """One array per dtype, from the remaining rows of one shard."""


@dataclass(frozen=True)
class NoOutput:
    """Collects nothing: the scan only applies filters."""

    columns: frozenset[str] = frozenset()
    dtypes: Sequence[np.dtype[Any]] = ()

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """Return no arrays."""
        return []


@dataclass(frozen=True)
class SampledKeys:
    """Collects a random sample of an order's keys. Whether a row is sampled depends on a hash of its index alone, not
    on how the rows are divided into chunks."""

    order: Order
    fraction: float
    dtypes: Sequence[np.dtype[Any]] = (ORDER_KEY,)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the order."""
        return self.order.columns

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """Keys of the rows whose hash is below the fraction."""
        limit = np.uint64(min(self.fraction, 1.0) * (2**64 - 2**11))
        is_sampled = mix(row_indices.astype(np.uint64) ^ _SAMPLE_SALT) <= limit
        return [self.order.keys(table.filter(pa.array(is_sampled)))]


@dataclass(frozen=True)
class KeysWithin:
    """Collects the keys of an order within [lowest, highest], and the number of keys above them."""

    order: Order
    lowest: OrderKey
    highest: OrderKey
    dtypes: Sequence[np.dtype[Any]] = (ORDER_KEY, np.dtype(np.int64))

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the order."""
        return self.order.columns

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """(keys within the bounds, [number of keys above them])."""
        uids = uids_in(table)
        from_highest = self.order.compare(table, self.highest, uids)
        is_within = (self.order.compare(table, self.lowest, uids) >= 0) & (from_highest <= 0)
        return [self.order.keys(table.filter(pa.array(is_within))), np.array([(from_highest > 0).sum()])]


@dataclass(frozen=True)
class DedupKeys:
    """Collects the DEDUP_KEYs of a column, split by hash into `partitions` partitions, and the number of rows without.

    Collects only the partitions `first` to `last - 1`.
    """

    by: str
    best: str | None
    partitions: int
    first: int
    last: int

    @property
    def columns(self) -> frozenset[str]:
        """The column to deduplicate by and the columns of the score."""
        return frozenset({self.by}) | (Expression(self.best).columns if self.best else frozenset())

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array per collected partition, and the number."""
        return [*[DEDUP_KEY] * (self.last - self.first), np.dtype(np.int64)]

    def collect(self, table: pa.Table, row_indices: RowIndices) -> Sequence[Array]:
        """The keys of each partition, and the number of rows that have none."""
        keys = self.keys(table, row_indices)
        return [*self.split(keys, mix(keys["high"] ^ keys["low"])), np.array([table.num_rows - len(keys)])]

    def keys(self, table: pa.Table, row_indices: RowIndices) -> Array:
        """The DEDUP_KEYs of a table. Rows with null, NaN, or text in place of a hash are left out: they have
        no duplicates."""
        valid = to_mask(is_comparable(table[self.by]))
        if self.by == PDQ and is_text(table[PDQ].type):
            valid &= is_hash(table[PDQ], HASH_WORDS[PDQ])
        keys = np.empty(int(valid.sum()), DEDUP_KEY)
        high, low = key_halves(table[self.by], self.by)
        keys["high"], keys["low"], keys["row_index"] = high[valid], low[valid], row_indices[valid]
        fill_ranks(keys, ranks(table, self.best)[valid] if self.best else np.zeros(len(keys), RANK))
        return keys

    def split(self, keys: Array, hashes: U64) -> list[Array]:
        """Split the keys by hash into the collected partitions."""
        partition = hashes % np.uint64(self.partitions)
        return [keys[partition == number] for number in range(self.first, self.last)]
