"""A torch dataset over the shards: pairs for training, each once per epoch, over all ranks and workers.

The order of an epoch: shards in random order by seed and epoch, and the rows of every few neighbouring shards mixed.
Each consumer (a worker of a rank) takes an equal stretch of that order, so no pair comes twice and none is missing, and
the number of rows that it has had is all that a checkpoint needs.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.feed.shards import FeedShards
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.jobs import ImagesConfig
from pairmill.schemas.pairs import STORED
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config

IMAGE = "image"
"""Among the columns: no column of the files, but what the places there lead to."""

_ROWS_AT_ONCE = 256
_LOCAL_READERS = 2
"""Arrow has threads of its own; more of ours only wait for each other."""

Sample = dict[str, Any]


class FeedError(PairmillError, ValueError):
    """The dataset cannot be fed as asked, or a checkpoint is of another run; the message says why."""


@dataclass(frozen=True)
class FeedConfig:
    """What is fed, and in which order."""

    dataset: str
    """Output folder of a build or embed, local or s3://."""
    subset: str | None = None
    """None: all kept rows."""
    columns: Sequence[str] = (IMAGE, "caption_clean")
    """`image`, and columns of `pairs/` and `columns/`; `uid` comes along. Without `image` no picture is touched."""
    shuffle: bool = True
    seed: int = 0
    mix_shards: int = 4
    """Neighbours whose rows are mixed; in memory at once are their columns, and the next ones', but no pictures."""
    batch_size: int | None = None
    """Rows per item, columns stacked. None: one row per item."""
    even: bool = False
    """The same number of rows for every consumer: the few that do not divide are left out of this epoch."""
    threads: int = 4
    """Read and decode pictures ahead, in each worker."""
    rank: int = 0
    world_size: int = 1
    s3: S3Config = FROM_ENVIRONMENT
    """How the bucket of the dataset is reached, where the environment does not say it all."""


