"""Keeps the rows whose uids have the lowest hashes: a sample that depends neither on shards nor on their order."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.keys import U64

_SPARE_ROWS = 100_000
"""How many rows beyond twice the limit are gathered before those with higher hashes are dropped."""


class LowestHashes:
    """At most `limit` labeled rows with their values. Memory is bounded by `limit`."""

    def __init__(self, limit: int) -> None:
        self.num_added = 0
        """Rows that were added, kept or not."""
        self._limit = limit
        self._parts: list[tuple[U64, pa.Array, npt.NDArray[Any]]] = []
        self._num_rows = 0

    def add(self, hashes: U64, labels: pa.Array, values: npt.NDArray[Any]) -> None:
        """Add rows: hashes of their uids [n], labels [n], and values [n, ...]."""
        self._parts.append((hashes, labels, values))
        self._num_rows += len(hashes)
        self.num_added += len(hashes)
        if self._num_rows > 2 * self._limit + _SPARE_ROWS:
            self.rows()

    def rows(self) -> tuple[U64, pa.Array, npt.NDArray[Any]]:
        """The kept rows in the order of their hashes. Call `add` at least once first."""
        hashes, values = (np.concatenate([part[index] for part in self._parts]) for index in (0, 2))
        labels = pa.concat_arrays([part[1] for part in self._parts])
        first = np.argsort(hashes, kind="stable")[: self._limit]
        self._parts = [(hashes[first], labels.take(pa.array(first)), values[first])]
        self._num_rows = len(first)
        return self._parts[0]

    def facts(self) -> list[str]:
        """A line that says how many rows were sampled; none if no row was left out."""
        if self.num_added <= self._limit:
            return []
        return [f"sampled {self._limit:,} of {self.num_added:,} labeled rows, by a hash of the uid"]
