"""Composes the live progress line: rows, rate, time left, requests, kept and lost rows, as many of these as fit."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.common.terminal_text import cells
from pairmill.pipeline.common.text import counted
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.status import Status

WINDOW_S = 30.0
"""Rates are averages over this time."""
MIN_S = 1.0
"""Rates over shorter periods would mean nothing: two small shards can end within a millisecond of each other."""
TOP_REASONS = 3
_SOURCES = ("download", "load")
_COUNTING_STAGES = ("encode", *_SOURCES)
"""Stages that report progress within a shard, last stage first."""
_GAP = "  "
_IMPORTANCE = ("rows", "kept", "in flight", "bytes", "time left", "rate", "pairs", "fetched", "shards")
"""Parts of the line, most important first; losses come last."""


class Rate:
    """Measures how much a counter grows per second, over the last WINDOW_S."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, value: float) -> None:
        """Record the counter's current value."""
        now = time.monotonic()
        self._samples.append((now, value))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """Growth per second. Zero until the recorded values span MIN_S."""
        if len(self._samples) < 2:
            return 0.0
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return max(last - first, 0.0) / (end - start) if end - start >= MIN_S else 0.0


@dataclass
class RunState:
    """The state that the live line and the warnings are based on."""

    rows_left: int = 0
    """Input rows that this run has to process."""
    shards_left: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    input_rows: int = 0
    """Input rows of the committed shards."""
    rows: int = 0
    """Rows of the committed shards, one per caption."""
    pairs: int = 0
    kept: int = 0
    shards: int = 0
    work: Mapping[str, WorkCounts] = field(default_factory=dict)
    """Stage -> what its workers have done."""
    _most_rows: int = 0
    _rates: dict[str, Rate] = field(default_factory=dict)

    def commit(self, manifest: ShardManifest) -> None:
        """Add a committed shard."""
        self.statuses.update(manifest.statuses)
        self.rows += manifest.rows_in
        self.pairs += manifest.pairs
        self.kept += manifest.kept
        self.add_columns(manifest)

    def add_columns(self, manifest: ShardManifest) -> None:
        """Add a shard that was committed earlier and has now received columns. Its kept and lost rows do not count."""
        self.input_rows += manifest.num_rows
        self.shards += 1
        self._rate("commit").add(self.input_rows)

    def update(self, work: Mapping[str, WorkCounts]) -> None:
        """Record the workers' progress."""
        self.work = {name: counts for name, counts in work.items() if counts.rows or counts.items or counts.in_flight}
        for name, counts in self.work.items():
            self._rate(name).add(counts.rows)
            self._rate(f"{name} bytes").add(counts.num_bytes)

    def line(self, width: int) -> str:
        """The line, with as many parts as fit, chosen by importance and shown in a fixed order."""
        parts, shown, room = dict(self._parts()), set(), width + len(_GAP)
        for name in _IMPORTANCE:
            if name in parts and cells(parts[name]) + len(_GAP) <= room:
                shown.add(name)
                room -= cells(parts[name]) + len(_GAP)
        texts = [text for name, text in parts.items() if name in shown]
        for loss in self._losses():
            room -= cells(loss) + len(_GAP)
            if room < 0:
                break
            texts.append(loss)
        return _GAP.join(texts)

    def _parts(self) -> Iterator[tuple[str, str]]:
        """Yield (name in _IMPORTANCE, text) of each part, in the order in which they are shown."""
        rows = self._rows_done()
        yield "rows", f"{rows:,}/{counted(self.rows_left, 'row')}"
        yield from self._speed(rows)
        yield from self._source(is_done=rows >= self.rows_left)
        yield from self._shares()
        if self.shards:
            yield "shards", f"{self.shards:,}/{counted(self.shards_left, 'shard')}"

    def _rows_done(self) -> int:
        """Rows that have passed the last stage that counts them: at least the committed rows, at most all rows.

        The number never decreases, even when a later stage starts to count and is behind an earlier one.
        """
        last = self._last_stage()
        done = self.work[last].rows if last else 0
        self._most_rows = max(self._most_rows, min(max(done, self.input_rows), max(self.rows_left, self.input_rows)))
        return self._most_rows

    def _last_stage(self) -> str | None:
        return next((name for name in _COUNTING_STAGES if name in self.work), None)

    def _speed(self, rows: int) -> Iterator[tuple[str, str]]:
        """Yield rows per second and the time left. The time before the workers have started does not count."""
        names = [name for name in _COUNTING_STAGES if name in self.work] or ["commit"]
        speeds = {name: speed for name in names if (speed := self._rate(name).per_s) > 0}
        if not speeds:
            return
        yield "rate", f"{next(iter(speeds.values())):,.0f}/s"
        if self.rows_left > rows:
            slowest_s = max(self._remaining(name) / speed for name, speed in speeds.items())
            yield "time left", f"{duration(slowest_s)} left"

    def _remaining(self, stage: str) -> int:
        done = self.work[stage].rows if stage in self.work else self.input_rows
        return max(self.rows_left - done, 0)

    def _source(self, is_done: bool) -> Iterator[tuple[str, str]]:
        """Yield what the download or load stage is doing."""
        name = next((name for name in _SOURCES if name in self.work), None)
        if name is None:
            return
        counts = self.work[name]
        if name == "download" and not is_done:
            yield "in flight", f"{counts.in_flight:,} in flight"
        if (bytes_per_s := self._rate(f"{name} bytes").per_s) > 0:
            yield "bytes", f"{size(bytes_per_s)}/s"
        if self._last_stage() != name:
            rows = max(counts.rows, self.input_rows)  # workers report less often than shards are committed
            yield "fetched", f"{'fetched' if name == 'download' else 'read'} {rows:,}"

    def _shares(self) -> Iterator[tuple[str, str]]:
        """Yield shares of the committed rows or, before the first commit, of the pictures that have been processed."""
        if self.rows:
            yield "pairs", f"pairs {self.pairs / self.rows:.0%}"
            yield "kept", f"kept {self.kept / self.rows:.0%}"
            return
        counts = next((self.work[name] for name in _SOURCES if name in self.work), None)
        if counts and counts.items:
            yield "kept", f"pictures {counts.good_items / counts.items:.0%}"

    def _losses(self) -> Iterator[str]:
        losses = Counter({name: count for name, count in self.statuses.items() if name != Status.OK})
        for number, (name, count) in enumerate(losses.most_common(TOP_REASONS)):
            yield f"{'' if number else 'lost: '}{name} {count:,}"
        if others := sum(losses.values()) - sum(count for _, count in losses.most_common(TOP_REASONS)):
            yield f"other {others:,}"

    def _rate(self, name: str) -> Rate:
        return self._rates.setdefault(name, Rate())


def duration(seconds: float) -> str:
    """The time as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """The size as `950 kB` or `12.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1_000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 100 or unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1_000
    return f"{num_bytes:.1f} GB"
