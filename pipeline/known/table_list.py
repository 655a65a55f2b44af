"""Reads lists in tables: Parquet, CSV and TSV."""

from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.known.keys import Keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Position, Tally, list_keys
from pairmill.schemas.known import DEFAULT_KINDS, KnownRows, ValueKind

_BATCH_ROWS = 65_536
_BLOCK_BYTES = 1 << 22
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # Arrow raises all three


def read_table_list(files: Files, path: str, known: KnownRows, tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
    """(kind, keys) of a table's values, in batches. Raises KnownError if the table has no such column or is damaged,
    and, with the row, if a value is not of its kind."""
    first = 1
    try:
        with files.open_decompressed(path) as file:
            columns = _columns(path, _names(path, file), known)
        with files.open_decompressed(path) as file:
            for batch in _batches(path, file, list(columns.values())):
                for kind, name in columns.items():
                    position = Position(path, "row", first)
                    yield kind, list_keys(kind, _texts(path, name, batch), position, tally, must_be_urls=False)
                first += batch.num_rows
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise KnownError(f"{path} cannot be read: {clean_text(str(error))}") from None


def _columns(path: str, names: Sequence[str], known: KnownRows) -> Mapping[ValueKind, str]:
    """Kind -> name of its column. Raises KnownError."""
    kinds = known.by or [kind for kind in DEFAULT_KINDS if _find(names, kind)]
    found: dict[ValueKind, str] = {}
    for kind in kinds:
        wanted = known.column or kind
        if (name := _find(names, wanted)) is None:
            raise KnownError(f"{path} has no column {wanted!r}; it has: {_shown(names)}")
        found[kind] = name
    if not found:
        wanted = " or ".join(map(repr, DEFAULT_KINDS))
        raise KnownError(f"{path} has no column {wanted}: say with by and column what to use; it has: {_shown(names)}")
    return found


def _find(names: Sequence[str], wanted: str) -> str | None:
    """The column of this name, or else the only one that has it in other letter case (lists of LAION have `URL`)."""
    if names.count(wanted) == 1:
        return wanted
    similar = [name for name in names if name.lower() == wanted.lower()]
    return similar[0] if len(similar) == 1 else None


def _names(path: str, file: IO[bytes]) -> list[str]:
    if _is_parquet(path):
        with pq.ParquetFile(file) as parquet:
            return list(parquet.schema_arrow.names)
    with _open_csv(path, file, None) as reader:
        return list(reader.schema.names)


def _batches(path: str, file: IO[bytes], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if _is_parquet(path):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
                batch.validate(full=True)  # such as that all text is UTF-8
                yield batch
        return
    with _open_csv(path, file, columns) as reader:
        yield from reader


def _open_csv(path: str, file: IO[bytes], columns: Sequence[str] | None) -> pacsv.CSVStreamingReader:
    """A reader of these columns, as text. In one thread, because only then Arrow names the row of an error."""
    convert = pacsv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns or (), pa.string()), strings_can_be_null=False
    )
    delimiter = "\t" if path.lower().removesuffix(".gz").endswith(".tsv") else ","
    return pacsv.open_csv(
        file,
        read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=convert,
    )


def _texts(path: str, name: str, batch: pa.RecordBatch) -> pa.Array:
    column = batch.column(batch.schema.get_field_index(name))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise KnownError(f"{path}: column {name!r} is {kind}, not text")
    return column.cast(pa.string())


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _shown(names: Sequence[str]) -> str:
    return (", ".join(repr(name[:80]) for name in names[:30]) or "none") + (", ..." if len(names) > 30 else "")
