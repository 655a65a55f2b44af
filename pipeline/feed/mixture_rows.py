"""Reads the rows of a PairDataset from a mixture: the rows of several datasets, interleaved.

Each dataset has its own order of an epoch. A block of the mixture's order takes the next rows of each dataset, as many
as the dataset's share of the block, and shuffles them together. So every block has the same shares as the epoch, to
within one row, and batches mix all datasets. A formula computes the start of a block in each dataset's order, so a
consumer can start anywhere.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.caption_choice import CaptionChoice
from pairmill.pipeline.columns.common_columns import (
    DATASET,
    CommonColumns,
    NamedColumns,
    common_columns,
    meanings,
)
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.mixture import read_mixture
from pairmill.pipeline.feed.batches import read_ahead
from pairmill.pipeline.feed.config import IMAGE, FeedConfig, FeedError
from pairmill.pipeline.feed.dataset_rows import DatasetRows
from pairmill.pipeline.feed.epoch_order import EpochOrder, Shares
from pairmill.pipeline.feed.shards import FeedShards
from pairmill.schemas.pairs import CHECKSUM, STORED

BLOCK_ROWS = 4_096
"""About this many rows are shuffled together across datasets."""

_SHA256 = "sha256"
_IMAGE_FIELDS = (*STORED, CHECKSUM, pa.field(_SHA256, pa.string()))


@dataclass(frozen=True, eq=False)
class MixtureOrder(Shares):
    """The order of an epoch of a mixture."""

    orders: tuple[EpochOrder, ...]
    """The order of each dataset."""

    @property
    def num_rows(self) -> int:
        """Number of rows of all datasets."""
        return sum(order.num_rows for order in self.orders)

    @property
    def num_blocks(self) -> int:
        """Number of blocks; at least one."""
        return max(1, self.num_rows // BLOCK_ROWS)

    def cuts(self, block: int) -> list[int]:
        """Number of rows of each dataset in the blocks before this one."""
        return [order.num_rows * block // self.num_blocks for order in self.orders]

    def blocks(self, positions: range) -> range:
        """The blocks with rows at these positions."""
        if not positions:
            return range(0)
        return range(self._block_of(positions.start), self._block_of(positions.stop - 1) + 1)

    def shuffled(self, epoch: int, block: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """A permutation of a block's rows, which are in dataset order before the shuffle; shape (rows,)."""
        return np.random.default_rng([self.orders[0].seed % (1 << 63), epoch, block, 1]).permutation(rows)

    def _block_of(self, position: int) -> int:
        block = position * self.num_blocks // self.num_rows  # at most one block off
        while sum(self.cuts(block)) > position:
            block -= 1
        while sum(self.cuts(block + 1)) <= position:
            block += 1
        return block


