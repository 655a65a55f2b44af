"""How far work is: counters inside a worker's shards, cheap to add to and safe to read, and the parts of a step."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class WorkCounts:
    """One worker's counters, or the sum of several workers'. All but the open ones only grow."""

    finished_rows: int = 0
    """Input rows of the shards that have left the stage."""
    open_rows: int = 0
    """Input rows done in shards that are still in the stage, estimated from the items that are done."""
    in_flight: int = 0
    """Requests that wait for a server now."""
    items: int = 0
    """Pictures that the stage has dealt with: downloaded, read or encoded, or given up."""
    good_items: int = 0
    """Of these, pictures that were obtained."""
    num_bytes: int = 0
    """Bytes fetched or read."""

    @property
    def rows(self) -> int:
        """Input rows that the stage has done."""
        return self.finished_rows + self.open_rows

    def __add__(self, other: "WorkCounts") -> "WorkCounts":
        return WorkCounts(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    def retired(self) -> "WorkCounts":
        """What remains of a worker that is gone: its open shards are done again elsewhere."""
        return WorkCounts(self.finished_rows, 0, 0, self.items, self.good_items, self.num_bytes)


_NAMES = [field.name for field in fields(WorkCounts)]


class WorkProgress:
    """The counters of one worker, which several threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[ShardProgress] = set()
        self._finished = WorkCounts()
        self.in_flight: Callable[[], int] = lambda: 0
        """Set by a stage that makes requests."""

    @contextmanager
    def shard(self, rows: int) -> Iterator["ShardProgress"]:
        """Around the work on one shard of so many input rows. A shard that raises adds no rows."""
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
        """The state now."""
        with self._lock:
            return sum((shard.counts(shard.open_rows) for shard in self._open), self._finished) + WorkCounts(
                in_flight=self.in_flight()
            )


class ShardProgress:
    """One shard's part of the counters."""

    def __init__(self, lock: threading.Lock, rows: int) -> None:
        self._lock = lock
        self._rows = rows
        self._expected = self._items = self._good_items = self._num_bytes = 0

    def expect(self, items: int) -> None:
        """How many items the shard has to be done."""
        self._expected = items

    def done(self, items: int = 1, good_items: int = 1, num_bytes: int = 0) -> None:
        """Some items have ended, well or not."""
        with self._lock:
            self._items += items
            self._good_items += good_items
            self._num_bytes += num_bytes

    @property
    def open_rows(self) -> int:
        """Rows that the items done so far amount to."""
        return min(self._rows, self._rows * self._items // self._expected) if self._expected else 0

    def counts(self, open_rows: int) -> WorkCounts:
        """The shard's part, with so many open rows. Call it with the lock held."""
        return WorkCounts(0, open_rows, 0, self._items, self._good_items, self._num_bytes)


OnStep = Callable[[str, int, int], None]
"""Takes the name of a step, how many of its equal parts are done, and how many there are."""


def ignore_step(name: str, done: int, total: int) -> None:
    """For callers that do not want to know."""


@dataclass
class Steps:
    """Which step the parts belong to that are being done."""

    on_step: OnStep = ignore_step
    name: str = ""

    def part(self, done: int, total: int) -> None:
        """Another part of the current step is done."""
        self.on_step(self.name, done, total)


def unwatched() -> ShardProgress:
    """For callers that nobody asks how far they are."""
    return ShardProgress(threading.Lock(), 0)
