"""One pass over a chunk: filters that need nothing but the row decide its fate; what the next step must know leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import ALIVE, Fates
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import SAMPLE, TIES, U64, Bools, identities, mixed, ranks, uid_hashes
from pairmill.schemas.pairs import KEPT_STATUS

MAX_STEPS = 100

_PICKING_SEED = 0x9A1B


class Filter(Protocol):
    """Keeps or drops each row by itself."""

    @property
    def number(self) -> int:
        """Of its step."""

    @property
    def columns(self) -> frozenset[str]:
        """What `keep` reads."""

    def keep(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Bools:
        """Per row, whether it stays."""


@dataclass(frozen=True)
class IsKept:
    """Rows that the build kept."""

    number: int = 0
    columns: frozenset[str] = frozenset({"status"})

    def keep(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Bools:
        """Status ok."""
        return _bools(pc.equal(table["status"], KEPT_STATUS))


@dataclass(frozen=True)
class Where:
    """Rows for which an expression holds."""

    number: int
    expression: Expression

    @property
    def columns(self) -> frozenset[str]:
        """Those of the expression."""
        return self.expression.columns

    def keep(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Bools:
        """True only: neither false nor null."""
        return _bools(self.expression.evaluate(table))


@dataclass(frozen=True)
class Order:
    """A total order of rows: by score, equal scores by a hash of the uid. Without a score, by the hash alone."""

    by: str | None
    seed: int = 0

    @property
    def columns(self) -> frozenset[str]:
        """What `keys` reads."""
        return frozenset({"uid"}) | (Expression(self.by).columns if self.by else frozenset())

    def keys(self, table: pa.Table) -> tuple[U64, U64]:
        """(rank, tie) per row: higher is better, rank first."""
        rank = ranks(table, self.by) if self.by else np.zeros(table.num_rows, np.uint64)
        return rank, uid_hashes(table["uid"], TIES if self.by else SAMPLE, self.seed)


@dataclass(frozen=True)
class AtLeast:
    """Rows at or above a place in an order."""

    number: int
    order: Order
    rank: int
    tie: int

    @property
    def columns(self) -> frozenset[str]:
        """Those of the order."""
        return self.order.columns

    def keep(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Bools:
        """Whether (rank, tie) is no lower than the threshold's."""
        rank, tie = self.order.keys(table)
        return ~is_below(rank, tie, self.rank, self.tie)