@dataclass(frozen=True)
class MixtureRows:
    """The rows of a mixture."""

    names: tuple[str, ...]
    sources: tuple[DatasetRows, ...]
    common: CommonColumns
    config: FeedConfig
    fingerprint: str
    """Datasets with equal fingerprints have the same rows in the same order."""

    @classmethod
    def open(cls, store: Store, config: FeedConfig) -> "MixtureRows":
        """Open a mixture. Raises FeedError if the config names a subset, SubsetError if a dataset has changed since it
        was mixed, and CaptionChoiceError if a dataset does not have the chosen captions."""
        if config.subset is not None:
            raise FeedError(f"{store.root} is a mixture, which has no subsets: leave out subset={config.subset!r}")
        record, sources, named = read_mixture(store), [], []
        for number, source in enumerate(record.sources):
            shards = FeedShards.of_mixture(store, record, number, config.s3)
            columns = [name for name in config.columns if name != DATASET]
            seed = config.seed + 1_000_003 * number  # each dataset has its own random order
            sources.append(DatasetRows.of(shards, replace(config, columns=columns, seed=seed)))
            first = shards.aliases[0] if shards.aliases else None
            named.append(NamedColumns(source.name, shards.schema, meanings(shards.chunk, shards.added, first)))
        return cls(tuple(each.name for each in named), tuple(sources), common_columns(named), config, record.attempt)

    @property
    def schema(self) -> pa.Schema:
        """The columns that all datasets have, and DATASET."""
        return self.common.schema

    @property
    def has_pictures(self) -> bool:
        """Whether each picture of every dataset can be read with a single range read."""
        return all(source.has_pictures for source in self.sources)

    @property
    def image_columns(self) -> Sequence[str]:
        """The dataset, the location of the picture, and two checksums; each dataset uses at most one of these."""
        return [DATASET, *(field.name for field in _IMAGE_FIELDS)]

    @property
    def max_pixels(self) -> int:
        """The largest of the datasets' maximum numbers of pixels."""
        return max(source.max_pixels for source in self.sources)

    @property
    def num_selected(self) -> int:
        """Number of selected rows, without repetitions."""
        return sum(source.num_selected for source in self.sources)

    @property
    def has_weights(self) -> bool:
        """Whether rows of some datasets repeat."""
        return any(source.has_weights for source in self.sources)

    @property
    def choices(self) -> Sequence[CaptionChoice]:
        """The choices of captions, one per dataset; empty: the original captions."""
        return [choice for source in self.sources for choice in source.choices]

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The added models and scores that the rows are made from -> their fingerprints. Each name follows that of its
        dataset."""
        named = zip(self.names, self.sources, strict=True)
        return {f"{name}: {each}": value for name, source in named for each, value in source.fingerprints.items()}

    def missing(self, column: str) -> str | None:
        """The reason why a column cannot be read, if only some datasets have it."""
        return self.common.left_out.get(column)

    def order(self, epoch: int) -> MixtureOrder:
        """The order of an epoch of the whole mixture."""
        return MixtureOrder(self.config.even, tuple(source.order(epoch) for source in self.sources))

    def tables(self, epoch: int, positions: range) -> Iterator[pa.Table]:
        """The rows at these positions of the epoch, in one table per block. Without `shuffle`, the datasets follow one
        another."""
        order = self.order(epoch)
        if not self.config.shuffle:
            yield from self._in_sequence(order, epoch, positions)
            return
        blocks = order.blocks(positions)
        if not blocks:
            return
        ends = zip(order.cuts(blocks.start), order.cuts(blocks.stop), strict=True)
        streams = [_Stream(self._of_source(order, number, epoch, range(*each))) for number, each in enumerate(ends)]
        for block in blocks:
            cuts, following = order.cuts(block), order.cuts(block + 1)
            parts = [stream.take(end - start) for stream, start, end in zip(streams, cuts, following, strict=True)]
            rows = pa.concat_tables(part for taken in parts for part in taken)
            start, end = max(positions.start - sum(cuts), 0), min(positions.stop - sum(cuts), rows.num_rows)
            yield take_rows(rows, order.shuffled(epoch, block, rows.num_rows)[start:end])

    def picture(self, *values: object) -> bytes:
        """The stored picture of the row with these values of `image_columns`, from the row's dataset."""
        name, *where, crc, sha256 = values
        source = self.sources[self.names.index(str(name))]
        check = {CHECKSUM.name: crc, _SHA256: sha256}.get(source.shards.check or "")
        return source.picture(*where, *([] if check is None else [check]))

    def _in_sequence(self, order: MixtureOrder, epoch: int, positions: range) -> Iterator[pa.Table]:
        start = 0
        for number, of_source in enumerate(order.orders):
            first, last = max(positions.start - start, 0), min(positions.stop - start, of_source.num_rows)
            start += of_source.num_rows
            if first < last:
                yield from self._of_source(order, number, epoch, range(first, last))

    def _of_source(self, order: MixtureOrder, number: int, epoch: int, positions: range) -> Iterator[pa.Table]:
        """Rows of one dataset, with the columns of the mixture."""
        wanted = [self.schema.field(name) for name in dict.fromkeys(("uid", *self.config.columns)) if name != IMAGE]
        if IMAGE in self.config.columns:
            wanted += [field for field in _IMAGE_FIELDS if field.name not in {each.name for each in wanted}]
            wanted += [self.schema.field(DATASET)] if DATASET not in self.config.columns else []
        schema = pa.schema(wanted)
        for table in self.sources[number].ordered_tables(order.orders[number], epoch, positions):
            columns = [self._column(table, number, field) for field in schema]
            yield pa.table(columns, schema=schema)

    def _column(self, table: pa.Table, number: int, field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name == DATASET:
            return pa.repeat(self.names[number], table.num_rows)
        if field.name in table.column_names:
            return table[field.name]
        return pa.nulls(table.num_rows, field.type)  # a checksum that another dataset uses


class _Stream:
    """The rows of one dataset, in order, a few at a time. Reads one window ahead."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = read_ahead(tables)
        self._waiting: deque[pa.Table] = deque()

    def take(self, rows: int) -> Iterator[pa.Table]:
        """The next rows, in one or more tables. Raises FeedError if too few rows are left."""
        while rows:
            table = self._waiting.popleft() if self._waiting else next(self._tables, None)
            if table is None:
                raise FeedError(f"{rows:,} rows of a dataset are missing; run pairmill verify on it, then mix again")
            if table.num_rows > rows:
                self._waiting.appendleft(table.slice(rows))
                table = table.slice(0, rows)
            rows -= table.num_rows
            yield table
