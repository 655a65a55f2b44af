"""Defines a PyTorch dataset over the shards. It yields every pair once per epoch across all ranks and workers, and
can resume."""

import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.mixture import is_mixture
from pairmill.pipeline.feed.batches import item, read_ahead, rebatch, stack, texts_of, values_of
from pairmill.pipeline.feed.checkpoint import check_checkpoint
from pairmill.pipeline.feed.config import IMAGE, FeedConfig, FeedError, FeedState
from pairmill.pipeline.feed.dataset_rows import DatasetRows, FeedRows
from pairmill.pipeline.feed.epoch_order import Batches, Shares
from pairmill.pipeline.feed.mixture_rows import MixtureRows
from pairmill.pipeline.feed.ranks import check_ranks, check_same_values, rank_of
from pairmill.pipeline.feed.shared_epoch import SharedEpoch
from pairmill.pipeline.feed.transforms import on_tensors
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.pairs import STORED

_UNBATCHED_ROWS = 256
"""Number of rows read and decoded together if each item is a single row."""
Sample: TypeAlias = dict[str, Any]
"""One row, or with `batch_size` one batch: column -> value."""


class _Consumer(NamedTuple):
    """One worker of one rank."""

    number: int
    total: int


class PairDataset(IterableDataset[Sample]):
    """Yields dicts of `uid` and each column: strings, numbers, embeddings as float16 tensors (dim,).

    With `batch_size`, numbers and embeddings are tensors (rows, ...), as are columns of other vectors of numbers
    (fixed-size lists), and other columns are lists. Null is NaN in numbers and vectors (a batch of integers with a null
    becomes float, or a list if some exceed 2^53), and None in other columns. `image` is the stored bytes, or the result
    of `transform` for the picture as a PIL image (see `FeedConfig.tensor_transforms`). Captions are strings. A
    `tokenizer`, such as open_clip's, turns a list of captions into a tensor (rows, length); with a tokenizer, no
    caption may be missing.

    A new loop continues where the last one stopped, and ends it: if the older loop is asked for another item, it raises
    FeedError. For two loops at the same time, create two datasets. In loader workers, which read ahead, a new loop
    starts from the first pair. `set_epoch` starts over, even in persistent workers. `len()` is this rank's items per
    epoch.

    With torch.distributed, `FeedConfig` must say which share of the rows this rank gets.

    Raises FeedError, SubsetError, CaptionChoiceError, UnfinishedPurgeError, and DamagedFileError for files that have
    changed.
    """

    def __init__(
        self,
        config: FeedConfig,
        transform: Callable[[Image.Image], Any] | None = None,
        tokenizer: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> None:
        self._rank = rank_of(config)
        if min(config.mix_shards, config.threads, 1 if config.batch_size is None else config.batch_size) < 1:
            raise FeedError("batch_size, mix_shards and threads must be 1 or more")
        if config.drop_last and config.batch_size is None:
            raise FeedError("drop_last needs a batch_size; for single rows, set drop_last in the loader")
        self.config = config
        self._transform = transform
        self._transform_pixels = on_tensors(transform) if transform and config.tensor_transforms else None
        self._tokenizer = tokenizer
        self._rows_done = 0
        """The next loop starts after these rows."""
        self._counted_for = _Consumer(0, 1)
        """The consumer that `_rows_done` belongs to."""
        self._loops, self._is_counting = 0, False
        """Number of loops that have begun, and whether the newest of them counts its rows in `_rows_done`."""
        self._is_over, self._is_epoch_set = False, False
        """Whether the last loop has ended after all rows, and whether `set_epoch` was called after it began."""
        self._is_resumed = False
        self._is_old_checkpoint = False
        self._next_epoch, self._times_seen = SharedEpoch(), 0
        """The epoch of the next loop, and the number of calls of `set_epoch` that this copy of the dataset has seen."""
        self._own_epoch = 0
        """The epoch of a worker's loop. `set_epoch` can request another one while the loop runs."""
        self._batches = Batches(config.batch_size or 1, config.drop_last)
        store = Store(os.fspath(config.dataset), config.s3)
        store.check_access()
        self._rows: FeedRows = (MixtureRows if is_mixture(store) else DatasetRows).open(store, config)
        if unknown := sorted({*config.columns} - {IMAGE, *self._rows.schema.names}):
            problem = self._rows.missing(unknown[0])
            raise FeedError(f"{config.dataset} has no column {unknown[0]!r}" + (f": {problem}" if problem else ""))
        embeddings = {f"text_embedding_{alias}" for choice in self._rows.choices for alias in choice.aliases}
        if replaced := sorted(embeddings & {*config.columns}):
            raise FeedError(f"{replaced[0]} belongs to the original captions, not to caption={config.caption!r}")
        if IMAGE in config.columns and not self._rows.has_pictures:
            raise FeedError(f"{config.dataset} has no stored pictures that can each be read with one range read")

        self._check_ranks()
        check_same_values(config, self.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        """The state for a loader's worker, which cannot tell whether torch.distributed was initialized meanwhile."""
        rank_of(self.config)
        return self.__dict__

    @property
    def epoch(self) -> int:
        """The current epoch. A loader that was given a checkpoint restores its epoch when its next loop begins."""
        return self._next_epoch.get()[0] if get_worker_info() is None else self._own_epoch

    @property
    def num_rows(self) -> int:
        """Number of this rank's rows per epoch, including those that `drop_last` leaves out."""
        return len(self._order.share(*self._rank))

    def __len__(self) -> int:
        return self._batches.count(self.num_rows)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop start this epoch, which has its own order. Call it in the trainer's process."""
        if not 0 <= (epoch := operator.index(epoch)) < 1 << 63:
            raise FeedError(f"epochs are counted from 0; there is no epoch {epoch}")
        self._next_epoch.set(epoch)
        self._is_epoch_set = True
        self._follow_set_epoch()
        self._check_ranks()

    def state_dict(self) -> FeedState:
        """This consumer's position in the epoch, after the last row that it yielded."""
        consumer = self._consumer()
        return {
            "epoch": self.epoch,
            "rows_done": self._rows_done if self._counted_for == consumer else 0,
            "is_over": self._is_over,
            "consumer": consumer.number,
            "consumers": consumer.total,
            "choice": self._rows.fingerprint,
            "rows": self._rows.num_selected,
            "seed": self.config.seed,
            "shuffle": self.config.shuffle,
            "mix_shards": self.config.mix_shards,
            "even": self.config.even,
            "batch_size": self.config.batch_size,
            "drop_last": self.config.drop_last,
            "captions": [each.column for choice in self._rows.choices for each in choice.written],
            "added": dict(self._rows.fingerprints),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. Raises FeedError if the rows would come in a different order."""
        check_checkpoint(state, self.state_dict(), self._rank.total)
        self._times_seen = self._next_epoch.get()[1]
        self._counted_for, self._is_resumed = self._consumer(), True
        self._is_old_checkpoint = "batch_size" not in state
        # A loader loads it only when its loop begins, after `set_epoch`. In workers, that epoch is for the loop after
        # this one. If the epoch of the checkpoint has ended, it is for this one.
        if self._is_set_after(state):
            self._start_after(0)
            self._is_old_checkpoint = False
            return
        if get_worker_info() is None or not self._times_seen:
            self._next_epoch.resume(state["epoch"])
            self._is_epoch_set = False
        self._own_epoch = state["epoch"]
        self._start_after(state["rows_done"])
        self._is_over = state.get("is_over", False)

    def _is_set_after(self, state: Mapping[str, Any]) -> bool:
        """Whether `set_epoch` was called for a loop after the epoch of this checkpoint, which has ended. If only its
        last row had been yielded, `set_epoch` for the same epoch means the rest of its loop, which has no rows. Workers
        cannot tell whether the others have finished too."""
        if get_worker_info() is not None or not self._is_epoch_set:
            return False
        is_another = self.epoch != state["epoch"]
        return bool(state.get("is_over")) or (is_another and state["rows_done"] >= len(self._share(state["epoch"])))

    def __iter__(self) -> Iterator[Sample]:
        self._follow_set_epoch()  # now, not at the first sample, because a loader can save a checkpoint before that
        self._check_ranks()
        self._count_for_this_consumer()
        return self._loop()

    def _loop(self) -> Iterator[Sample]:
        loop = self._loops = self._loops + 1
        self._is_counting, self._is_over, self._is_epoch_set = True, False, False
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="feed") as pool:
            tables = rebatch(read_ahead(self._tables()), self.config.batch_size or _UNBATCHED_ROWS)
            for table, pictures in self._with_pictures(pool, tables):
                yield from self._samples(loop, self._columns(table, pictures), table.num_rows)
        if loop == self._loops and self._is_counting:
            self._is_old_checkpoint = False
            # A loader may save a checkpoint when only some workers have finished. Finished workers must not start over.
            self._start_after(0 if get_worker_info() is None else len(self._share(self.epoch)))
            self._is_over = True

    def _follow_set_epoch(self) -> None:
        """Start over if `set_epoch` was called, perhaps in another process."""
        epoch, times = self._next_epoch.get()
        if times != self._times_seen:
            self._times_seen = times
            self._start_after(0)
            self._is_resumed, self._is_old_checkpoint = False, False
        if not self._is_resumed:
            self._own_epoch = epoch

    @property
    def _order(self) -> Shares:
        """The order of the current epoch."""
        return self._rows.order(self.epoch)

    def _check_ranks(self) -> None:
        check_ranks(self.config, self._batches, self._order.num_rows, self._rows.has_weights)

    def _count_for_this_consumer(self) -> None:
        """Make `_rows_done` count this consumer's rows. A worker reads ahead of its loader, from a copy of a dataset
        that may already have yielded rows. So a worker starts at its own first row, unless its loader gave it a
        checkpoint."""
        if self._counted_for == self._consumer():
            if get_worker_info() is not None and not self._is_resumed:
                self._start_after(0)
            self._is_resumed = False
            return
        if self._is_resumed:
            raise FeedError(
                "a checkpoint was loaded outside the loader's workers; with workers, use torchdata's "
                "StatefulDataLoader and its own state_dict"
            )
        self._start_after(0)
        self._counted_for = self._consumer()

    def _start_after(self, rows_done: int) -> None:
        """Make the next loop start after these rows, no matter how many the current loop still yields."""
        self._rows_done, self._is_counting, self._is_over = rows_done, False, False

    def _count(self, loop: int, num_rows: int) -> None:
        """Count the rows of a loop as done. Raises FeedError if a newer loop has begun, which yields these rows."""
        if loop != self._loops:
            raise FeedError(
                "this loop ended when a newer loop over the same PairDataset began, which continues where this one "
                "stopped; for two loops at the same time, create two PairDatasets"
            )
        if self._is_counting:
            self._rows_done += num_rows

    def _samples(self, loop: int, columns: Sample, num_rows: int) -> Iterator[Sample]:
        """One batch, or its rows one by one. Rows count as done when they are yielded."""
        if self.config.batch_size is not None:
            self._count(loop, num_rows)
            yield {name: stack(values) for name, values in columns.items()}
            return
        for row in range(num_rows):
            self._count(loop, 1)
            yield {name: item(values, row) for name, values in columns.items()}

    def _tables(self) -> Iterator[pa.Table]:
        """The rows that this consumer has not received yet, in order."""
        return self._rows.tables(self.epoch, self._share(self.epoch)[self._rows_done :])

    def _share(self, epoch: int) -> range:
        """This consumer's positions in the order of an epoch."""
        consumer, config, order = self._consumer(), self.config, self._rows.order(epoch)
        if self._is_old_checkpoint or (config.batch_size is None and not config.even):
            return order.share(*consumer)
        rank, workers = order.share(*self._rank), consumer.total // self._rank.total
        return order.worker_share(rank, consumer.number % workers, workers, self._batches)

    def _with_pictures(
        self, pool: ThreadPoolExecutor, tables: Iterator[pa.Table]
    ) -> Iterator[tuple[pa.Table, list[Future[Any]]]]:
        """Each table with its pictures, while the pictures of the next table are read and decoded."""
        waiting: deque[tuple[pa.Table, list[Future[Any]]]] = deque()
        for table in tables:
            columns = [table[name].to_pylist() for name in self._rows.image_columns if IMAGE in self.config.columns]
            waiting.append((table, [pool.submit(self._picture, *row) for row in zip(*columns, strict=True)]))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _picture(self, *values: object) -> Any:
        """The picture, transformed if there is a transform. `values`: the row's values of `image_columns`."""
        if values[self._rows.image_columns.index(STORED.names[0])] is None:
            raise FeedError(
                "a selected row has no stored picture (images.store): select a subset without such rows, or leave "
                "out the column `image`"
            )
        body = self._rows.picture(*values)
        if self._transform is None:
            return body
        pixels = _processor(self._rows.max_pixels).pixels(body)  # uint8 [height, width, 3]
        if self._transform_pixels is not None:
            return self._transform_pixels(pixels)
        return self._transform(Image.fromarray(pixels))

    def _columns(self, table: pa.Table, pictures: Sequence[Future[Any]]) -> Sample:
        """The rows of a table as a dict of columns, each a tensor (rows, ...) or a list."""
        found: Sample = {}
        for name in dict.fromkeys(("uid", *self.config.columns)):
            if name == IMAGE:
                found[name] = [picture.result() for picture in pictures]
            elif name in ("caption", "caption_clean") and self._tokenizer is not None:
                found[name] = self._tokenizer(texts_of(name, table[name].to_pylist()))
            else:
                found[name] = values_of(table[name].combine_chunks())
        return found

    def _consumer(self) -> _Consumer:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        return _Consumer(self._rank.number * workers + worker_id, self._rank.total * workers)


@lru_cache
def _processor(max_pixels: int) -> ImageProcessor:
    """The image processor of this process; it is not copied to workers."""
    return ImageProcessor(ImagesConfig(max_pixels=max_pixels))
