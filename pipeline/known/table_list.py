"""Reads lists that are tables: Parquet, CSV and TSV."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import MAX_LINE_BYTES, Files
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.known.keys import Keys
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.read_values import Position, Tally, list_keys, looks_like
from pairmill.schemas.known import DEFAULT_KINDS, KnownRows, ValueKind

_BATCH_ROWS = 65_536
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # Arrow raises the first three


def read_table_list(files: Files, path: str, known: KnownRows, tally: Tally) -> Iterator[tuple[ValueKind, Keys]]:
    """(kind, keys) of a table's values, in batches. Raises KnownError if the table lacks a column or is damaged and,
    naming the row, if a value is not of the expected kind."""
    first = 1
    try:
        with files.open_decompressed(path) as file:
            columns = _columns(path, _names(path, file), known)
        with files.open_decompressed(path) as file:
            for batch in _batches(path, file, columns):
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
        raise KnownError(f"{path} has no column {wanted}: choose one with `by` and `column`; it has: {_shown(names)}")
    return found


def _find(names: Sequence[str], wanted: str) -> str | None:
    """The column with this name, or else the only one that differs only in case (LAION's lists have `URL`)."""
    if names.count(wanted) == 1:
        return wanted
    similar = [name for name in names if name.lower() == wanted.lower()]
    return similar[0] if len(similar) == 1 else None


def _names(path: str, file: IO[bytes]) -> list[str]:
    if _is_parquet(path):
        with open_parquet(file) as parquet:
            return list(parquet.schema_arrow.names)
    return next(_csv_records(path, file), ([], []))[0]


def _batches(path: str, file: IO[bytes], columns: Mapping[ValueKind, str]) -> Iterator[pa.RecordBatch]:
    if _is_parquet(path):
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns.values())):
                batch.validate(full=True)  # for example, checks that all text is UTF-8
                yield batch
        return
    yield from _csv_batches(path, file, columns)


def _csv_batches(path: str, file: IO[bytes], columns: Mapping[ValueKind, str]) -> Iterator[pa.RecordBatch]:
    records, first = _csv_records(path, file), 1
    names, _ = next(records)
    places = {kind: names.index(name) for kind, name in columns.items()}
    while rows := list(islice(records, _BATCH_ROWS)):
        for number, (row, lines) in enumerate(rows, first):
            if len(row) != len(names):
                raise KnownError(
                    f"{path}, row {number:,}: has {counted(len(row), 'field')}, but the header has {len(names):,}"
                )
            if _is_tsv(path) and any(_is_row(line, len(names), places) for line in lines[1:]):
                raise KnownError(
                    f"{path}, row {number:,}: a quotation mark joins it with further rows; remove the quotation marks "
                    "with which captions begin, or list the values alone in a text file"
                )
        values = [pa.array([row[place] for row, _ in rows], pa.string()) for place in places.values()]
        for name, texts in zip(columns.values(), values, strict=True):
            _refuse_lines(path, name, texts, first)
        yield pa.RecordBatch.from_arrays(values, list(columns.values()))
        first += len(rows)


def _csv_records(path: str, file: IO[bytes]) -> Iterator[tuple[list[str], list[str]]]:
    """(fields, lines) of each record. Strict about quotes: a missing quote would turn many lines into one value."""
    lines: list[str] = []

    def noted() -> Iterator[str]:
        for line in _lines(path, file):
            lines.append(line)
            yield line

    records, number = csv.reader(noted(), delimiter="\t" if _is_tsv(path) else ",", strict=True), 0
    while True:
        try:
            fields = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"row {number:,}" if number else "the header"
            raise KnownError(
                f"{path}, {where}: cannot be read ({clean_text(str(error))}); inside quotation marks, each quotation "
                "mark must be doubled (RFC 4180). Correct the row, or list the values alone in a text file"
            ) from None
        if fields:
            yield fields, list(lines)
            number += 1
        lines.clear()


def _is_row(line: str, num_columns: int, places: Mapping[ValueKind, int]) -> bool:
    """Whether a line looks like a whole row of a TSV, in which quotation marks are mostly text. A line of a quoted
    caption hardly ever looks like that."""
    fields = line.split("\t")
    return len(fields) == num_columns and any(looks_like(kind, fields[place]) for kind, place in places.items())


def _lines(path: str, file: IO[bytes]) -> Iterator[str]:
    number = 1
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise KnownError(f"{path}, line {number:,}: the line is longer than {MAX_LINE_BYTES:,} bytes")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        number += 1


def _refuse_lines(path: str, name: str, texts: pa.Array, first: int) -> None:
    """Raise KnownError if a value contains a line feed, which can only come from missing quotes."""
    is_bad = pc.match_substring_regex(pc.utf8_trim_whitespace(texts), "[\\r\\n]")
    if is_bad.true_count:
        raise KnownError(f"{path}, row {first + pc.index(is_bad, True).as_py():,}: {name!r} contains a line feed")


def _texts(path: str, name: str, batch: pa.RecordBatch) -> pa.Array:
    column = batch.column(batch.schema.get_field_index(name))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise KnownError(f"{path}: column {name!r} is {kind}, not text")
    return column.cast(pa.string())


def _is_tsv(path: str) -> bool:
    return path.lower().removesuffix(".gz").endswith(".tsv")


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _shown(names: Sequence[str]) -> str:
    return (", ".join(repr(name[:80]) for name in names[:30]) or "none") + (", ..." if len(names) > 30 else "")
