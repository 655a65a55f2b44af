"""Reads the rows of a planned shard, as the table that passes through the stages.

Every input row is kept, with status `ok` or its own problem. A list of captions becomes one row per caption. If a whole
shard is unreadable, ReadError is raised.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.source.clean_captions import clean_captions
from pairmill.pipeline.source.columns import columns_of
from pairmill.pipeline.source.corpus.image_refs import with_image_refs
from pairmill.pipeline.source.corpus.json_fields import append_fields
from pairmill.pipeline.source.cursor import Cursor, ReadError
from pairmill.pipeline.source.files import (
    CAPTION_PROBLEM_COLUMN,
    MALFORMED_COLUMN,
    WITHDRAWN_CAPTION,
    WITHDRAWN_ROW,
    decode_lossy,
)
from pairmill.pipeline.source.mapping import ColumnMapping, IndexedPictures, WebPictures
from pairmill.pipeline.source.partitions import append_partitions
from pairmill.pipeline.source.row_uids import UidRules, uid_texts
from pairmill.pipeline.source.shared_urls import SharedUrls
from pairmill.pipeline.source.texts import raw_byte_lists, raw_bytes, readable
from pairmill.schemas.limits import MAX_CAPTION_BYTES, MAX_URL_BYTES
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import FETCHED, IMAGE_COLUMN, PICTURE, in_flight_schema
from pairmill.schemas.status import Status

MAX_CAPTIONS_PER_ROW = 1_000
MAX_REPEATED_BYTES = 1 << 30
"""Maximum total bytes of a shard's rows with several captions, after each row is repeated for every caption."""
_CUT_BYTES = 8_192
"""URLs and captions that are rejected as too long stay in their rows, cut to this length."""


class ShardReader:
    """Reads shards of one output folder. Fastest if the shards of a file are read in order. Thread-safe."""

    def __init__(self, store: Store, mapping: ColumnMapping) -> None:
        self._store = store
        self._mapping = mapping
        self._cursor: Cursor | None = None
        self._shared: SharedUrls | None = None
        self._lock = threading.Lock()

    def read(self, shard: Shard) -> pa.Table:
        """The shard in `in_flight_schema`, with the columns of fetched pictures null.

        Raises ReadError for a file that is damaged or missing, or has changed since it was planned.
        """
        try:
            return self._to_table(shard, self._slice(shard))
        except pa.ArrowException as error:
            hint = "; it has too many bytes: a smaller shard_rows may help" if "overflow" in str(error) else ""
            raise ReadError(f"{shard.uri}: shard {shard.shard} cannot be read: {error}{hint}") from error

    def _to_table(self, shard: Shard, table: pa.Table) -> pa.Table:
        rows = _expand(table, self._mapping)
        verdicts = _Verdicts(rows.num_rows)
        for row in _withdrawn(rows):
            verdicts.refuse_row(row, Status.WITHDRAWN, None)
        verdicts.refuse(Status.ROW_MALFORMED, rows.problems)
        if self._mapping.sha256_column is not None:
            index = self._mapping.extra_columns.index(self._mapping.sha256_column)
            verdicts.refuse(Status.ROW_MALFORMED, _bad_digests(rows.extra[index]))
        verdicts.refuse(Status.CAPTION_INVALID, rows.caption_problems)
        found = UidRules(self._mapping, self._shared_urls()).of(rows.urls, rows.captions, rows.own_uids, rows.indexes)
        verdicts.refuse(Status.UID_INVALID, found.problems)
        captions = _caption_texts(rows.captions, verdicts)
        urls = _url_texts(rows.urls, verdicts)
        nulls = [pa.nulls(rows.num_rows, kind.type) for kind in [*FETCHED, *PICTURE, IMAGE_COLUMN]]
        identity = [
            _row_ids(shard, rows),
            pa.array(found.uids, pa.string()),
            urls,
            captions,
            clean_captions(captions),
            rows.indexes,
        ]
        is_pair = pa.repeat(False, rows.num_rows)
        columns = [*identity, *verdicts.columns(), is_pair, *nulls, *rows.extra]
        result = pa.Table.from_arrays(columns, schema=in_flight_schema(self._mapping.extra))
        if not isinstance(self._mapping.pictures, WebPictures):
            table = table.take(rows.parents) if rows.has_lists else table
            result = with_image_refs(result, table, self._mapping.pictures, shard.uri, self._store.files)
        return result

    def _shared_urls(self) -> SharedUrls:
        with self._lock:
            if self._shared is None:
                self._shared = SharedUrls.load(self._store, self._mapping)
            return self._shared

    def close(self) -> None:
        """Close the open file."""
        with self._lock:
            self._close()

    def _slice(self, shard: Shard) -> pa.Table:
        with self._lock:
            cursor = self._cursor
            if cursor is None or (cursor.uri, cursor.fingerprint) != (shard.uri, shard.fingerprint):
                self._close()
                self._cursor = cursor = Cursor(self._store, shard.uri, shard.fingerprint)
            table = append_partitions(cursor.rows(shard.first_row, shard.num_rows), shard.uri)
        return append_fields(table, self._json_columns)

    @property
    def _json_columns(self) -> dict[str, tuple[str, pa.DataType]]:
        types = dict(zip(self._mapping.extra_columns, self._mapping.extra.types, strict=True))
        return {name: (column, types[column]) for name, column in self._mapping.json_fields.items()}

    def _close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = None