class PairDataset(IterableDataset[Sample]):
    """Dicts of `uid` and each column: strings, numbers, embeddings as float16 tensors (dim,).

    With `batch_size`, numbers and embeddings are tensors of (rows, ...), the rest lists. Null is NaN in numbers (a
    batch of integers with a null is one of floats) and embeddings, else None. `transform` makes of a PIL picture what
    `image` is; without it, that is the stored bytes.
    `tokenizer`, such as open_clip's, makes of a list of captions a tensor (rows, length); without it they are strings.
    Raises FeedError for what is not there. A loop that was left goes on where it was; `set_epoch` begins anew.
    """

    def __init__(
        self,
        config: FeedConfig,
        transform: Callable[[Image.Image], Any] | None = None,
        tokenizer: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> None:
        if not 0 <= config.rank < config.world_size:
            raise FeedError(f"rank {config.rank} of a world of {config.world_size}")
        if min(config.mix_shards, config.threads, 1 if config.batch_size is None else config.batch_size) < 1:
            raise FeedError("batch_size, mix_shards and threads are 1 or more")
        self.config = config
        self.epoch = 0
        self._transform = transform
        self._tokenizer = tokenizer
        self._rows_done = 0
        self._place_of = (0, 1)
        """The consumer whose rows `_rows_done` counts, and of how many."""
        self._is_resumed = False
        self._shards = FeedShards.of(Store(config.dataset, config.s3), config.subset)
        if unknown := sorted({*config.columns} - {IMAGE, *self._shards.schema.names}):
            raise FeedError(f"{config.dataset} has no column {unknown[0]!r}")
        if IMAGE in config.columns and not self._shards.has_pictures:
            raise FeedError(f"{config.dataset} has no stored pictures that one range read each would give")

    @property
    def num_rows(self) -> int:
        """Of this rank, in an epoch (with `even`, up to a few less per worker)."""
        first, last = self._stretch(self.config.rank, self.config.world_size)
        return last - first

    def set_epoch(self, epoch: int) -> None:
        """Another order, from its first row. Call it before each epoch, before the loader starts its workers."""
        self.epoch, self._rows_done, self._is_resumed = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """The place of this consumer in the epoch: after what was handed out."""
        consumer, consumers = self._consumer()
        rows_done = self._rows_done if self._place_of == (consumer, consumers) else 0
        state = {"epoch": self.epoch, "rows_done": rows_done, "consumer": consumer, "consumers": consumers}
        return state | self._order_facts()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises FeedError where the rows would come in another order."""
        if not isinstance(state, Mapping) or not {"epoch", "rows_done", "consumer", "consumers"} <= state.keys():
            raise FeedError("this is no checkpoint of a PairDataset")
        for name, value in self._order_facts().items():
            if state.get(name) != value:
                raise FeedError(f"the checkpoint is of another run: {name} was {state.get(name)!r}, is {value!r}")
        consumer, consumers = self._consumer()
        if (state["consumer"], state["consumers"]) != (consumer, consumers):
            raise FeedError(
                f"the checkpoint is of consumer {state['consumer']} of {state['consumers']}, "
                f"not of {consumer} of {consumers}: keep the numbers of ranks and workers"
            )
        self.epoch, self._rows_done = state["epoch"], state["rows_done"]
        self._place_of, self._is_resumed = (consumer, consumers), True

    def __iter__(self) -> Iterator[Sample]:
        size = self.config.batch_size
        if self._place_of != self._consumer():  # a worker inherits the loader's copy, which may have been looked into
            if self._is_resumed:
                raise FeedError(
                    "a checkpoint was loaded outside of the loader's workers; with workers use torchdata's "
                    "StatefulDataLoader, and its own state_dict"
                )
            self._rows_done, self._place_of = 0, self._consumer()
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="feed") as pool:
            for table, pictures in self._ahead(pool, _rechunked(_one_ahead(self._tables()), size or _ROWS_AT_ONCE)):
                columns = self._columns(table, pictures)
                if size is None:
                    for row in range(table.num_rows):
                        self._rows_done += 1
                        yield {name: _item(values, row) for name, values in columns.items()}
                else:
                    self._rows_done += table.num_rows
                    yield {name: _stacked(values) for name, values in columns.items()}
        self._rows_done = 0

    def _ahead(
        self, pool: ThreadPoolExecutor, tables: Iterator[pa.Table]
    ) -> Iterator[tuple[pa.Table, list[Future[Any]]]]:
        """Each table with its pictures, while those of the next are read and decoded."""
        waiting: deque[tuple[pa.Table, list[Future[Any]]]] = deque()
        for table in tables:
            places = [table[name].to_pylist() for name in STORED.names] if IMAGE in self.config.columns else []
            waiting.append((table, [pool.submit(self._picture, *place) for place in zip(*places, strict=True)]))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting

    def _tables(self) -> Iterator[pa.Table]:
        """The rows of this consumer that are still to come, in order, some shards at a time."""
        first, last = self._stretch(*self._consumer())
        first += self._rows_done
        shards = np.flatnonzero(self._shards.counts)  # shards that came after the choice change nothing
        if self.config.shuffle:
            shards = self._generator(-1).permutation(shards)
        start = 0
        for number in range(0, len(shards), self.config.mix_shards):
            mixed = shards[number : number + self.config.mix_shards]
            rows = int(self._shards.counts[mixed].sum())
            low, high = max(first - start, 0), min(last - start, rows)
            start += rows
            if low < high:
                yield self._mixed(number, mixed).slice(low, high - low)

    def _mixed(self, number: int, shards: npt.NDArray[np.int64]) -> pa.Table:
        """All chosen rows of neighbouring shards, in the epoch's order."""
        columns = {"uid", *self.config.columns} - {IMAGE}
        columns |= set(STORED.names) if IMAGE in self.config.columns else set()
        tables, rows, start = [], [], 0
        threads = self.config.threads if self._shards.chunk.store.remote else min(self.config.threads, _LOCAL_READERS)
        with ThreadPoolExecutor(threads, thread_name_prefix="feed-read") as readers:
            for table, chosen in readers.map(partial(self._shards.read, columns=frozenset(columns)), shards.tolist()):
                tables.append(table)
                rows.append(chosen + start)
                start += table.num_rows
        order = np.concatenate(rows)
        if self.config.shuffle:
            order = self._generator(number).permutation(order)
        return pa.concat_tables(tables).take(pa.array(order))  # one copy for the choice and the order

    def _generator(self, number: int) -> np.random.Generator:
        """Of one decision of an epoch's order; `number` is the window's, -1 for the order of the shards."""
        return np.random.default_rng([self.config.seed % (1 << 63), self.epoch, number + 1])

    def _columns(self, table: pa.Table, pictures: Sequence[Future[Any]]) -> dict[str, Any]:
        """Per wanted column the values of some rows: a tensor (rows, ...) or a list."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys(("uid", *self.config.columns)):
            if name == IMAGE:
                found[name] = [picture.result() for picture in pictures]
            elif name in ("caption", "caption_clean") and self._tokenizer is not None:
                found[name] = self._tokenizer([text or "" for text in table[name].to_pylist()])
            else:
                found[name] = _values(table[name].combine_chunks())
        return found

    def _picture(self, tar: str | None, offset: int, length: int) -> Any:
        if tar is None:
            raise FeedError(
                "a chosen row has no stored picture (images.store): choose without it, or leave `image` out"
            )
        body = self._shards.picture(tar, offset, length)
        if self._transform is None:
            return body
        return self._transform(Image.fromarray(_PROCESSOR.pixels(body)))

    def _stretch(self, consumer: int, consumers: int) -> tuple[int, int]:
        """[first, last) of the epoch's order: stretches differ by one row at most, by none if `even`."""
        total = int(self._shards.counts.sum())
        if self.config.even:
            return consumer * (total // consumers), (consumer + 1) * (total // consumers)
        return consumer * total // consumers, (consumer + 1) * total // consumers

    def _consumer(self) -> tuple[int, int]:
        """(number, of how many): each worker of each rank is one."""
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        return self.config.rank * workers + worker_id, self.config.world_size * workers

    def _order_facts(self) -> dict[str, Any]:
        config = self.config
        return {
            "choice": self._shards.fingerprint,
            "rows": int(self._shards.counts.sum()),
            "seed": config.seed,
            "shuffle": config.shuffle,
            "mix_shards": config.mix_shards,
            "even": config.even,
        }


_PROCESSOR = ImageProcessor(ImagesConfig())


def _one_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; the next one is being read while one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed-ahead") as reader:
        pending = reader.submit(next, tables, None)
        while (table := pending.result()) is not None:
            pending = reader.submit(next, tables, None)
            yield table


def _rechunked(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in the same order, `size` at a time; the last table has what is left."""
    waiting: deque[pa.Table] = deque()
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows < size:
            continue
        whole = pa.concat_tables(waiting)
        full = rows - rows % size
        for start in range(0, full, size):
            yield whole.slice(start, size)
        waiting, rows = deque([whole.slice(full)]), rows - full
    if rows:
        yield pa.concat_tables(waiting)


def _values(array: pa.Array) -> Any:
    """(rows,) of numbers or (rows, dim) of embeddings as a tensor; else a list."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        some = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)  # those that are not null
        if not array.null_count:
            return torch.from_numpy(some.copy())
        vectors = np.full((len(array), kind.list_size), np.nan, some.dtype)
        vectors[array.is_valid().to_numpy(zero_copy_only=False)] = some
        return torch.from_numpy(vectors)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):  # integers with a null among them become floats
        return torch.from_numpy(array.to_numpy(zero_copy_only=False).copy())
    return array.to_pylist()


def _item(values: Any, row: int) -> Any:
    value = values[row]
    return value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def _stacked(values: Any) -> Any:
    if isinstance(values, list) and values and all(isinstance(value, torch.Tensor) for value in values):
        return torch.stack(values)
    return values
