"""Reads consecutive slices of a Parquet file without going back to the start of a row group.

Published lists have row groups of a million rows or more, each enough for hundreds of shards. A cursor keeps its
position between slices, so reading all slices in order decodes every page once, with only a few pages in memory. Any
other order works too, but decodes again from the start of the row group.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.source.columns import can_contain_pictures
from pairmill.pipeline.source.files import INT96_UNIT
from pairmill.pipeline.source.list_views import with_lists
from pairmill.pipeline.source.row_budget import RowBudget
from pairmill.pipeline.source.row_group_cost import CostError, batch_rows
from pairmill.pipeline.source.types import LOST_NANOSECONDS, int96_columns, lost_nanoseconds
from pairmill.schemas.errors import FailureKind, PairmillError

_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 65_536
_BATCH_BYTES = 256 << 20
"""Bytes per batch. Arrow cannot read more than 2 GiB of structs (such as pictures) at once."""
_MAX_SHARD_BYTES, _MAX_PICTURE_SHARD_BYTES = 1 << 30, 2 << 30
"""Maximum bytes of a shard's rows, for files without and with binary columns, respectively. Shards are planned to take
half of it."""


class ReadError(PairmillError, RuntimeError):
    """A planned file cannot be read or has changed since it was planned; the message names it."""

    kind = FailureKind.INPUT


class UnreachableInput(ReadError):
    """The file may be intact, but its storage denies access or does not respond. The next file will probably fail too,
    so such failures count towards `run.max_failed_shards_in_a_row`."""

    kind = FailureKind.MACHINE


def max_shard_bytes(schema: pa.Schema) -> int:
    """Maximum bytes of a shard's rows in files with these columns."""
    has_bytes = any(can_contain_pictures(field.type) for field in schema)
    return _MAX_PICTURE_SHARD_BYTES if has_bytes else _MAX_SHARD_BYTES


def resolve(store: Store, uri: str) -> str:
    """Path of a shard's Parquet file. Converted files are relative to the output folder, which may have moved."""
    return store.path(uri) if uri.startswith("input/") else uri


class Cursor:
    """An open Parquet file with a reading position. Not thread-safe."""

    def __init__(self, store: Store, uri: str, fingerprint: str) -> None:
        self.uri = uri
        self.fingerprint = fingerprint
        self.path = resolve(store, uri)
        try:
            self._file = store.files.open(self.path)
        except FileNotFoundError as error:
            raise ReadError(f"{self.path}: cannot be opened: {error}") from error
        except OSError as error:
            raise UnreachableInput(f"{self.path}: cannot be opened: {error}") from error
        try:
            if uri == self.path:
                _check_same(store.files, self.path, self._file, fingerprint)
            self._parquet = self._reader(INT96_UNIT)
            self._int96 = int96_columns(self._parquet)
            # INT96 columns are read a second time, in nanoseconds, to find digits that INT96_UNIT loses.
            self._finer = self._reader(None) if self._int96 else None
        except (pa.ArrowException, OSError) as error:
            self._file.close()
            raise ReadError(f"{self.path}: not a complete Parquet file: {error}") from error
        except ReadError:
            self._file.close()
            raise
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = [0, *accumulate(sizes)]
        self._batches: Iterator[tuple[pa.RecordBatch, pa.RecordBatch | None]] = iter(())
        self._rest: pa.RecordBatch | None = None  # the unread part of the last batch
        self._next_row = -1  # in the file; -1: unknown

    def _reader(self, int96_unit: str | None) -> pq.ParquetFile:
        """A reader of the open file. With a buffer size, Arrow reads a column chunk piece by piece, not as a whole."""
        return pq.ParquetFile(
            self._file,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit=int96_unit,
        )

    @property
    def names(self) -> list[str]:
        """Column names of the file."""
        return list(self._parquet.schema_arrow.names)

    def _decode(self, first_group: int, max_rows: int) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch | None]]:
        """All batches from a row group onward, each with its INT96 columns in nanoseconds."""
        for group in range(first_group, self._parquet.num_row_groups):
            size = batch_rows(self._file, self._parquet, group, min(max_rows, _BATCH_ROWS), _BATCH_BYTES)
            finer = self._finer and self._finer.iter_batches(size, [group], self._int96, use_threads=False)
            for batch in self._parquet.iter_batches(size, [group], use_threads=False):
                # If asked for a column called `a.b`, Arrow also reads the field `b` of a column `a`.
                yield batch, next(finer).select(self._int96) if finer else None

    def rows(self, first_row: int, num_rows: int) -> pa.Table:
        """Rows [first_row, first_row + num_rows), all columns. Raises ReadError.

        Rows that are too large are null, with the reason in MALFORMED_COLUMN.
        """
        if first_row + num_rows > self._group_starts[-1]:
            present = counted(self._group_starts[-1], "row")
            raise ReadError(f"{self.path}: has {present}, but rows up to {first_row + num_rows} are planned")
        try:
            self._seek(first_row, num_rows)
            schema = self._parquet.schema_arrow
            budget = RowBudget(num_rows, max_shard_bytes(schema))
            pieces = [budget.within(piece) for piece in self._take(num_rows)]
            return budget.noted(pa.Table.from_batches(pieces, pieces[0].schema if pieces else schema))
        except (pa.ArrowException, OSError, StopIteration, ValueError) as error:
            self._next_row = -1
            rows = f"rows {first_row} to {first_row + num_rows}"
            if isinstance(error, CostError):
                raise ReadError(f"{self.path}: {rows} take too much memory: {error}") from error
            raise ReadError(f"{self.path}: {rows} cannot be read (damaged or half-written?): {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._batches, self._rest = iter(()), None
        self._parquet.close(force=True)
        self._file.close()

    def _seek(self, row: int, num_rows: int) -> None:
        group = bisect_right(self._group_starts, row) - 1
        if row < self._next_row or self._group_starts[group] > self._next_row:
            self._batches = self._decode(group, num_rows)
            self._rest = None
            self._next_row = self._group_starts[group]
        for _ in self._take(row - self._next_row):
            pass

    def _take(self, num_rows: int) -> Iterator[pa.RecordBatch]:
        while num_rows:
            batch = self._rest if self._rest is not None else self._next_batch()
            piece = batch.slice(0, num_rows)
            self._rest = batch.slice(num_rows) if batch.num_rows > num_rows else None
            self._next_row += piece.num_rows
            num_rows -= piece.num_rows
            yield piece

    def _next_batch(self) -> pa.RecordBatch:
        batch, finer = next(self._batches, (None, None))
        if batch is None:
            raise pa.ArrowInvalid("the file has fewer rows than its footer says")
        batch = with_lists(batch)
        if finer is not None and (name := lost_nanoseconds(batch, with_lists(finer))):
            raise ReadError(f"{self.path}: column {name!r} {LOST_NANOSECONDS}")
        return batch


def _check_same(files: Files, path: str, file: IO[Any], fingerprint: str) -> None:
    """Compare the ETag, or the size, with the fingerprint. A checksum would need another pass over the file."""
    kind, _, value = fingerprint.partition(":")
    if kind == "etag":
        same = files.fingerprint(path) == fingerprint
    else:
        same = file.seek(0, 2) == int(value.partition(":")[0])
        file.seek(0)
    if not same:
        raise ReadError(f"{path}: has changed since it was planned; restore it, or use another output")