@dataclass(frozen=True)
class NotAmong:
    """Rows that a dedup did not drop; the places come with the chunk."""

    number: int
    dropped: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: frozenset[str] = frozenset()

    def keep(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Bools:
        """By place."""
        return ~np.isin(places, self.dropped)


class ScanOutput(Protocol):
    """What a scan hands on about the rows that are alive."""

    @property
    def columns(self) -> frozenset[str]:
        """What `collect` reads."""

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """Of the arrays."""

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """One array per dtype, of the rows of one shard."""


RANKED = np.dtype([("rank", "<u8"), ("tie", "<u8")])
KEYED = np.dtype([("high", "<u8"), ("low", "<u8"), ("rank", "<u8"), ("place", "<i8")])


@dataclass(frozen=True)
class Nothing:
    """Only the fates are wanted."""

    columns: frozenset[str] = frozenset()
    dtypes: Sequence[np.dtype[Any]] = ()

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """No arrays."""
        return []


@dataclass(frozen=True)
class SampledKeys:
    """A random part of the order's keys, RANKED: the same rows whatever the chunks are."""

    order: Order
    fraction: float
    dtypes: Sequence[np.dtype[Any]] = (RANKED,)

    @property
    def columns(self) -> frozenset[str]:
        """Those of the order."""
        return self.order.columns

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Keys of the rows whose own hash is low."""
        rank, tie = self.order.keys(table)
        picked = mixed(tie ^ np.uint64(_PICKING_SEED)) <= np.uint64(min(self.fraction, 1.0) * (2**64 - 2**11))
        return [_ranked(rank[picked], tie[picked])]


@dataclass(frozen=True)
class Window:
    """Keys within [lowest, highest] of an order, RANKED, and one number: how many are above."""

    order: Order
    lowest: tuple[int, int]
    highest: tuple[int, int]
    dtypes: Sequence[np.dtype[Any]] = (RANKED, np.dtype(np.int64))

    @property
    def columns(self) -> frozenset[str]:
        """Those of the order."""
        return self.order.columns

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """(keys in the window, their number above it)."""
        rank, tie = self.order.keys(table)
        low = is_below(rank, tie, *self.lowest)
        above = ~is_below(rank, tie, *self.highest) & ((rank != self.highest[0]) | (tie != self.highest[1]))
        inside = ~low & ~above
        return [_ranked(rank[inside], tie[inside]), np.array([above.sum()])]


@dataclass(frozen=True)
class Keys:
    """Identities of a column's values, KEYED, split by hash into partitions, of which some are wanted now."""

    by: str
    best: str | None
    partitions: int
    first: int
    last: int

    @property
    def columns(self) -> frozenset[str]:
        """The key's, and those of the score."""
        return frozenset({self.by}) | (Expression(self.best).columns if self.best else frozenset())

    @property
    def dtypes(self) -> Sequence[np.dtype[Any]]:
        """One array per partition that is wanted now."""
        return [KEYED] * (self.last - self.first)

    def collect(self, table: pa.Table, places: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """By partition."""
        keys = self.keyed(table, places)
        return self.split(keys, mixed(keys["high"] ^ keys["low"]))

    def keyed(self, table: pa.Table, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """KEYED rows. Null is equal to nothing, so it is left out."""
        valid = _bools(pc.is_valid(table[self.by]))
        keys = np.empty(int(valid.sum()), KEYED)
        high, low = identities(table[self.by], self.by)
        keys["high"], keys["low"], keys["place"] = high[valid], low[valid], places[valid]
        keys["rank"] = ranks(table, self.best)[valid] if self.best else 0
        return keys

    def split(self, keys: npt.NDArray[Any], hashes: U64) -> list[npt.NDArray[Any]]:
        """The wanted partitions of them."""
        partition = hashes % np.uint64(self.partitions)
        return [keys[partition == wanted] for wanted in range(self.first, self.last)]


def scan(
    chunk: Chunk,
    fates: Fates | None,
    filters: Sequence[Filter],
    emission: ScanOutput,
    *dropped: npt.NDArray[np.int64],
) -> tuple[Any, ...]:
    """(fates, rows dropped per step number and alive at the end, then the emission's arrays).

    `fates` None: all rows are alive. `dropped`: places for the filter that is a NotAmong, in any number of arrays.
    """
    fates = np.full(chunk.num_rows, ALIVE, np.int8) if fates is None else fates.copy()
    filters = [
        NotAmong(each.number, np.concatenate(dropped)) if isinstance(each, NotAmong) else each for each in filters
    ]
    columns = emission.columns.union(*(each.columns for each in filters))
    parts = [[np.zeros(0, dtype)] for dtype in emission.dtypes]
    for shard, span in chunk.spans():
        here = fates[span]
        if not (here == ALIVE).any():
            continue
        table = chunk.read(shard, columns)
        places = np.arange(span.start, span.stop) + chunk.first_place
        for each in filters:
            here[(here == ALIVE) & ~each.keep(table, places)] = each.number
        if parts:
            alive = here == ALIVE
            for part, array in zip(parts, emission.collect(table.filter(pa.array(alive)), places[alive]), strict=True):
                part.append(array)
    counts = {int(number): int(rows) for number, rows in zip(*np.unique(fates, return_counts=True), strict=True)}
    return (fates, counts, *map(np.concatenate, parts))


def is_below(rank: U64, tie: U64, than_rank: int, than_tie: int) -> Bools:
    """Whether (rank, tie) comes before (than_rank, than_tie)."""
    than = np.uint64(than_rank)
    below: Bools = (rank < than) | ((rank == than) & (tie < np.uint64(than_tie)))
    return below


def _ranked(rank: U64, tie: U64) -> npt.NDArray[Any]:
    keys = np.empty(len(rank), RANKED)
    keys["rank"], keys["tie"] = rank, tie
    return keys


def _bools(mask: pa.ChunkedArray | pa.Array) -> Bools:
    """Null as False."""
    filled = pc.fill_null(mask, False)
    array = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    bools: Bools = array.to_numpy(zero_copy_only=False)
    return bools
