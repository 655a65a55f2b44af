"""Reads labels of pairs from Parquet files of uids, such as `explore` writes, or from a column of the dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_remote, why_no_file
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.select.uid_file import uid_digits

MAX_LABELS = 1_000_000
"""Maximum number of labels in files, which are all in memory: about 100 bytes each."""
MAX_LABEL_BYTES = 256 << 20
"""Maximum size of a file's uids and labels."""
_BATCH_ROWS = 65_536


class Labels(Protocol):
    """The labels of a dataset's rows. It may count the rows it has seen, so pass each row only once."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the dataset that `find` reads."""

    def find(self, rows: pa.Table) -> pa.Array:
        """The label of each row, as bool, int64 or string; null if it has none."""

    def facts(self) -> list[str]:
        """Lines that say which labels were not used and why. Call this after passing all rows to `find`."""


@dataclass(frozen=True)
class ColumnLabels:
    """Labels in a column of the dataset. Rows without a value have no label."""

    column: str

    @classmethod
    def of(cls, snapshot: Snapshot, column: str) -> "ColumnLabels":
        """The labels in this column. Raises EvaluateError if the column is missing or its type does not fit labels."""
        check_column(snapshot, column)
        _check_type(f"the column {column!r}", snapshot.schema.field(column).type)
        return cls(column)

    @property
    def columns(self) -> frozenset[str]:
        """The column with the labels."""
        return frozenset({self.column})

    def find(self, rows: pa.Table) -> pa.Array:
        """The values of the column."""
        return _plain(rows[self.column])

    def facts(self) -> list[str]:
        """No lines: every label is used."""
        return []


