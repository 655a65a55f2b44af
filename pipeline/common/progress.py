"""Counts the progress of workers, in items of their shards, and of steps, in parts. Counters are thread-safe and cheap
to update."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class WorkCounts:
    """The counters of one worker, or their sum over several workers. All except `open_rows` and `in_flight` only
    grow."""

    finished_rows: int = 0
    """Input rows of the shards that have left the stage."""
    open_rows: int = 0
    """Finished input rows in shards that are still in the stage, estimated from finished items."""
    in_flight: int = 0
    """Requests that are waiting for a server."""
    items: int = 0
    """Pictures that the stage has finished: it downloaded, read, encoded or gave up on them."""
    good_items: int = 0
    """Finished pictures that were obtained."""
    num_bytes: int = 0
    """Bytes fetched or read."""

    @property
    def rows(self) -> int:
        """Input rows that the stage has finished."""
        return self.finished_rows + self.open_rows

    def __add__(self, other: "WorkCounts") -> "WorkCounts":
        return WorkCounts(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    def retired(self) -> "WorkCounts":
        """The counters to keep after a worker is gone. They exclude its open shards, which another worker will
        repeat."""
        return WorkCounts(self.finished_rows, 0, 0, self.items, self.good_items, self.num_bytes)


_NAMES = [field.name for field in fields(WorkCounts)]


class WorkProgress:
    """The counters of one worker. Several threads can update them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[ShardProgress] = set()
        self._finished = WorkCounts()
        self.in_flight: Callable[[], int] = lambda: 0
        """The number of requests in flight. A stage that makes requests sets this function."""

    @contextmanager
    def shard(self, rows: int) -> Iterator["ShardProgress"]:
        """Count the work that the block does on one shard with this many input rows. If the block raises, none of the
        rows are counted."""
        shard = ShardProgress(self._lock, rows)
        with self._lock:
            self._open.add(shard)
        finished_rows = 0
        try:
            yield shard
            finished_rows = rows
        finally:
            with self._lock:
                self._open.remove(shard)
                self._finished += WorkCounts(finished_rows) + shard.counts(open_rows=0)

    def counts(self) -> WorkCounts:
        """The current counters."""
        with self._lock:
            return sum((shard.counts(shard.open_rows) for shard in self._open), self._finished) + WorkCounts(
                in_flight=self.in_flight()
            )


class ShardProgress:
    """The progress of one shard."""

    def __init__(self, lock: threading.Lock, rows: int) -> None:
        self._lock = lock
        self._rows = rows
        self._expected = self._items = self._good_items = self._num_bytes = 0

    def expect(self, items: int) -> None:
        """Set the number of items in the shard."""
        self._expected = items

    def done(self, items: int = 1, good_items: int = 1, num_bytes: int = 0) -> None:
        """Record finished items, successful or not."""
        with self._lock:
            self._items += items
            self._good_items += good_items
            self._num_bytes += num_bytes

    @property
    def open_rows(self) -> int:
        """Estimated number of rows for the items finished so far."""
        return min(self._rows, self._rows * self._items // self._expected) if self._expected else 0

    def counts(self, open_rows: int) -> WorkCounts:
        """The shard's counters, with this many open rows. Call it with the lock held."""
        return WorkCounts(0, open_rows, 0, self._items, self._good_items, self._num_bytes)


OnStep = Callable[[str, int, int], None]
"""Receives the name of a step, the number of its finished parts, and the total number of parts. Parts have equal
size."""


def ignore_step(name: str, done: int, total: int) -> None:
    """Do nothing. The default for callers that show no progress."""


@dataclass
class Steps:
    """Reports the finished parts of the current step by its name."""

    on_step: OnStep = ignore_step
    name: str = ""

    def part(self, done: int, total: int) -> None:
        """Report a finished part of the current step."""
        self.on_step(self.name, done, total)


def unwatched() -> ShardProgress:
    """A ShardProgress whose counters nobody reads."""
    return ShardProgress(threading.Lock(), 0)
