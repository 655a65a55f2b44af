"""Follows a build while it runs: its shards, the funnel, and the newest pictures."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pairmill.pipeline.columns.added_columns import NOTHING_ADDED
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.losses import StatusCounts, in_words
from pairmill.pipeline.dataset.manifests import committed, read_manifest
from pairmill.pipeline.explore.pictures import SMALL, Pictures
from pairmill.pipeline.pages.visible_text import visible_text
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.manifest import ShardManifest, manifest_name
from pairmill.schemas.status import Status

NEWEST_PICTURES = 12
_OPEN_SHARDS = 4
_CAPTION_CHARS = 180
_RATE_S = 60.0
"""The rate is measured since the last look that is at least this old, or since the first look."""
_MIN_S = 1.0
"""A rate over a shorter time would mean nothing."""


@dataclass(frozen=True)
class FunnelRow:
    """The number of rows lost for one reason, and the number of rows left after that."""

    reason: str
    """The status in words, and the name of a custom rule."""
    rows: int
    left: int
    share_left: float


@dataclass(frozen=True)
class NewPicture:
    """A picture from a newly arrived shard."""

    address: str
    caption: str
    """Shortened, and without deceptive characters, because a script puts it on the page."""
    status: str


@dataclass(frozen=True)
class Live:
    """The state of a build."""

    shards: int
    shards_done: int
    rows: int
    rows_done: int
    """Input rows that are done; a row with a list of captions counts once."""
    rows_in: int
    kept: int
    rows_per_s: float | None
    """Rate over about the last minute, or since the page was opened; None until a shard has arrived since then."""
    losses: Sequence[FunnelRow]
    newest: Sequence[NewPicture]
    new_shards: int
    """Number of shards that the other pages do not show yet."""

    def as_dict(self) -> dict[str, object]:
        """The state as plain JSON values."""
        return asdict(self)


class LiveState:
    """Follows the state of a build, and remembers the manifests it has read. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[int, tuple[int, ShardManifest]] = {}
        self._order: list[int] = []
        """Shards in the order in which they were seen."""
        self._arrived = 0
        """Rows of the shards that have arrived since the first look."""
        self._looks: deque[tuple[float, int]] = deque()
        """(time of a look, `_arrived` then). The first one is at the beginning of the last minute, or before it."""
        self._open: OrderedDict[tuple[int, int], tuple[Snapshot, Pictures]] = OrderedDict()
        self._lock = threading.Lock()
        self._is_first = True
        self._plan: tuple[list[str], Plan] | None = None

    def close(self) -> None:
        """Close files and stop threads."""
        with self._lock:
            while self._open:
                self._open.popitem()[1][1].close()

    def now(self, shown: Mapping[int, int]) -> Live:
        """The current state. Lists all manifests and reads the new ones. `shown`: shard -> generation, for the shards
        that the other pages show."""
        with self._lock:
            self._read_new()
            manifests = [manifest for _, manifest in self._seen.values()]
            plan = self._current_plan()
            counts = StatusCounts()
            for manifest in manifests:
                counts.add(manifest)
            return Live(
                shards=plan.num_shards,
                shards_done=len(manifests),
                rows=plan.num_rows,
                rows_done=sum(manifest.num_rows for manifest in manifests),
                rows_in=counts.statuses.total(),
                kept=counts.statuses[Status.OK],
                rows_per_s=self._rate(),
                losses=_funnel(counts),
                newest=self._newest(),
                new_shards=sum(shown.get(shard) != found for shard, (found, _) in self._seen.items()),
            )

    def _current_plan(self) -> Plan:
        """The plan, read again only if it has grown."""
        names = self._store.list("plan")
        if self._plan is None or names != self._plan[0]:
            self._plan = names, load_plan(self._store)
        return self._plan[1]

    def _read_new(self) -> None:
        for shard, generation in committed(self._store).items():
            if shard in self._seen and self._seen[shard][0] == generation:
                continue
            manifest = read_manifest(self._store, manifest_name(shard, generation))
            self._seen[shard] = (generation, manifest)
            self._order = (
                [each for each in self._order if each != shard] + [shard]
                if not self._is_first
                else [*self._order, shard]
            )
            if not self._is_first:
                self._arrived += manifest.num_rows
        self._is_first = False
        now = time.monotonic()
        self._looks.append((now, self._arrived))
        while len(self._looks) > 2 and self._looks[1][0] <= now - _RATE_S:
            self._looks.popleft()

    def _rate(self) -> float | None:
        if not self._arrived:
            return None
        (start, before), (end, rows) = self._looks[0], self._looks[-1]
        return (rows - before) / max(end - start, _MIN_S)

    def _newest(self) -> list[NewPicture]:
        """Some pairs from the shards that arrived last."""
        found: list[NewPicture] = []
        for shard in reversed(self._order[-3:]):
            generation, manifest = self._seen[shard]
            if not manifest.pairs or len(found) >= NEWEST_PICTURES:
                continue
            snapshot, pictures = self._opened(shard, generation)
            rows = range(min(NEWEST_PICTURES - len(found), manifest.pairs))
            table = snapshot.read(snapshot.chunk.shards[0], ["caption_clean", "status"]).slice(0, len(rows))
            pictures.prefetch(RowRef(0, row) for row in rows)
            for row, values in zip(rows, table.to_pylist(), strict=True):
                address = f"/picture/{shard}/{row}?v={generation}-{manifest.attempt[:8]}"
                caption = visible_text(values["caption_clean"] or "", _CAPTION_CHARS)
                found.append(NewPicture(address, caption, values["status"]))
        return found

    def _opened(self, shard: int, generation: int) -> tuple[Snapshot, Pictures]:
        key = shard, generation
        if key not in self._open:
            snapshot = Snapshot(self._store, self._current_plan(), [key], NOTHING_ADDED)
            self._open[key] = snapshot, Pictures(snapshot)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1][1].close()
        self._open.move_to_end(key)
        return self._open[key]

    def picture(self, shard: int, row: int) -> Thumbnail | None:
        """A picture of a shard that the other pages do not show; None if there is no such row."""
        with self._lock:
            if shard not in self._seen:
                return None
            snapshot, pictures = self._opened(shard, self._seen[shard][0])
            if row >= snapshot.chunk.shards[0].num_rows:
                return None
        return pictures.get(RowRef(0, row), SMALL)


def _funnel(counts: StatusCounts) -> list[FunnelRow]:
    """The rows lost for each reason, in the order of the steps."""
    rows = left = counts.statuses.total()
    found = []
    for loss in counts.losses():
        left -= loss.rows
        found.append(FunnelRow(in_words(loss.reason), loss.rows, left, left / max(1, rows)))
    return found