class FileLabels:
    """Labels from files, by uid. If several rows have the same uid, only the first one gets its label."""

    def __init__(self, uris: Sequence[str], table: pa.Table) -> None:
        """`table`: columns uid (text of 32 hex digits) and label, both without nulls. Repeats of a uid are counted, and
        uids with different labels are left out."""
        self.uris = uris
        grouped = table.group_by("uid").aggregate([("label", "count_distinct"), ("label", "min")])
        agrees = pc.equal(grouped["label_count_distinct"], 1)
        self.num_repeated = table.num_rows - grouped.num_rows
        self.num_contradictory = grouped.num_rows - pc.sum(agrees.cast(pa.int64())).as_py() if len(grouped) else 0
        grouped = grouped.filter(agrees).sort_by("uid")
        self._uids = np.asarray(grouped["uid"].to_pylist(), "S32")
        self._labels: pa.Array = grouped["label_min"].combine_chunks()
        self._is_found = np.zeros(len(self._uids), np.bool_)
        self.num_null = self.num_second_rows = 0

    @classmethod
    def read(cls, files: Files, uris: Sequence[str], column: str = "label") -> "FileLabels":
        """Read local or s3:// files with the columns `uid` and `column`. Raises EvaluateError and StepError."""
        tables = [_read_file(files, uri, column) for uri in uris]
        if len({table.schema.field("label").type for table in tables}) > 1:
            kinds = ", ".join(f"{uri}: {table['label'].type}" for uri, table in zip(uris, tables, strict=True))
            raise EvaluateError(f"the labels are of different types ({kinds}); use files with labels of the same type")
        table = pa.concat_tables(tables)
        if table.num_rows > MAX_LABELS:
            raise EvaluateError(f"{counted(table.num_rows, 'label')}, but at most {MAX_LABELS:,} are allowed")
        present = table.filter(table["label"].is_valid())
        labels = cls(uris, present)
        labels.num_null = table.num_rows - present.num_rows
        return labels

    @property
    def columns(self) -> frozenset[str]:
        """Only `uid`."""
        return frozenset({"uid"})

    def find(self, rows: pa.Table) -> pa.Array:
        """The label of each row, looked up by uid; null if it has none."""
        index = self._index(np.asarray(rows["uid"].to_pylist(), "S32"))
        known = np.flatnonzero(index >= 0)
        _, first = np.unique(index[known], return_index=True)
        known_first = known[first]
        new = known_first[~self._is_found[index[known_first]]]
        self.num_second_rows += len(known) - len(new)
        self._is_found[index[new]] = True
        used = np.full(len(index), -1)
        used[new] = index[new]
        return self._labels.take(pa.array(used, pa.int64(), mask=used < 0))

    def _index(self, uids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Index of each uid's label; -1 if it has none."""
        if not len(self._uids):
            return np.full(len(uids), -1)
        index = np.minimum(np.searchsorted(self._uids, uids), len(self._uids) - 1)
        found: npt.NDArray[np.int64] = np.where(self._uids[index] == uids, index, -1)
        return found

    def facts(self) -> list[str]:
        """Lines that say which labels and rows were left out."""
        gone = int((~self._is_found).sum())
        lines = (
            (self.num_null, "label", "empty"),
            (self.num_repeated, "label", "for an already labeled uid"),
            (self.num_contradictory, "uid", "left out: different labels"),
            (gone, "labeled uid", "not found among the rows"),
            (self.num_second_rows, "row", "left out: another row has the same uid"),
        )
        return [f"{counted(number, noun)} {what}" for number, noun, what in lines if number]


@dataclass(frozen=True)
class LabelSource:
    """The source of labels."""

    files: Sequence[str] = ()
    """Parquet files with a column `uid`: local, s3://, or relative to the output folder."""
    column: str | None = None
    """The column with the labels: in the files, `label` by default; or in the dataset, if there are no files."""
    positive: str | None = None
    """The positive label; all others are negative. None: good, yes, true or 1."""

    @property
    def is_given(self) -> bool:
        """Whether there are files or a column."""
        return bool(self.files) or self.column is not None

    def check(self) -> None:
        """Raise EvaluateError if there are neither files nor a column."""
        if not self.is_given:
            raise EvaluateError(
                "specify the labels: --labels FILE for a Parquet file of uids, or --label-column NAME for a column of "
                "the dataset"
            )

    def open(self, snapshot: Snapshot) -> Labels:
        """Read the files or find the column. Raises EvaluateError and StepError."""
        self.check()
        if self.files:
            uris = [find_file(snapshot.store, path) for path in self.files]
            return FileLabels.read(
                Files(snapshot.store.files.s3), uris, "label" if self.column is None else self.column
            )
        return ColumnLabels.of(snapshot, self.column or "")


def find_file(store: Store, path: str) -> str:
    """The URI of a file of labels: as given, or else inside the output folder, where `explore` writes `labels/NAME`.

    Raises EvaluateError if there is no such file.
    """
    if is_remote(path):
        if not path.startswith(S3_SCHEMES):
            raise EvaluateError(f"{path} cannot be read: specify a local file or s3://")
        return path
    is_in_output = not path.startswith("/") and ".." not in path.split("/")
    try:
        if Path(path).is_file():
            return path
        if is_in_output and store.exists(path):
            return store.path(path)
    except ValueError:  # NUL in the name
        pass
    if why := why_no_file(path) or (is_in_output and why_no_file(store.path(path))):
        raise EvaluateError(f"{path} {why}")
    raise EvaluateError(f"{path}: there is no such file, neither here nor in {store.root}")


def check_column(snapshot: Snapshot, name: str) -> None:
    """Raise EvaluateError unless all shards of the dataset have this column."""
    if name not in snapshot.schema.names:
        problem = snapshot.added.missing(name)
        raise EvaluateError(problem or f"{snapshot.store.root} has no column {name!r}")


def _read_file(files: Files, uri: str, column: str) -> pa.Table:
    """The columns `uid` and `label` of a file. Raises EvaluateError and StepError."""
    try:
        with files.open(uri) as opened, open_parquet(opened) as parquet:
            names = parquet.schema_arrow.names
            if names.count("uid") != 1 or names.count(column) != 1:
                known = clean_text(", ".join(names)) or "none"
                raise EvaluateError(f"{uri} needs the columns uid and {column}; it has: {known}")
            _check_type(f"{uri}: the column {column!r}", parquet.schema_arrow.field(column).type)
            if parquet.metadata.num_rows > MAX_LABELS:
                raise EvaluateError(
                    f"{uri} has {parquet.metadata.num_rows:,} rows, but at most {MAX_LABELS:,} are allowed"
                )
            encoded = pq.ParquetFile(opened, read_dictionary=["uid", column], metadata=parquet.metadata)
            table = _read_bounded(uri, encoded, ["uid", column])
            uids = table["uid"].cast(pa.string()).combine_chunks()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise EvaluateError(f"{uri} is not a readable Parquet file: {clean_text(str(error))}") from None
    return pa.table({"uid": uid_digits(uri, uids), "label": _plain(table[column])})


def _read_bounded(uri: str, parquet: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
    """Columns of a file. Text stays dictionary-encoded until its size is known, because a small file can repeat a long
    string a million times. Raises EvaluateError if the columns are too large."""
    metadata, names = parquet.metadata, set(columns)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    if unpacked > MAX_LABEL_BYTES:
        raise EvaluateError(f"{uri}: its labels take {unpacked:,} bytes, but at most {MAX_LABEL_BYTES:,} are allowed")
    batches, num_bytes = [], 0
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
        num_bytes += sum(_num_bytes(batch[name]) for name in columns)
        if num_bytes > MAX_LABEL_BYTES:
            raise EvaluateError(f"{uri}: its labels take more than {MAX_LABEL_BYTES:,} bytes as plain text")
        batches.append(pa.table({name: _undo_dictionary(batch[name]) for name in columns}))
    table = pa.concat_tables(batches) if batches else parquet.read(columns=list(columns))
    table.validate(full=True)  # for example, that all text is UTF-8
    return table


def _num_bytes(array: pa.Array) -> int:
    """Size of the values as a plain array."""
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    if not _is_text(array.type.value_type):
        return 8 * len(array)
    return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)


def _undo_dictionary(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _check_type(what: str, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    fits = any(check(kind) for check in (pa.types.is_boolean, pa.types.is_integer, _is_text))
    if not fits or pa.types.is_uint64(kind):
        raise EvaluateError(f"{what} is {kind}; labels must be true or false, whole numbers, or text")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """The values as bool, int64 or string."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_boolean(array.type):
        return array
    return array.cast(pa.int64() if pa.types.is_integer(array.type) else pa.string())
