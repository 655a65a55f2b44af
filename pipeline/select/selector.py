"""Runs the steps of a select job. For each step, scans collect what must be known about all rows, and Selector merges
the results."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import NOT_DROPPED, DropStep
from pairmill.pipeline.select.duplicates import DUPLICATE_GROUP, largest, merge_duplicates, split_by_chunk
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import AtLeast, Filter, IsKept, NotDuplicate, RowIndices, Where
from pairmill.pipeline.select.keys import score_of
from pairmill.pipeline.select.near_duplicates import BandKeys, band_masks, greedy_clusters, near_pairs
from pairmill.pipeline.select.order import HIGHEST, LOWEST, ORDER_KEY, Order, OrderKey, OrderKeys
from pairmill.pipeline.select.outputs import DEDUP_KEY, Array, DedupKeys, KeysWithin, NoOutput, SampledKeys, ScanOutput
from pairmill.pipeline.select.scan import peek, scan
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.pipeline.select.uid_file import UidFile, UidIn
from pairmill.schemas.subset import Dedup, Sample, SelectStep, Top

PARTITION_ROWS = 2_000_000
SAMPLED_SHARDS = 64
"""Keys are sampled from at least this many evenly spread shards, if there are that many."""
SAMPLED_ROWS = 200_000
"""With this many sampled keys, the window around a quantile has a few percent of the rows."""
WINDOW_SIGMAS = 20.0
"""Half the width of that window, in standard errors of a random sample. Rows of a shard may resemble each other, so the
sample tells less than a random one of the same size."""

KEPT_STEP, UID_STEP = 0, 1
"""Numbers of the two steps that every job begins with: keep only kept rows, then one row per uid. The job's own steps
start at 2."""


@dataclass
class Selector:
    """The state between steps: which step dropped each row, and the filters that the next scan will apply."""

    tasks: Tasks
    chunks: Sequence[Chunk]
    on_step: Callable[[int], None]
    """Called with a step's number before it runs."""
    drop_step: list[Handle[DropStep] | None]
    """For each chunk. None before the first scan: no row has been dropped."""
    filters: list[Filter] = field(default_factory=list)
    """Filters that are not applied yet, in the order of their steps."""
    duplicates: list[list[Handle[RowIndices] | RowIndices]] = field(default_factory=list)
    """For each chunk, the rows that the pending NotDuplicate filter will drop."""
    counts: Counter[int] = field(default_factory=Counter)
    """Step -> number of rows dropped so far; NOT_DROPPED -> number of remaining rows."""
    thresholds: dict[int, float | None] = field(default_factory=dict)
    """Step -> the lowest score that stays."""
    clusters: dict[int, Array] = field(default_factory=dict)
    """Step -> its largest groups, an array of shape (groups,) and dtype DUPLICATE_GROUP."""

    @classmethod
    def start(
        cls, tasks: Tasks, chunks: Sequence[Chunk], on_step: Callable[[int], None] = lambda number: None
    ) -> "Selector":
        """A selector that has not dropped any row."""
        return cls(tasks, chunks, on_step, [None] * len(chunks), duplicates=[[] for _ in chunks])

    def run(self, only_kept: bool, steps: Sequence[SelectStep], uid_files: Mapping[str, UidFile] | None = None) -> None:
        """Run all steps; afterwards `drop_step` and `counts` are final. `uid_files`: those that `uids` steps name."""
        if only_kept:
            self.filters.append(IsKept(KEPT_STEP))
        self.on_step(UID_STEP)
        self._dedup(UID_STEP, Dedup(by="uid"))
        for number, step in enumerate(steps, UID_STEP + 1):
            self.on_step(number)
            if step.where is not None:
                self.filters.append(Where(number, Expression(step.where)))
            elif step.top is not None:
                self._top(number, Order(step.top.by), step.top)
            elif step.sample is not None:
                self._top(number, Order(None, step.sample.seed), step.sample)
            elif step.dedup is not None:
                self._dedup(number, step.dedup)
            elif step.uids is not None:
                self.filters.append(UidIn(number, (uid_files or {})[step.uids]))
        self._scan(NoOutput())

    @property
    def num_rows(self) -> int:
        """Rows of the dataset, dropped ones included."""
        return sum(chunk.num_rows for chunk in self.chunks)

    @property
    def chunk_starts(self) -> list[int]:
        """Index of the first row of each chunk."""
        return [chunk.first_row_index for chunk in self.chunks]

    def _scan(self, output: ScanOutput) -> list[list[Handle[Array]]]:
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

    def _scan_sorted(self, output: ScanOutput) -> list[Array]:
        """Scan, and fetch the output of all chunks, each array sorted. Only for small outputs."""
        results = self._scan(output)
        columns = zip(*results, strict=True) if results else iter([[] for _ in output.dtypes])
        return [
            np.sort(np.concatenate([np.zeros(0, dtype), *self.tasks.get(handles)]))
            for dtype, handles in zip(output.dtypes, columns, strict=True)
        ]

    def _top(self, step: int, order: Order, share: Top | Sample) -> None:
        """Find the key of the last row to keep. A sample of the keys gives a window that almost surely contains it; all
        keys within the window then determine it exactly (Floyd and Rivest 1975, "Expected time bounds for
        selection")."""
        sampled, remaining = self._sample(order)
        to_keep, sigmas = share.rows_to_keep(remaining), WINDOW_SIGMAS
        while True:
            within, above = self._scan_sorted(_window(order, sampled, to_keep / max(1, remaining), sigmas))
            remaining = self.counts[NOT_DROPPED]  # exactly, from now on
            to_keep = share.rows_to_keep(remaining)
            if to_keep == remaining:
                return
            if not to_keep:
                self.filters.append(AtLeast(step, order, HIGHEST))
                return
            from_window = to_keep - int(above.sum())
            if 0 < from_window <= len(within):
                break
            sigmas *= 4  # about once in a million jobs
        last = OrderKey(*within[-from_window].item())
        self.filters.append(AtLeast(step, order, last))
        self.thresholds[step] = score_of(last.rank, last.low_bits) if order.by else None

    def _sample(self, order: Order) -> tuple[Array, int]:
        """(sorted keys of a sample of the remaining rows, the estimated number of remaining rows)."""
        shards = sum(len(chunk.shards) for chunk in self.chunks)
        for every in (max(1, shards // SAMPLED_SHARDS), 1):
            output = SampledKeys(order, SAMPLED_ROWS * every / max(1, self.num_rows))
            calls = [
                (chunk, drop_step, self.filters, output, every, *duplicates)
                for chunk, drop_step, duplicates in zip(self.chunks, self.drop_step, self.duplicates, strict=True)
            ]
            results = self.tasks.map_split(peek, calls, outputs=3)
            seen, remaining = (sum(self.tasks.get([result[index] for result in results])) for index in (0, 1))
            keys = np.concatenate([np.zeros(0, ORDER_KEY), *self.tasks.get([result[2] for result in results])])
            if len(keys):
                break  # otherwise, all the remaining rows may be in other shards
        return np.sort(keys), round(remaining * self.num_rows / max(1, seen))

    def _dedup(self, number: int, step: Dedup) -> None:
        groups = self._exact_duplicates(number, step)
        if not step.distance:
            candidates = self.tasks.get(self.tasks.map(largest, [(each,) for each in groups]))
            self.clusters[number] = largest(np.concatenate([np.zeros(0, DUPLICATE_GROUP), *candidates]))
            return
        exact = np.concatenate([np.zeros(0, DUPLICATE_GROUP), *self.tasks.get(groups)])
        dropped, clusters = greedy_clusters(self._near_pairs(step), exact)
        alone = exact[~np.isin(exact["row_index"], np.concatenate([dropped, clusters["row_index"]]))]
        self.clusters[number] = largest(np.concatenate([clusters, alone]))
        self.filters.append(NotDuplicate(number))
        self.duplicates = [[rows] for rows in split_by_chunk(dropped, self.chunk_starts)]

    def _exact_duplicates(self, number: int, step: Dedup) -> list[Handle[Array]]:
        """Add a filter that drops exact duplicates. Returns handles of the DUPLICATE_GROUPs."""
        groups: list[Handle[Array]] = []
        duplicates: list[list[Handle[RowIndices] | RowIndices]] = [[] for _ in self.chunks]
        for keys in self._partitions(step):
            parts = self._scan(keys)
            calls = [(self.chunk_starts, *(part[index] for part in parts)) for index in range(len(keys.dtypes))]
            for group, *dropped in self.tasks.map_split(merge_duplicates, calls, outputs=1 + len(self.chunks)):
                groups.append(group)
                for of_chunk, rows in zip(duplicates, dropped, strict=True):
                    of_chunk.append(rows)
        self.filters.append(NotDuplicate(number))
        self.duplicates = duplicates
        return groups

    def _near_pairs(self, step: Dedup) -> Array:
        """All NEAR_PAIRs of different hashes."""
        found: list[Array] = []
        for mask in band_masks(step.distance):
            for keys in self._partitions(step):
                parts = self._scan(BandKeys(keys, mask))
                calls = [(step.distance, mask, *(part[index] for part in parts)) for index in range(len(keys.dtypes))]
                found += self.tasks.get(self.tasks.map(near_pairs, calls))
        return np.concatenate(found)

    def _partitions(self, step: Dedup) -> list[DedupKeys]:
        """The partitions of the keys to collect in each scan, as many as fit into the memory of the tasks."""
        partitions = max(1, math.ceil(self.num_rows / PARTITION_ROWS))
        per_scan = max(1, int(partitions * self.tasks.memory_bytes // max(1, self.num_rows * DEDUP_KEY.itemsize)))
        return [
            DedupKeys(step.by, step.best, partitions, first, min(first + per_scan, partitions))
            for first in range(0, partitions, per_scan)
        ]


def _window(order: Order, sampled: OrderKeys, fraction: float, sigmas: float) -> KeysWithin:
    """The keys around the (1 - fraction) quantile. `sampled` is in ascending order."""
    size = len(sampled)
    margin = sigmas * math.sqrt(size * fraction * (1 - fraction)) + 1
    low, high = math.floor(size * (1 - fraction) - margin), math.ceil(size * (1 - fraction) + margin)
    lowest = LOWEST if low < 0 else OrderKey(*sampled[low].item())
    highest = HIGHEST if high >= size else OrderKey(*sampled[high].item())
    return KeysWithin(order, lowest, highest)
