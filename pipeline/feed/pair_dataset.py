"""A torch dataset over the shards: every pair once per epoch, over all ranks and workers, resumable anywhere."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.feed.batches import item, read_ahead, rebatch, stack, values_of
from pairmill.pipeline.feed.epoch_order import EpochOrder, Window
from pairmill.pipeline.feed.shards import FeedShards
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import ImagesConfig
from pairmill.schemas.pairs import STORED
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config

IMAGE = "image"
"""The column name for the picture itself, which the files do not have as a column."""

_UNBATCHED_ROWS = 256
"""Rows that are read and decoded together when each item is one row."""
_LOCAL_READERS = 2
"""Arrow has its own threads; more threads here would only wait for each other."""
_PROCESSOR = ImageProcessor(ImagesConfig())

Sample: TypeAlias = dict[str, Any]
"""One row, or with `batch_size` one batch: column -> value."""


class FeedError(PairmillError, ValueError):
    """The dataset cannot be fed as asked, or a checkpoint belongs to another run; the message says why."""


class FeedState(TypedDict):
    """A checkpoint of one consumer. All keys except the first two must be the same when it is loaded."""

    epoch: int
    rows_done: int
    consumer: int
    consumers: int
    choice: str
    """FeedShards.fingerprint. The key is older than the word subset."""
    rows: int
    seed: int
    shuffle: bool
    mix_shards: int
    even: bool


class _Consumer(NamedTuple):
    """One worker of one rank."""

    number: int
    total: int


@dataclass(frozen=True)
class FeedConfig:
    """Which rows and columns to feed, and in which order."""

    dataset: str | os.PathLike[str]
    """Output folder of a build or embed, local or s3://."""
    subset: str | None = None
    """None: all kept rows."""
    columns: Sequence[str] = (IMAGE, "caption_clean")
    """`image`, and columns of `pairs/` and `columns/`; `uid` is always added. Without `image`, no picture is read."""
    shuffle: bool = True
    seed: int = 0
    mix_shards: int = 4
    """Number of consecutive shards whose rows are shuffled together. Their columns and those of the next ones are in
    memory, but not their pictures."""
    batch_size: int | None = None
    """Rows per batch. None: one row per item."""
    even: bool = False
    """Give every consumer the same number of rows; the remainder is left out of the epoch."""
    threads: int = 4
    """Threads per worker that read and decode pictures ahead."""
    rank: int = 0
    world_size: int = 1
    s3: S3Config = FROM_ENVIRONMENT
    """Access to the dataset's bucket, if the environment does not configure it."""


