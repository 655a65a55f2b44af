"""Reads the rows of a PairDataset from one dataset, in the order of an epoch."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from pairmill.pipeline.columns.added_model import fingerprints
from pairmill.pipeline.columns.caption_choice import CaptionChoice
from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.feed.config import IMAGE, FeedConfig
from pairmill.pipeline.feed.epoch_order import EpochOrder, Shares, Window
from pairmill.pipeline.feed.shards import FeedShards

_LOCAL_READERS = 2
"""Arrow has its own threads; more threads here would only wait for each other."""


class FeedRows(Protocol):
    """The rows of a PairDataset."""

    @property
    def schema(self) -> pa.Schema:
        """All columns."""

    @property
    def has_pictures(self) -> bool:
        """Whether each picture can be read with a single range read."""

    @property
    def image_columns(self) -> Sequence[str]:
        """The columns whose values are the arguments of `picture`."""

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of a picture, as in the job."""

    @property
    def fingerprint(self) -> str:
        """Identifies the selected rows and their order."""

    @property
    def num_selected(self) -> int:
        """Number of selected rows, without repetitions."""

    @property
    def has_weights(self) -> bool:
        """Whether rows can repeat, so epochs have different numbers of rows."""

    @property
    def choices(self) -> Sequence[CaptionChoice]:
        """The choices of captions; empty: the original captions."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """The added models and scores that the rows are made from -> their fingerprints."""

    def missing(self, column: str) -> str | None:
        """The reason why a column is missing, if a specific one is known."""

    def order(self, epoch: int) -> Shares:
        """The order of an epoch, which gives each consumer its positions."""

    def tables(self, epoch: int, positions: range) -> Iterator[pa.Table]:
        """The rows at these positions of the epoch, in order, in tables of any length."""

    def picture(self, *values: object) -> bytes:
        """The stored picture of the row with these values of `image_columns`."""


@dataclass(frozen=True)
class DatasetRows:
    """The rows of one dataset, or a subset of it."""

    shards: FeedShards
    config: FeedConfig
    choice: CaptionChoice | None
    columns: frozenset[str]
    """The columns that the rows are made from."""
    fingerprints: Mapping[str, str]
    """The added models and scores that the rows are made from -> their fingerprints."""
    _orders: dict[int, EpochOrder] = field(default_factory=dict, compare=False)
    """The order of the most recently requested epoch."""

    @classmethod
    def open(cls, store: Store, config: FeedConfig) -> "DatasetRows":
        """Open a dataset. Raises SubsetError for an outdated subset, UnfinishedPurgeError if a purge is not finished,
        and CaptionChoiceError if the dataset does not have the chosen captions."""
        return cls.of(FeedShards.open(store, config.subset), config)

    @classmethod
    def of(cls, shards: FeedShards, config: FeedConfig) -> "DatasetRows":
        """The rows of these shards. Raises CaptionChoiceError if the dataset does not have the chosen captions."""
        choice, pictures = shards.choice(config.caption), shards.image_columns if IMAGE in config.columns else ()
        chosen = choice.columns if choice else frozenset[str]()
        columns = ({"uid", *config.columns, *pictures} - {IMAGE}) | chosen
        read = fingerprints(shards.added, shards.added.with_columns(columns))
        return cls(shards, config, choice, frozenset(columns), read)

    @property
    def schema(self) -> pa.Schema:
        """All columns, including those of added models."""
        return self.shards.schema

    @property
    def has_pictures(self) -> bool:
        """Whether each picture can be read with a single range read."""
        return self.shards.has_pictures

    @property
    def image_columns(self) -> Sequence[str]:
        """The columns whose values are the arguments of `FeedShards.picture`."""
        return self.shards.image_columns

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of a picture, as in the job."""
        return self.shards.max_pixels

    @property
    def fingerprint(self) -> str:
        """Datasets with equal fingerprints have the same rows in the same order."""
        return self.shards.fingerprint

    @property
    def num_selected(self) -> int:
        """Number of selected rows, without repetitions."""
        return int(self.shards.counts.sum())

    @property
    def has_weights(self) -> bool:
        """Whether the subset has weights."""
        return self.shards.repeats is not None

    @property
    def choices(self) -> Sequence[CaptionChoice]:
        """The choice of captions; empty: the original captions."""
        return [self.choice] if self.choice else []

    def missing(self, column: str) -> str | None:
        """The reason why a column cannot be read, if only some shards have it."""
        return self.shards.added.missing(column)

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch. Epochs have different numbers of rows only if there are weights."""
        config, key = self.config, epoch if self.has_weights else 0
        if key not in self._orders:
            self._orders.clear()
            counts = self.shards.counts_in(epoch)
            self._orders[key] = EpochOrder(config.even, counts, config.shuffle, config.seed, config.mix_shards)
        return self._orders[key]

    def tables(self, epoch: int, positions: range) -> Iterator[pa.Table]:
        """The rows at these positions of the epoch, in one table per window of shards."""
        return self.ordered_tables(self.order(epoch), epoch, positions)

    def ordered_tables(self, order: EpochOrder, epoch: int, positions: range) -> Iterator[pa.Table]:
        """Like `tables`, for a given order of the epoch."""
        for window in order.windows(epoch, positions):
            yield self._read_window(order, epoch, window)

    def picture(self, *values: object) -> bytes:
        """The stored picture of the row with these values of `image_columns`: see `FeedShards.picture`."""
        tar, offset, length, *check = values
        return self.shards.picture(tar, offset, length, *check)  # type: ignore[arg-type]

    def _read_window(self, order: EpochOrder, epoch: int, window: Window) -> pa.Table:
        tables, rows, start = [], [], 0
        threads = self.config.threads if self.shards.chunk.store.remote else min(self.config.threads, _LOCAL_READERS)
        with ThreadPoolExecutor(threads, thread_name_prefix="feed-read") as readers:
            read = partial(self.shards.read, columns=self.columns, epoch=epoch)
            for table, selected in readers.map(read, window.shards.tolist()):
                tables.append(table)
                rows.append(selected + start)
                start += table.num_rows
        indices = order.shuffled(epoch, window, np.concatenate(rows))[window.rows]
        found = take_rows(pa.concat_tables(tables), indices)  # a single copy of the selected rows, in order
        return self.choice.apply(found) if self.choice else found