@dataclass(frozen=True)
class _Rows:
    """Raw rows of a shard, with one row per caption. `urls`, `captions`, `own_uids` are large_binary arrays."""

    urls: pa.Array
    captions: pa.Array
    own_uids: pa.Array | None
    problems: pa.Array
    caption_problems: pa.Array
    parents: pa.Array
    """int64: index of the input row in the shard."""
    indexes: pa.Array
    """int32: index in the row's list of captions; 0 if it is not a list."""
    has_lists: bool
    extra: list[pa.Array]

    @property
    def num_rows(self) -> int:
        return len(self.urls)


@dataclass
class _Verdicts:
    """Status and `status_detail` of every row. A row keeps the status of its first rejection."""

    num_rows: int
    refused: dict[int, tuple[Status, str | None]] = field(default_factory=dict)

    def refuse(self, status: Status, details: pa.Array) -> None:
        """Refuse each row with a non-null detail."""
        for row in pc.indices_nonzero(details.is_valid()).to_pylist():
            self.refuse_row(row, status, details[row].as_py())

    def refuse_row(self, row: int, status: Status, detail: str | None) -> None:
        self.refused.setdefault(row, (status, clean_text(detail)))

    def columns(self) -> list[pa.Array]:
        """The columns `status` and `status_detail`."""
        statuses = [Status.OK.value] * self.num_rows
        details: list[str | None] = [None] * self.num_rows
        for row, (status, detail) in self.refused.items():
            statuses[row], details[row] = status.value, detail
        return [pa.array(statuses, pa.string()), pa.array(details, pa.string())]


def _expand(table: pa.Table, mapping: ColumnMapping) -> _Rows:
    is_index = isinstance(mapping.pictures, IndexedPictures)
    if is_index:
        table = _with_plain_captions(table, mapping)
    columns = columns_of(mapping, table.schema.names)
    nothing = pa.nulls(table.num_rows, pa.large_binary())
    problems = _strings(table, MALFORMED_COLUMN)
    has_lists = columns.caption is not None and pa.types.is_nested(table[columns.caption].type)
    if has_lists:
        counted = table.select([name for name in table.column_names if name in (*columns.extra, columns.url)])
        lists, too_many = _bounded_lists(raw_byte_lists(table[columns.caption]), counted)
        problems = pc.coalesce(problems, too_many)
        parents, indexes, captions = _flatten(lists)
    else:
        captions = nothing if columns.caption is None else raw_bytes(table[columns.caption])
        parents, indexes = range(len(captions)), [0] * len(captions)
    parents = pa.array(parents, pa.int64())

    def repeated(values: pa.Array) -> pa.Array:
        return values.take(parents) if has_lists else values

    return _Rows(
        urls=repeated(nothing if columns.url is None else raw_bytes(table[columns.url])),
        captions=captions,
        own_uids=None if mapping.uid_column is None else repeated(uid_texts(table, columns.uid)),
        problems=repeated(problems),
        caption_problems=repeated(_strings(table, CAPTION_PROBLEM_COLUMN if is_index else None)),
        parents=parents,
        indexes=pa.array(indexes, pa.int32()),
        has_lists=has_lists,
        extra=[repeated(column) for column in _extra_columns(table, mapping)],
    )


def _withdrawn(rows: _Rows) -> list[int]:
    """The rows that a purge has blanked in a converted file."""
    is_row = pc.equal(rows.problems, WITHDRAWN_ROW).fill_null(False)
    is_caption = pc.equal(rows.captions, pa.scalar(WITHDRAWN_CAPTION, rows.captions.type)).fill_null(False)
    found: list[int] = pc.indices_nonzero(pc.or_(is_row, is_caption)).to_pylist()
    return found


def _strings(table: pa.Table, name: str | None) -> pa.Array:
    """A text column that pairmill wrote; all nulls if the file has no such column."""
    if name is None or name not in table.schema.names:
        return pa.nulls(table.num_rows, pa.string())
    return table[name].combine_chunks().cast(pa.string())


def _with_plain_captions(table: pa.Table, mapping: ColumnMapping) -> pa.Table:
    """The rows of an index, with plain captions instead of lists if no list has more than one caption."""
    index = table.schema.get_field_index(mapping.caption_column or "")
    lists = table.column(index)
    if not pa.types.is_list(lists.type) or (pc.max(pc.list_value_length(lists)).as_py() or 0) > 1:
        return table
    _, _, captions = _flatten(raw_byte_lists(lists))
    return table.set_column(index, mapping.caption_column, captions)