class PairDataset(IterableDataset[Sample]):
    """Yields dicts of `uid` and each column: strings, numbers, embeddings as float16 tensors (dim,).

    With `batch_size`, numbers and embeddings are tensors (rows, ...), everything else lists. Null is NaN in numbers and
    embeddings (a batch of integers with a null becomes float), otherwise None. `image` is the stored bytes; `transform`
    turns each picture, as a PIL image, into something else. Captions are strings; `tokenizer`, such as open_clip's,
    turns a list of them into a tensor (rows, length).

    A new loop continues where the last one stopped; `set_epoch` starts over. Raises FeedError and SubsetError.
    """

    def __init__(
        self,
        config: FeedConfig,
        transform: Callable[[Image.Image], Any] | None = None,
        tokenizer: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> None:
        if not 0 <= config.rank < config.world_size:
            raise FeedError(f"rank {config.rank} does not exist in a world of {config.world_size}")
        if min(config.mix_shards, config.threads, 1 if config.batch_size is None else config.batch_size) < 1:
            raise FeedError("batch_size, mix_shards and threads must be 1 or more")
        self.config = config
        self.epoch = 0
        self._transform = transform
        self._tokenizer = tokenizer
        self._rows_done = 0
        self._counted_for = _Consumer(0, 1)
        """The consumer that `_rows_done` belongs to."""
        self._is_resumed = False
        self._shards = FeedShards.open(Store(os.fspath(config.dataset), config.s3), config.subset)
        self._order = EpochOrder(self._shards.counts, config.shuffle, config.seed, config.mix_shards, config.even)
        if unknown := sorted({*config.columns} - {IMAGE, *self._shards.schema.names}):
            raise FeedError(f"{config.dataset} has no column {unknown[0]!r}")
        if IMAGE in config.columns and not self._shards.has_pictures:
            raise FeedError(f"{config.dataset} has no stored pictures that can be read with one range read each")

    @property
    def num_rows(self) -> int:
        """Rows of this rank per epoch; with `even`, up to one row less per worker."""
        return len(self._order.share(self.config.rank, self.config.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, which has its own order. Call it before the loader starts its workers."""
        self.epoch, self._rows_done, self._is_resumed = epoch, 0, False

    def state_dict(self) -> FeedState:
        """This consumer's position in the epoch, after the last row that it yielded."""
        consumer = self._consumer()
        return {
            "epoch": self.epoch,
            "rows_done": self._rows_done if self._counted_for == consumer else 0,
            "consumer": consumer.number,
            "consumers": consumer.total,
            "choice": self._shards.fingerprint,
            "rows": self._order.num_rows,
            "seed": self.config.seed,
            "shuffle": self.config.shuffle,
            "mix_shards": self.config.mix_shards,
            "even": self.config.even,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. Raises FeedError if the rows would come in a different order."""
        if not isinstance(state, Mapping) or not FeedState.__required_keys__ <= state.keys():
            raise FeedError("this is not a checkpoint of a PairDataset")
        current = self.state_dict()
        if (state["consumer"], state["consumers"]) != self._consumer():
            raise FeedError(
                f"the checkpoint belongs to consumer {state['consumer']} of {state['consumers']}, "
                f"not to {current['consumer']} of {current['consumers']}: use as many ranks and workers as before"
            )
        for name, value in current.items():
            if name not in ("epoch", "rows_done") and state[name] != value:
                label = "subset" if name == "choice" else name
                raise FeedError(f"the checkpoint belongs to another run: {label} was {state[name]!r}, is {value!r}")
        self.epoch, self._rows_done = state["epoch"], state["rows_done"]
        self._counted_for, self._is_resumed = self._consumer(), True

    def __iter__(self) -> Iterator[Sample]:
        self._count_for_this_consumer()
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="feed") as pool:
            tables = rebatch(read_ahead(self._tables()), self.config.batch_size or _UNBATCHED_ROWS)
            for table, pictures in self._with_pictures(pool, tables):
                yield from self._samples(self._columns(table, pictures), table.num_rows)
        self._rows_done = 0

    def _count_for_this_consumer(self) -> None:
        """Start a worker at its own first row: its copy of the loader's dataset may already have been read from."""
        if self._counted_for == self._consumer():
            return
        if self._is_resumed:
            raise FeedError(
                "a checkpoint was loaded outside of the loader's workers; with workers use torchdata's "
                "StatefulDataLoader, and its own state_dict"
            )
        self._rows_done, self._counted_for = 0, self._consumer()

    def _samples(self, columns: Sample, num_rows: int) -> Iterator[Sample]:
        """One batch, or its rows one by one. Rows count as done when they are yielded."""
        if self.config.batch_size is not None:
            self._rows_done += num_rows
            yield {name: stack(values) for name, values in columns.items()}
            return
        for row in range(num_rows):
            self._rows_done += 1
            yield {name: item(values, row) for name, values in columns.items()}

    def _tables(self) -> Iterator[pa.Table]:
        """The rows that this consumer has not received yet, in order, one window of shards at a time."""
        share = self._order.share(*self._consumer())[self._rows_done :]
        for window in self._order.windows(self.epoch, share):
            yield self._read_window(window)

    def _read_window(self, window: Window) -> pa.Table:
        columns = {"uid", *self.config.columns} - {IMAGE}
        columns |= set(STORED.names) if IMAGE in self.config.columns else set()
        tables, rows, start = [], [], 0
        threads = self.config.threads if self._shards.chunk.store.remote else min(self.config.threads, _LOCAL_READERS)
        with ThreadPoolExecutor(threads, thread_name_prefix="feed-read") as readers:
            read = partial(self._shards.read, columns=frozenset(columns))
            for table, selected in readers.map(read, window.shards.tolist()):
                tables.append(table)
                rows.append(selected + start)
                start += table.num_rows
        order = self._order.shuffled(self.epoch, window, np.concatenate(rows))[window.rows]
        return pa.concat_tables(tables).take(pa.array(order))  # a single copy of the selected rows, in order

    def _with_pictures(
        self, pool: ThreadPoolExecutor, tables: Iterator[pa.Table]
    ) -> Iterator[tuple[pa.Table, list[Future[Any]]]]:
        """Each table with its pictures, while those of the next table are read and decoded."""
        waiting: deque[tuple[pa.Table, list[Future[Any]]]] = deque()
        for table in tables:
            columns = [table[name].to_pylist() for name in STORED.names] if IMAGE in self.config.columns else []
            waiting.append((table, [pool.submit(self._picture, *row) for row in zip(*columns, strict=True)]))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _picture(self, tar: str | None, offset: int, length: int) -> Any:
        if tar is None:
            raise FeedError(
                "a selected row has no stored picture (images.store): select without such rows, or feed no `image`"
            )
        body = self._shards.picture(tar, offset, length)
        if self._transform is None:
            return body
        return self._transform(Image.fromarray(_PROCESSOR.pixels(body)))

    def _columns(self, table: pa.Table, pictures: Sequence[Future[Any]]) -> Sample:
        """The values of some rows by column: a tensor (rows, ...) or a list."""
        found: Sample = {}
        for name in dict.fromkeys(("uid", *self.config.columns)):
            if name == IMAGE:
                found[name] = [picture.result() for picture in pictures]
            elif name in ("caption", "caption_clean") and self._tokenizer is not None:
                found[name] = self._tokenizer([text or "" for text in table[name].to_pylist()])
            else:
                found[name] = values_of(table[name].combine_chunks())
        return found

    def _consumer(self) -> _Consumer:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        return _Consumer(self.config.rank * workers + worker_id, self.config.world_size * workers)
