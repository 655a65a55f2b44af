"""Determines the order of the rows in an epoch, and which rows each consumer gets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_SHARD_ORDER = -1
"""Used in place of a window's number for the generator that permutes the shards."""


@dataclass(frozen=True)
class Window:
    """Shards whose rows are shuffled together, and the slice of their shuffled rows that a consumer gets."""

    number: int
    shards: Indices
    rows: slice


@dataclass(frozen=True)
class Batches:
    """Cuts rows into batches; single rows are batches of one."""

    size: int = 1
    drop_last: bool = False
    """Leave out the last batch if it is short."""

    def count(self, rows: int) -> int:
        """Number of batches in this many rows."""
        return rows // self.size if self.drop_last else -(-rows // self.size)


@dataclass(frozen=True, eq=False)
class Shares:
    """The positions of the rows of an epoch, divided among consumers.

    A consumer is one worker of one rank. Each consumer gets a contiguous range of the epoch's order, so no row is
    repeated or missing, and a checkpoint needs only the number of rows that a consumer has received. Without batches,
    the lengths of the ranges differ by at most one row.
    """

    even: bool

    @property
    def num_rows(self) -> int:
        """Number of rows in the epoch."""
        raise NotImplementedError

    def share(self, consumer: int, consumers: int) -> range:
        """A consumer's positions in the order. Lengths differ by at most one row; with `even`, they are equal."""
        if self.even:
            length = self.num_rows // consumers
            return range(consumer * length, (consumer + 1) * length)
        return range(consumer * self.num_rows // consumers, (consumer + 1) * self.num_rows // consumers)

    def worker_share(self, rank: range, worker: int, workers: int, batches: "Batches") -> range:
        """Positions of one of a rank's workers. Workers get whole batches, so only the rank's last batch can be
        short."""
        first, last = (number * batches.count(len(rank)) // workers for number in (worker, worker + 1))
        return rank[first * batches.size : last * batches.size]


@dataclass(frozen=True, eq=False)
class EpochOrder(Shares):
    """Shards in random order, and the rows of every `mix_shards` consecutive shards shuffled together."""

    counts: Indices
    """(shards,): number of selected rows."""
    shuffle: bool
    seed: int
    mix_shards: int

    @property
    def num_rows(self) -> int:
        """Number of rows in the epoch."""
        return int(self.counts.sum())

    def windows(self, epoch: int, share: range) -> Iterator[Window]:
        """The windows that contain rows of the share, in order."""
        shards = np.flatnonzero(self.counts)  # skips shards newer than a subset: they must not change its order
        if self.shuffle:
            shards = self._generator(epoch, _SHARD_ORDER).permutation(shards)
        start = 0
        for number in range(0, len(shards), self.mix_shards):
            window = shards[number : number + self.mix_shards]
            rows = int(self.counts[window].sum())
            low, high = max(share.start - start, 0), min(share.stop - start, rows)
            start += rows
            if low < high:
                yield Window(number, window, slice(low, high))

    def shuffled(self, epoch: int, window: Window, rows: Indices) -> Indices:
        """The rows of a window in the order of the epoch."""
        return self._generator(epoch, window.number).permutation(rows) if self.shuffle else rows

    def _generator(self, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % (1 << 63), epoch, number + 1])
