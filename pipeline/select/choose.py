"""The steps of a choice, one after another: what each must know of all rows is gathered by scans and merged."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.subset import ALIVE
from pairmill.pipeline.select.duplicates import GROUP, by_chunk, largest, merge_duplicates
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import score_of
from pairmill.pipeline.select.near import Banded, band_masks, greedy_clusters, near_pairs
from pairmill.pipeline.select.scan import (
    KEYED,
    AtLeast,
    Filter,
    IsKept,
    Keys,
    NotAmong,
    Nothing,
    Order,
    SampledKeys,
    ScanOutput,
    Where,
    Window,
    scan,
)
from pairmill.pipeline.select.tasks import Tasks
from pairmill.schemas.subset import Dedup, Sample, SelectStep, Top

PARTITION_ROWS = 2_000_000
PICKED_ROWS = 200_000
"""Enough that the window around a quantile holds less than two hundredths of the rows."""
_SIGMAS = 5.0
_TOP = (2**64 - 1, 2**64 - 1)
"""No row's (rank, tie): the rank would be a NaN's."""

UID_STEP = 1
"""Number of the dedup by uid; 0 is the choice between kept rows and all pairs, a person's steps begin at 2."""


@dataclass
class Chooser:
    """A choice under way. Every row of every chunk has a fate; filters wait until the next scan applies them."""

    tasks: Tasks
    chunks: Sequence[Chunk]
    fates: list[Any]
    """A handle per chunk."""
    waiting: list[Filter] = field(default_factory=list)
    dropped: list[list[Any]] = field(default_factory=list)
    """Per chunk, handles of the places that a waiting NotAmong drops."""
    counts: Counter[int] = field(default_factory=Counter)
    """Step number -> rows that it dropped, as far as scans have come; ALIVE -> the others."""
    thresholds: dict[int, float | None] = field(default_factory=dict)
    clusters: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    """Step number -> the largest groups, GROUP."""

    @classmethod
    def of(cls, tasks: Tasks, chunks: Sequence[Chunk]) -> "Chooser":
        """All rows are alive."""
        return cls(tasks, chunks, [None] * len(chunks), dropped=[[] for _ in chunks])

    def run(self, only_kept: bool, steps: Sequence[SelectStep]) -> None:
        """All steps, and the fates of all rows at the end."""
        if only_kept:
            self.waiting.append(IsKept())
        self._dedup(UID_STEP, Dedup(by="uid"))
        for number, step in enumerate(steps, UID_STEP + 1):
            if step.where is not None:
                self.waiting.append(Where(number, Expression(step.where)))
            elif step.top is not None:
                self._top(number, Order(step.top.by), step.top)
            elif step.sample is not None:
                self._top(number, Order(None, step.sample.seed), step.sample)
            elif step.dedup is not None:
                self._dedup(number, step.dedup)
        self._scan(Nothing())

    def _scan(self, emission: ScanOutput) -> list[list[Any]]:
        """Apply what waits; returns the emission's handles, per chunk."""
        calls = [
            (chunk, fates, self.waiting, emission, *dropped)
            for chunk, fates, dropped in zip(self.chunks, self.fates, self.dropped, strict=True)
        ]
        results = self.tasks.map(scan, calls, outputs=2 + len(emission.dtypes))
        self.fates = [result[0] for result in results]
        self.counts = sum((Counter(counts) for counts in self.tasks.get([result[1] for result in results])), Counter())
        self.waiting, self.dropped = [], [[] for _ in self.chunks]
        return [result[2:] for result in results]

    def _top(self, number: int, order: Order, share: Top | Sample) -> None:
        """Find the key of the last row to keep: a random part of the keys gives a window that holds it, and the keys in
        the window, all of them, give it exactly (Floyd and Rivest 1975, "Expected time bounds for selection")."""
        num_rows = sum(chunk.num_rows for chunk in self.chunks)
        picked = self._gather(SampledKeys(order, PICKED_ROWS / max(1, num_rows)))[0]
        alive = self.counts[ALIVE]
        wanted = share.of(alive)
        if wanted == alive:
            return
        if not wanted:
            self.waiting.append(AtLeast(number, order, *_TOP))
            return
        sigmas = _SIGMAS
        while True:
            window = _window(order, picked, wanted / alive, sigmas)
            inside, above = self._gather(window)
            place = wanted - int(above.sum())
            if 0 < place <= len(inside):
                break
            sigmas *= 4  # about once in a million choices
        rank, tie = (int(number) for number in inside[-place])
        self.waiting.append(AtLeast(number, order, rank, tie))
        self.thresholds[number] = score_of(rank) if order.by else None

    def _gather(self, emission: ScanOutput) -> list[npt.NDArray[Any]]:
        """Scan, and bring what it emits together here: sorted, for it is little."""
        results = self._scan(emission)
        columns = zip(*results, strict=True) if results else iter([[] for _ in emission.dtypes])
        return [
            np.sort(np.concatenate([np.zeros(0, dtype), *self.tasks.get(handles)]))
            for dtype, handles in zip(emission.dtypes, columns, strict=True)
        ]

    def _dedup(self, number: int, step: Dedup) -> None:
        groups = self._exact(number, step)
        if not step.distance:
            firsts = self.tasks.get(self.tasks.map(largest, [(each,) for each in groups]))
            self.clusters[number] = largest(np.concatenate([np.zeros(0, GROUP), *firsts]))
            return
        copies = np.concatenate([np.zeros(0, GROUP), *self.tasks.get(groups)])
        places, clusters = greedy_clusters(self._near(step), copies)
        alone = copies[~np.isin(copies["place"], np.concatenate([places, clusters["place"]]))]
        self.clusters[number] = largest(np.concatenate([clusters, alone]))
        self.waiting.append(NotAmong(number))
        self.dropped = [[part] for part in by_chunk(places, self._starts())]

    def _exact(self, number: int, step: Dedup) -> list[Any]:
        """Leaves a filter waiting; returns handles of the groups."""
        rounds = self._rounds(sum(chunk.num_rows for chunk in self.chunks))
        groups: list[Any] = []
        dropped: list[list[Any]] = [[] for _ in self.chunks]
        for first, last, partitions in rounds:
            parts = self._scan(Keys(step.by, step.best, partitions, first, last))
            calls = [(self._starts(), *(part[index] for part in parts)) for index in range(last - first)]
            for group, *places in self.tasks.map(merge_duplicates, calls, outputs=1 + len(self.chunks)):
                groups.append(group)
                for chunk, place in enumerate(places):
                    dropped[chunk].append(place)
        self.waiting.append(NotAmong(number))
        self.dropped = dropped
        return groups

    def _near(self, step: Dedup) -> npt.NDArray[Any]:
        """All pairs within the distance, of distinct hashes."""
        found: list[npt.NDArray[Any]] = []
        for mask in band_masks(step.distance):
            for first, last, partitions in self._rounds(sum(chunk.num_rows for chunk in self.chunks)):
                keys = Keys(step.by, step.best, partitions, first, last)
                parts = self._scan(Banded(keys, mask))
                calls = [(step.distance, mask, *(part[index] for part in parts)) for index in range(last - first)]
                found += self.tasks.get(self.tasks.map(near_pairs, calls))
        return np.concatenate(found)

    def _rounds(self, num_rows: int) -> list[tuple[int, int, int]]:
        """(first, last, partitions): which partitions of the keys to gather at once, so that they fit."""
        partitions = max(1, math.ceil(num_rows / PARTITION_ROWS))
        at_once = max(1, int(partitions * self.tasks.memory_bytes // max(1, num_rows * KEYED.itemsize)))
        return [(start, min(start + at_once, partitions), partitions) for start in range(0, partitions, at_once)]

    def _starts(self) -> list[int]:
        return [chunk.first_place for chunk in self.chunks]


def _window(order: Order, picked: npt.NDArray[Any], fraction: float, sigmas: float) -> Window:
    """Around the key below which 1 - `fraction` of all lie; `picked` is sorted, lowest first."""
    size = len(picked)
    margin = sigmas * math.sqrt(size * fraction * (1 - fraction)) + 1
    low, high = math.floor(size * (1 - fraction) - margin), math.ceil(size * (1 - fraction) + margin)
    lowest = (0, 0) if low < 0 else (int(picked["rank"][low]), int(picked["tie"][low]))
    highest = _TOP if high >= size else (int(picked["rank"][high]), int(picked["tie"][high]))
    return Window(order, lowest, highest)
