"""Finds the row with a given uid. Datasets have no index of uids, so the uids are read shard by shard until it is
found."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.keys import key_halves


class UidFinder:
    """Finds uids, and remembers the first half of every uid that it has read: 8 bytes per row."""

    def __init__(self, num_shards: int, read: Callable[[int], pa.ChunkedArray]) -> None:
        """`read`: reads the uids of the shard at a position."""
        self._read = read
        self._halves: list[npt.NDArray[np.uint64] | None] = [None] * num_shards

    def find(self, uid: str) -> tuple[int, int] | None:
        """(position of the shard, row in the shard) of the first row with this uid (32 hex characters); None if there
        is none."""
        half = np.uint64(int(uid[:16], 16))
        for position in range(len(self._halves)):
            for row in np.flatnonzero(self._half(position) == half).tolist():
                if self._read(position)[row].as_py() == uid:
                    return position, row
        return None

    def _half(self, position: int) -> npt.NDArray[np.uint64]:
        known = self._halves[position]
        if known is None:
            known, _ = key_halves(self._read(position), "uid")
            self._halves[position] = known
        return known
