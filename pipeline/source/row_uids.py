"""Determines the uids of a shard's rows: each row's own, or one that `uid.py` computes.

Uids that depend on the picture stay empty until it is read: `corpus/load.py` fills them in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.source.mapping import ColumnMapping, IndexedPictures, NoPictures, WebPictures
from pairmill.pipeline.source.shared_urls import SharedUrls
from pairmill.pipeline.source.uid import caption_uid, is_blank, own_uid, pair_uid


@dataclass(frozen=True, slots=True)
class FoundUids:
    """Uids of rows, in order."""

    uids: list[str]
    """The uid of each row; empty if it depends on the picture."""
    problems: pa.Array
    """string: for each row, its own uid if that is invalid, otherwise null."""


class UidRules:
    """Determines uids by the rules of one dataset."""

    def __init__(self, mapping: ColumnMapping, shared: SharedUrls) -> None:
        self._mapping = mapping
        self._shared = shared
        self._has_pictures = not isinstance(mapping.pictures, (WebPictures, NoPictures))

    def of(self, urls: pa.Array, captions: pa.Array, own: pa.Array | None, indexes: pa.Array) -> FoundUids:
        """Uids from large_binary arrays of URLs, captions and own uids, and int32 caption indexes; all may be null."""
        pairs = list(zip(urls.to_pylist(), captions.to_pylist(), strict=True))
        if own is None:
            return FoundUids([self._compute(*pair) for pair in pairs], pa.nulls(len(pairs), pa.string()))
        uids: list[str] = []
        problems: list[str | None] = [None] * len(pairs)
        for row, (given, index) in enumerate(zip(own.to_pylist(), indexes.to_pylist(), strict=True)):
            text = "null" if given is None else given.decode("utf-8", "replace")
            uid = own_uid(text)
            if uid is not None:
                uids.append(caption_uid(uid, index))
                continue
            if not isinstance(self._mapping.pictures, IndexedPictures):  # an index has only valid uids or null
                problems[row] = text
            uids.append(self._compute(*pairs[row]))
        return FoundUids(uids, pa.array(problems, pa.string()))

    def _compute(self, url: bytes | None, caption: bytes | None) -> str:
        if self._has_pictures and is_blank(url):
            return ""
        if url is None and isinstance(self._mapping.pictures, NoPictures):
            return ""
        uid = pair_uid(url, caption)
        return "" if uid in self._shared else uid


def uid_texts(table: pa.Table, column: str | None) -> pa.Array:
    """The uid column as large_binary. Values of 16 bytes (Parquet's UUID) are converted to hex."""
    kind = pa.large_binary()
    if column is None:
        return pa.nulls(table.num_rows, kind)
    values = table[column].combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if values.type == pa.binary(16):
        return _as_bytes([None if value is None else value.hex() for value in values.to_pylist()])
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # numbers and so on become text for the message
        return _as_bytes([None if value is None else str(value) for value in values.to_pylist()])


def _as_bytes(texts: Sequence[str | None]) -> pa.Array:
    return pa.array([None if text is None else text.encode() for text in texts], pa.large_binary())
