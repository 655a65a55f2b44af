"""Reads consecutive slices of a Parquet file without going back to the start of a row group.

Published lists have row groups of a million rows and more, each worth hundreds of shards. A cursor keeps its position
between slices, so that reading all slices in order decodes every page once, with only a few pages in memory. Any other
order works too, but decodes again from the start of the row group.
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
from pairmill.pipeline.source.types import int96_columns, lost_nanoseconds
from pairmill.schemas.errors import FailureKind, PairmillError

_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 65_536
_BATCH_BYTES = 256 << 20
"""Bytes per batch: Arrow cannot read more than 2 GiB of structs (pictures, say) at once. A hard limit for pictures,
since averages say nothing about a single one; an estimate for other columns."""


class ReadError(PairmillError, RuntimeError):
    """A planned file cannot be read or has changed since it was planned; the message names it."""

    kind = FailureKind.INPUT


class UnreachableInput(ReadError):
    """The file may be sound, but its storage denies access or does not answer. The next file will probably fail too, so
    such failures count towards `run.max_failed_shards_in_a_row`."""

    kind = FailureKind.MACHINE


def resolve(store: Store, uri: str) -> str:
    """Path of a shard's Parquet file. Converted files are relative to the output folder, which may have moved."""
    return store.path(uri) if uri.startswith("input/") else uri


class Cursor:
    """An open Parquet file and a position in it. Not thread-safe."""

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
            # Read again in nanoseconds, to find digits that INT96_UNIT loses.
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
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._finer_batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None  # the unread part of the last batch
        self._next_row = -1  # in the file; -1: unknown

    def _reader(self, int96_unit: str | None) -> pq.ParquetFile:
        """With a buffer, Arrow reads a column chunk piece by piece, not as a whole."""
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

    def _batch_rows(self, group: int, num_rows: int) -> int:
        """How many rows to read at once, from this row group on. The footer gives no sizes of individual pictures."""
        metadata = self._parquet.metadata
        size = min(num_rows, _BATCH_ROWS)
        has_pictures = any(can_contain_pictures(field.type) for field in self._parquet.schema_arrow)
        for number in range(group, metadata.num_row_groups):
            of_group = metadata.row_group(number)
            # No picture is larger than its row group: a dictionary may store it once for many rows.
            row_bytes = of_group.total_byte_size // (1 if has_pictures else max(of_group.num_rows, 1)) + 1
            size = min(size, max(1, _BATCH_BYTES // row_bytes))
        return size

    def rows(self, first_row: int, num_rows: int) -> pa.Table:
        """Rows [first_row, first_row + num_rows), all columns. Raises ReadError."""
        if first_row + num_rows > self._group_starts[-1]:
            present = counted(self._group_starts[-1], "row")
            raise ReadError(f"{self.path}: has {present}, but rows up to {first_row + num_rows} are planned")
        try:
            self._seek(first_row, num_rows)
            pieces = list(self._take(num_rows))
            return pa.Table.from_batches(pieces, self._parquet.schema_arrow)
        except (pa.ArrowException, OSError, StopIteration) as error:
            self._next_row = -1
            rows = f"rows {first_row} to {first_row + num_rows}"
            raise ReadError(f"{self.path}: {rows} cannot be read (damaged or half-written?): {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._batches, self._finer_batches, self._rest = iter(()), iter(()), None
        self._parquet.close(force=True)
        self._file.close()

    def _seek(self, row: int, num_rows: int) -> None:
        group = bisect_right(self._group_starts, row) - 1
        if row < self._next_row or self._group_starts[group] > self._next_row:
            groups = range(group, len(self._group_starts) - 1)
            reading: dict[str, Any] = {"row_groups": list(groups), "use_threads": False}
            size = self._batch_rows(group, num_rows)
            self._batches = self._parquet.iter_batches(size, **reading)
            if self._finer is not None:
                self._finer_batches = self._finer.iter_batches(size, columns=self._int96, **reading)
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
        batch = next(self._batches, None)
        if batch is None:
            raise pa.ArrowInvalid("it has fewer rows than its footer says")
        if self._finer is not None and (name := lost_nanoseconds(batch, next(self._finer_batches))):
            raise ReadError(
                f"{self.path}: column {name!r} has nanoseconds in the old type INT96, which cannot be told apart from "
                "other dates; write it as Parquet's TIMESTAMP"
            )
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
