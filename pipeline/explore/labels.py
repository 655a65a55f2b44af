"""Stores the labels that a person gives in one session, in `labels/NAME.parquet` in the output folder.

Each session has its own file, and only the session that created a file ever replaces it.
"""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO

import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.parquet import write_rows
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import SUBSET_NAME

LABELS_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("label", pa.bool_(), nullable=False),  # true: good
        pa.field("labeled_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
"""`labels/NAME.parquet`: one row per labeled uid, in the order of labeling."""

SAVE_EVERY = 10


def _now() -> datetime:
    return datetime.now(UTC)


def session_name() -> str:
    """A name for a session that starts now, such as `20260131-184500`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}"


class _NameTaken(JobError):
    """Another session has a file with this name."""


class Labels:
    """The labels of one session. Thread-safe."""

    def __init__(self, store: Store, name: str, now: Callable[[], datetime] = _now) -> None:
        """Raises JobError if the name is not allowed, or if another session has used it."""
        if not re.fullmatch(SUBSET_NAME, name):
            raise JobError(f"labels: {name!r} is not a name made of letters, digits, - and _")
        self._store, self.path, self._now = store, f"labels/{name}.parquet", now
        if store.exists(self.path):
            raise self._taken()
        self._labels: dict[str, tuple[bool, datetime]] = {}
        self._history: list[tuple[str, tuple[bool, datetime] | None]] = []
        self._lock = threading.Lock()
        self._unsaved = 0
        self._is_created = False

    def _taken(self) -> "_NameTaken":
        return _NameTaken(
            f"{self._store.path(self.path)} belongs to another session; choose another name with --labels"
        )

    def get(self, uid: str) -> bool | None:
        """The label of a pair; None if it has none."""
        found = self._labels.get(uid)
        return None if found is None else found[0]

    @property
    def counts(self) -> tuple[int, int]:
        """(good, bad)."""
        with self._lock:
            good = sum(label for label, _ in self._labels.values())
            return good, len(self._labels) - good

    def put(self, uid: str, label: bool) -> None:
        """Label a pair, or change its label. The first label creates the file, so two sessions with the same name are
        detected before labels can be lost. Raises JobError if another session has taken the name in the meantime; the
        pair then stays without a label."""
        with self._lock:
            self._history.append((uid, self._labels.pop(uid, None)))
            self._labels[uid] = (label, self._now())
            self._unsaved += 1
            is_due = self._unsaved >= SAVE_EVERY or not self._is_created
        if not is_due:
            return
        try:
            self.save()
        except _NameTaken:
            self.undo()
            raise

    def undo(self) -> str | None:
        """Undo the last label. Returns its uid, or None if there is nothing to undo."""
        with self._lock:
            if not self._history:
                return None
            uid, before = self._history.pop()
            self._labels.pop(uid, None)
            if before is not None:
                self._labels[uid] = before
            self._unsaved += 1
            return uid

    def save(self) -> None:
        """Write the file if anything has changed. Raises JobError if another session has taken the name in the
        meantime."""
        with self._lock:
            if not self._unsaved:
                return
            data = self._encoded()
            if self._is_created:
                self._store.replace(self.path, data)
            elif self._labels:
                if not self._store.create(self.path, data):
                    raise self._taken()
                self._is_created = True
            self._unsaved = 0

    def _encoded(self) -> bytes:
        rows = [{"uid": uid, "label": label, "labeled_at": at} for uid, (label, at) in self._labels.items()]
        buffer = BytesIO()
        write_rows(pa.Table.from_pylist(rows, LABELS_SCHEMA), buffer)
        return buffer.getvalue()
