"""Sorts any number of keys in bounded memory and removes duplicates."""

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from pairmill.pipeline.known.keys import Keys

RUN_KEYS = 1 << 23
"""Number of keys sorted in memory at a time: 64 MB."""
PARTS = 256
"""Number of key ranges. One range at a time is merged in memory: 64 MB for two billion keys, if they are hashes."""


class KeySorter:
    """Collects keys, then yields them in order. Sorted runs go to a scratch file, as in an external merge sort, and are
    merged range by range."""

    def __init__(self, scratch: IO[bytes]) -> None:
        self._scratch = scratch
        self._waiting: list[Keys] = []
        self._num_waiting = 0
        self._runs: list[tuple[int, Keys]] = []  # (byte offset of the run, start of each of its ranges)

    def add(self, keys: Keys) -> None:
        """Add keys [n]."""
        self._waiting.append(keys)
        self._num_waiting += len(keys)
        if self._num_waiting >= RUN_KEYS:
            self._write_run()

    def in_order(self) -> Iterator[Keys]:
        """The distinct keys in ascending order, in blocks."""
        if not self._runs:
            yield self._take_sorted()
            return
        self._write_run()
        for part in range(PARTS):
            pieces = [self._read(start, bounds[part], bounds[part + 1]) for start, bounds in self._runs]
            yield _sorted(pieces)

    def _write_run(self) -> None:
        keys = self._take_sorted()
        starts = np.searchsorted(keys, np.arange(PARTS, dtype=np.uint64) << np.uint64(56))
        start = self._scratch.seek(0, 2)
        self._scratch.write(keys.astype("<u8").data)
        self._runs.append((start, np.append(starts, len(keys)).astype(np.uint64)))

    def _take_sorted(self) -> Keys:
        keys, self._waiting, self._num_waiting = _sorted(self._waiting), [], 0
        return keys

    def _read(self, start: int, first: np.uint64, end: np.uint64) -> Keys:
        self._scratch.seek(start + 8 * int(first))
        return np.frombuffer(self._scratch.read(8 * int(end - first)), "<u8").astype(np.uint64)


def _sorted(parts: Sequence[Keys]) -> Keys:
    """The distinct keys, ascending. Like `np.unique`, with a third of its memory."""
    keys = np.concatenate([np.zeros(0, np.uint64), *parts])
    keys.sort()
    is_new = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    return keys if is_new.all() else keys[is_new]
