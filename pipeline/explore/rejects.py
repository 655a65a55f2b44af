"""Collects the rows that were refused: how many for each reason, and the evidence for each row."""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.losses import StatusCounts
from pairmill.pipeline.dataset.manifests import committed, read_manifest, read_manifests
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.explore.page import PageError
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.manifest import CustomRuleCount, manifest_name
from pairmill.schemas.status import Status

PAGE_ROWS = 60
_SHARDS_PER_PAGE = 200
"""A page ends after this many shards even if it is not full, because rows with the requested status may be pairs, which
are not in the rejects."""
_COLUMNS = (
    *("row_id", "uid", "url", "caption_clean", "caption", "status", "status_detail", "http_status", "final_url"),
    *("content_type", "original_bytes", "fetch_attempts", "fetch_s", "original_width", "original_height"),
)
_CURSOR = re.compile(r"(\d{1,12})\.(\d{1,9})")


@dataclass(frozen=True)
class Reason:
    """One Status, and the number of rows with it."""

    status: str
    step: str
    rows: int
    share: float
    """Share of all rows."""
    share_of_largest: float
    """Number of rows relative to that of the most frequent reason."""
    worth_retry: bool
    has_pictures: bool
    """Whether rows with this status are pairs that a score rule refused, with pictures in the gallery."""


@dataclass(frozen=True)
class Rejects:
    """The content of the page."""

    rows_in: int
    rejected: int
    """Number of rows that did not become pairs."""
    reasons: Sequence[Reason]
    custom_rules: Mapping[str, CustomRuleCount]
    status: str
    rows: Sequence[Mapping[str, Any]]
    next_cursor: str | None
    """Start of the next page: the number of a shard and of a row in it; None on the last page."""
    is_first: bool

    @property
    def refused(self) -> int:
        """Number of rows that were not kept: the sum of all reasons."""
        return sum(each.rows for each in self.reasons)


@dataclass(frozen=True)
class Counts:
    """The counts in the manifests."""

    generations: Mapping[int, int]
    """Shard -> generation that was counted."""
    statuses: Mapping[str, int]
    rejected: int
    """Number of rows that did not become pairs."""
    custom_rules: Mapping[str, CustomRuleCount]
    shards: Sequence[tuple[int, int, Mapping[str, int]]]
    """(shard, generation, rows of each status) of the shards that have rejects."""


class RejectPages:
    """Makes the rejects page. Reads the manifests again only if there are new ones. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: Counts | None = None
        self._lock = threading.Lock()

    def page(self, status: str, cursor: str) -> Rejects:
        """The counts, and one page of the rows with this status (empty: any status). Raises PageError, and PlanError if
        the output is gone."""
        if status and status not in {each.value for each in Status}:
            raise PageError(f"status: {status[:40]!r} is not a status")
        if cursor and not _CURSOR.fullmatch(cursor):
            raise PageError("from: this is not a position in the rejects")
        counts = self._newest_counts()
        statuses = counts.statuses
        rows_in = sum(statuses.values())
        lost = [each for each in Status if statuses.get(each) and each is not Status.OK]
        largest = max((statuses[each] for each in lost), default=0)
        reasons = [_reason(each, statuses[each], rows_in, largest) for each in lost]
        rows, following = _rows(self._store, counts, status, cursor)
        reasons.sort(key=lambda each: -each.rows)
        return Rejects(rows_in, counts.rejected, reasons, counts.custom_rules, status, rows, following, not cursor)

    def _newest_counts(self) -> Counts:
        with self._lock:
            generations = committed(self._store)
            if not generations:
                load_plan(self._store)  # fails if the folder is gone, instead of showing no rejects
            if self._counts is None or self._counts.generations != generations:
                self._counts = _count(self._store, generations)
            return self._counts


def _reason(status: Status, rows: int, rows_in: int, largest: int) -> Reason:
    has_pictures = status in (Status.LOW_SIMILARITY, Status.EMBEDDING_INVALID)
    return Reason(
        status.value,
        status.step.value,
        rows,
        rows / max(1, rows_in),
        rows / max(1, largest),
        status.worth_retry,
        has_pictures,
    )


def _count(store: Store, generations: Mapping[int, int]) -> Counts:
    sums = StatusCounts()
    rejected, shards = 0, list[tuple[int, int, Mapping[str, int]]]()
    for manifest in read_manifests(store):
        sums.add(manifest)
        rejected += manifest.rejects
        if manifest.rejects:
            shards.append((manifest.shard, manifest.generation, manifest.statuses))
    return Counts(generations, sums.statuses, rejected, sums.custom_rules, shards)


def _rows(store: Store, counts: Counts, status: str, cursor: str) -> tuple[list[Mapping[str, Any]], str | None]:
    """(one page of rows from `cursor` on, the cursor of the next page or None)."""
    match = _CURSOR.fullmatch(cursor)
    shard_from, row_from = (int(match[1]), int(match[2])) if match else (0, 0)
    found = list[Mapping[str, Any]]()
    shards = [each for each in counts.shards if each[0] >= shard_from and (not status or each[2].get(status))]
    for number, (shard, generation, _) in enumerate(shards):
        if number == _SHARDS_PER_PAGE:
            return found, f"{shard}.0"
        manifest = read_manifest(store, manifest_name(shard, generation))
        table = read_table(store, manifest.files["rejects"].path, _COLUMNS)
        table = table.append_column("position", pa.array(range(table.num_rows), pa.int64()))
        if status:
            table = table.filter(pc.equal(table["status"], status))
        if shard == shard_from:
            table = table.filter(pc.greater_equal(table["position"], row_from))
        for row in table.slice(0, PAGE_ROWS + 1 - len(found)).to_pylist():
            if len(found) == PAGE_ROWS:
                return found, f"{shard}.{row['position']}"
            found.append(row)
    return found, None