def _bounded_lists(lists: pa.Array, table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Replace the caption lists of rows that have too many captions with null. Returns (lists, problem of each row, or
    null).

    The URL and the carried columns are repeated for every caption, so their bytes count once per caption. The limits
    keep a single row from filling the shard.
    """
    lengths = [length or 1 for length in pc.list_value_length(lists).to_pylist()]
    is_small = table.nbytes * min(max(lengths, default=1), MAX_CAPTIONS_PER_ROW) <= MAX_REPEATED_BYTES
    problems, total = [], 0
    for row, length in enumerate(lengths):
        problem = None
        if length > MAX_CAPTIONS_PER_ROW:
            problem = f"{length:,} captions, more than {MAX_CAPTIONS_PER_ROW:,}"
        elif not is_small and length > 1:
            repeated_bytes = table.slice(row, 1).nbytes * length
            if total + repeated_bytes > MAX_REPEATED_BYTES:
                problem = f"{length:,} captions, which would repeat the row to {repeated_bytes:,} bytes"
            else:
                total += repeated_bytes
        problems.append(problem)
    problems = pa.array(problems, pa.string())
    if problems.null_count < len(problems):
        lists = lists.take(pc.if_else(problems.is_null(), pa.array(range(len(lists))), None))
    return lists, problems


def _flatten(lists: pa.Array) -> tuple[Sequence[int], Sequence[int], pa.Array]:
    """(row, index in the list, caption) of every caption. A null or empty list counts as one null caption."""
    parents: list[int] = []
    indexes: list[int] = []
    positions: list[int | None] = []  # in the flattened lists
    next_position = 0
    for row, length in enumerate(pc.list_value_length(lists).to_pylist()):
        parents += [row] * (length or 1)
        indexes += range(length or 1)
        positions += range(next_position, next_position + length) if length else [None]
        next_position += length or 0
    return parents, indexes, pc.list_flatten(lists).take(pa.array(positions, pa.int64()))


def _extra_columns(table: pa.Table, mapping: ColumnMapping) -> list[pa.Array]:
    """The carried columns with the dataset's types. Columns missing from this file are null."""
    columns = []
    for name, data_type in zip(mapping.extra_columns, mapping.extra.types, strict=True):
        if name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, data_type))
            continue
        column = readable(table[name].combine_chunks())
        columns.append(column if column.type.equals(data_type) else column.cast(data_type))
    return columns


def _bad_digests(column: pa.Array) -> pa.Array:
    """The problem of each value that is not a SHA-256 in hex; null for valid and missing values."""
    texts = pc.utf8_trim_whitespace(decode_lossy(column.cast(pa.large_binary())))
    bad = pc.invert(pc.match_substring_regex(texts, "^([0-9a-fA-F]{64})?$")).fill_null(False)
    return pc.if_else(bad, pc.binary_join_element_wise("not a SHA-256 in hex: ", texts, ""), None)


def _caption_texts(raw: pa.Array, verdicts: _Verdicts) -> pa.Array:
    return _texts(raw, Status.CAPTION_INVALID, MAX_CAPTION_BYTES, verdicts)


def _url_texts(raw: pa.Array, verdicts: _Verdicts) -> pa.Array:
    return _texts(raw, Status.URL_INVALID, MAX_URL_BYTES, verdicts)


def _texts(raw: pa.Array, status: Status, max_bytes: int, verdicts: _Verdicts) -> pa.Array:
    """Raw text as strings. A row whose text is too long or not UTF-8 is rejected, and keeps the text truncated, with
    U+FFFD for invalid bytes."""
    too_long = pc.greater(pc.binary_length(raw), max_bytes).fill_null(False)
    if too_long.true_count:
        verdicts.refuse(status, _detail_where(too_long, f"longer than {max_bytes:,} bytes"))
        raw = pc.if_else(too_long, pc.binary_slice(raw, 0, _CUT_BYTES), raw)
    texts = decode_lossy(raw)
    verdicts.refuse(status, _detail_where(pc.not_equal(texts.cast(raw.type), raw), "not UTF-8"))
    return texts


def _detail_where(mask: pa.Array, detail: str) -> pa.Array:
    return pc.if_else(mask.fill_null(False), detail, pa.scalar(None, pa.string()))


def _row_ids(shard: Shard, rows: _Rows) -> pa.Array:
    """`SHARD:ROW`, or `SHARD:ROW:CAPTION` in a file with lists of captions; all counted from 0."""
    parents = rows.parents.to_pylist()
    if not rows.has_lists:
        return pa.array([f"{shard.shard}:{row}" for row in parents], pa.string())
    ids = zip(parents, rows.indexes.to_pylist(), strict=True)
    return pa.array([f"{shard.shard}:{row}:{index}" for row, index in ids], pa.string())
