"""Keeps the state of a select job between its steps, and makes their passes over the dataset."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import DropStep
from pairmill.pipeline.select.filters import Filter, NotDuplicate, RowIndices
from pairmill.pipeline.select.outputs import Array, ScanOutput
from pairmill.pipeline.select.scan import peek, scan
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.pipeline.select.weights import Weighting


@dataclass
class Selector:
    """Which step dropped each row, and the filters that the next scan will apply."""

    tasks: Tasks
    chunks: Sequence[Chunk]
    on_step: Callable[[int], None]
    """Called with a step's number before it runs."""
    drop_step: list[Handle[DropStep] | None]
    """The step that dropped each row, one handle per chunk. None before the first scan: no row has been dropped."""
    filters: list[Filter] = field(default_factory=list)
    """Filters that have not been applied yet, in the order of their steps."""
    duplicates: list[list[Handle[RowIndices] | RowIndices]] = field(default_factory=list)
    """For each chunk, the rows that the pending NotDuplicate filter will drop."""
    counts: Counter[int] = field(default_factory=Counter)
    """Step -> number of rows dropped so far; NOT_DROPPED -> number of remaining rows."""
    balanced: int = 0
    """Number of `balance` steps that have run."""
    weighting: Weighting | None = None
    """The weights of the rows, if a step has assigned them. Later steps drop rows but do not change weights."""

    @classmethod
    def start(
        cls, tasks: Tasks, chunks: Sequence[Chunk], on_step: Callable[[int], None] = lambda number: None
    ) -> "Selector":
        """A selector that has not dropped any row."""
        return cls(tasks, chunks, on_step, [None] * len(chunks), duplicates=[[] for _ in chunks])

    @property
    def num_rows(self) -> int:
        """Number of rows of the dataset, including dropped ones."""
        return sum(chunk.num_rows for chunk in self.chunks)

    @property
    def chunk_starts(self) -> list[int]:
        """Index of the first row of each chunk."""
        return [chunk.first_row_index for chunk in self.chunks]

    def scan(self, output: ScanOutput) -> list[list[Handle[Array]]]:
        """Apply the pending filters. Returns the handles of the output's arrays for each chunk."""
        calls = [
            (chunk, drop_step, self.filters, output, *duplicates)
            for chunk, drop_step, duplicates in zip(self.chunks, self.drop_step, self.duplicates, strict=True)
        ]
        results = self.tasks.map_split(scan, calls, outputs=2 + len(output.dtypes))
        self.drop_step = [result[0] for result in results]
        self.counts = sum((Counter(counts) for counts in self.tasks.get([result[1] for result in results])), Counter())
        self.filters, self.duplicates = [], [[] for _ in self.chunks]
        return [result[2:] for result in results]

    def scan_sorted(self, output: ScanOutput) -> list[Array]:
        """Scan, and fetch each array of the output for all chunks, concatenated and sorted. Only for small outputs."""
        results = self.scan(output)
        columns = zip(*results, strict=True) if results else iter([[] for _ in output.dtypes])
        return [
            sorted_rows(np.concatenate([np.zeros(0, dtype), *self.tasks.get(handles)]))
            for dtype, handles in zip(output.dtypes, columns, strict=True)
        ]

    def peek(self, output: ScanOutput, every: int) -> list[list[Handle[Any]]]:
        """Like `scan`, but only for the shards whose number is a multiple of `every`, and without changing the state.

        Returns, for each chunk, the handles of the number of rows of these shards, the number of those that remain, and
        the output's arrays.
        """
        calls = [
            (chunk, drop_step, self.filters, output, every, *duplicates)
            for chunk, drop_step, duplicates in zip(self.chunks, self.drop_step, self.duplicates, strict=True)
        ]
        return self.tasks.map_split(peek, calls, outputs=2 + len(output.dtypes))

    def drop(self, number: int, dropped: Sequence[Sequence[Handle[RowIndices] | RowIndices]]) -> None:
        """Let the next scan drop rows. `dropped`: for each chunk, their row indices in any number of arrays.

        Scan before the next call of `drop`.
        """
        self.filters.append(NotDuplicate(number))
        self.duplicates = [list(rows) for rows in dropped]


def sorted_rows(array: Array) -> Array:
    """A sorted copy of an array. Structured arrays are sorted by their fields, in order; NumPy's own sort of them takes
    five times as long."""
    if array.dtype.names is None:
        return np.sort(array)
    return array[np.lexsort([array[name] for name in reversed(array.dtype.names)])]
