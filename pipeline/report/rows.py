"""Reads the rows that a report shows: all of their columns, and a small copy of each picture, once per row."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.arrow import python_values, take_rows
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail, Thumbnails
from pairmill.pipeline.report.summary import Ref
from pairmill.schemas.pairs import is_embedding
from pairmill.schemas.status import Status

SIDE = 400
"""Maximum width and height of the copies, in pixels."""
MAX_PICTURE_BYTES = 5_500_000
"""Maximum size of all pictures on a page, as base64. Pictures beyond this are left out; if the text is very long, more
of them are left out."""
_FIRST = ("caption", "url", "status", "status_detail", "kept")
_LEFT_OUT = Thumbnail(None, problem="left out to keep the page below 10 MB")


@dataclass(frozen=True)
class ShownRow:
    """One row of the dataset, with everything that the page shows about it."""

    ref: Ref
    values: Mapping[str, Any]
    """Column -> Python value, without embeddings."""
    thumbnail: Thumbnail | None
    """None for a reject, which has no picture."""
    in_subset: bool | None = None
    """Whether it is in the subset; None if the page is not about a subset, or for a reject."""

    @property
    def is_chosen(self) -> bool:
        """Whether it is in the subset or, without a subset, whether it is kept."""
        return bool(self.values.get("kept")) if self.in_subset is None else self.in_subset

    @property
    def evidence(self) -> str:
        """Why there is no picture to show; empty if there is one."""
        if self.thumbnail is not None:
            return self.thumbnail.problem or ""
        return str(self.values.get("status_detail") or self.http or "no details")

    @property
    def http(self) -> str:
        """The HTTP status of its response, as text; empty if there was none."""
        status = self.values.get("http_status")
        return "" if status is None else f"HTTP {status}"

    def verdict(self, chosen: str, other: str) -> str:
        """The outcome in words: the name of the chosen or the other rows, or the status that rejected it."""
        if self.is_chosen:
            return chosen
        status = str(self.values.get("status"))
        return other if status == Status.OK else status.replace("_", " ")

    @property
    def caption(self) -> str:
        """Its caption, as the rules and models saw it."""
        return str(self.values.get("caption_clean") or self.values.get("caption") or "no caption")

    @property
    def key(self) -> str:
        """Its id on the page."""
        return f"{'row' if self.ref.file == 'pairs' else 'reject'}-{self.ref.position}-{self.ref.row}"


@dataclass
class Rows:
    """The rows of a page."""

    found: dict[Ref, ShownRow] = field(default_factory=dict)
    left_out: int = 0
    """Number of pictures that did not fit."""

    @property
    def picture_bytes(self) -> int:
        """The size of all pictures, as base64."""
        return sum(_picture_bytes(row.thumbnail) for row in self.found.values())

    def within(self, room: int) -> "Rows":
        """The same rows with at most `room` bytes of pictures, which go to the first rows on the page."""
        rows = Rows(left_out=self.left_out)
        for ref, row in self.found.items():
            size = _picture_bytes(row.thumbnail)
            if size > room:
                row, size = replace(row, thumbnail=_LEFT_OUT), 0
                rows.left_out += 1
            room -= size
            rows.found[ref] = row
        return rows


def read_rows(snapshot: Snapshot, refs: Iterable[Ref], in_subset: Callable[[Ref], bool | None]) -> Rows:
    """Read rows, with at most MAX_PICTURE_BYTES of their pictures."""
    ordered = list(dict.fromkeys(refs))
    pictures = [RowRef(ref.position, ref.row) for ref in ordered if ref.file == "pairs"]
    with closing(Thumbnails(snapshot, SIDE)) as reader:
        thumbnails = reader.of(pictures)
    by_file: dict[tuple[str, int], list[int]] = defaultdict(list)
    for ref in ordered:
        by_file[ref.file, ref.position].append(ref.row)
    values = {key: row for part in snapshot.map(lambda item: _values(snapshot, *item), sorted(by_file.items()))
              for key, row in part.items()}  # fmt: skip
    rows = Rows()
    for ref in ordered:
        thumbnail = thumbnails[RowRef(ref.position, ref.row)] if ref.file == "pairs" else None
        rows.found[ref] = ShownRow(ref, values[ref], thumbnail, in_subset(ref))
    return rows.within(MAX_PICTURE_BYTES)


def _picture_bytes(thumbnail: Thumbnail | None) -> int:
    return len(thumbnail.jpeg) * 4 // 3 if thumbnail and thumbnail.jpeg else 0


def _values(snapshot: Snapshot, file: tuple[str, int], rows: Sequence[int]) -> dict[Ref, dict[str, object]]:
    """The columns of some rows of a file."""
    name, position = file
    shard = snapshot.chunk.shards[position]
    if name == "pairs":
        columns = [each.name for each in snapshot.schema if not is_embedding(each)]
        table = snapshot.read(shard, columns)
    else:
        manifest = snapshot.manifest((shard.shard, shard.generation))
        with snapshot.errors():
            table = read_table(snapshot.store, manifest.files["rejects"].path)
    some: pa.Table = take_rows(table, np.asarray(rows, np.int64))
    ordered = [*(each for each in _FIRST if each in some.column_names), *some.column_names]
    lists = {each: python_values(some[each]) for each in dict.fromkeys(ordered)}
    return {
        Ref("pairs" if name == "pairs" else "rejects", position, row): {each: lists[each][at] for each in lists}
        for at, row in enumerate(rows)
    }


def text_of(value: Any) -> str:
    """A value of any type, as readable text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.15g}"  # a time keeps all digits before the point
    if isinstance(value, bytes):
        return counted(len(value), "byte")
    return str(value)
