"""Converts text formats to OUT/input/*.parquet: once, as a stream, in bounded memory.

A converted file has one row per record of its source, in order. URL and caption are `binary`, with the exact bytes of
the source, because the uid is a hash of them. All other columns are strings, with U+FFFD for invalid UTF-8. A record
that cannot be read becomes a row with the reason in MALFORMED_COLUMN.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.columns import columns_of, has_needed_column
from pairmill.pipeline.source.delimiter import detect_delimiter, first_lines
from pairmill.pipeline.source.files import (
    MALFORMED_COLUMN,
    USUAL_DELIMITERS,
    InputFile,
    Kind,
    SourceError,
    decode_lossy,
    shown,
    with_partitions,
)
from pairmill.pipeline.source.json_array import split_json
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.partitions import append_partitions
from pairmill.pipeline.source.records import Record, csv_header, csv_records, json_objects, json_records, url_records
from pairmill.pipeline.source.text_file import (
    MAX_RECORD_BYTES,
    Split,
    lines_of,
    marked_encoding,
    split_any_lines,
    split_lines,
)
from pairmill.schemas.job.source import SourceConfig

MAX_COLUMNS = 1_000

_NULL_SHARE = 4
"""In UTF-16 and UTF-32, at least one in this many bytes of a line with mostly ASCII characters is 0."""
_LAYOUT = 4  # increase this whenever the conversion changes
_BATCH_BYTES = 32 << 20

_TABLE_KEYS = ({"columns", "index", "data"}, {"columns", "data"}, {"schema", "data"})
"""The keys that pandas' to_json writes with orient='split' or 'table'."""
_WRITE_ROWS = "In pandas, write rows with to_json(..., orient='records', lines=True)"


def inspect_text(uri: str, kind: Kind, files: Files, config: SourceConfig) -> InputFile:
    """Inspect a text file: its header (CSV, TSV), or all of its objects (JSON).

    `config` may set the encoding, delimiter and columns; the rest is detected. Raises SourceError.
    """
    encoding = marked_encoding(uri, files) or config.encoding
    if kind in ("json", "jsonl"):
        return _inspect_json(InputFile(uri, kind, _strings([]), None, files, encoding=encoding), config.is_corpus)
    with lines_of(uri, files, encoding, split_any_lines) as lines:
        sample = first_lines(lines)
    nulls = sample[0].count(0) if sample else 0
    if nulls and nulls * _NULL_SHARE >= len(sample[0]):
        raise SourceError(f"{uri}: contains NUL bytes, as UTF-16 does; set source.encoding to utf-16-le or utf-16-be")
    if nulls and kind != "text":  # where it costs only one row
        raise SourceError(f"{uri}: a column name on the first line contains a NUL byte; remove it")
    if kind == "text":
        return with_partitions(InputFile(uri, kind, _strings(["url"]), None, files, encoding=encoding))
    delimiter = config.delimiter or detect_delimiter(sample, USUAL_DELIMITERS[kind], partial(has_needed_column, config))
    try:
        header = csv_header(iter(sample), delimiter)
    except csv.Error as error:
        raise SourceError(f"{uri}: cannot read the column names on the first line: {error}") from error
    if header is None:
        raise SourceError(f"{uri}: is empty; the first line must contain the column names")
    schema = _strings(header_names(uri, header))
    return with_partitions(InputFile(uri, kind, schema, None, files, encoding=encoding, delimiter=delimiter))


def converted_name(source: InputFile, fingerprint: str, mapping: ColumnMapping, shard_rows: int) -> str:
    """Name of the converted file in the output folder. It changes whenever the content would change."""
    columns = columns_of(mapping, source.schema.names)
    identity: list[Any] = [_LAYOUT, source.uri, fingerprint, shard_rows, columns.url, columns.caption]
    unusual = [source.unusual_encoding, source.unusual_delimiter]
    if any(unusual):
        identity += unusual  # only if unusual, so that usual files keep their names from earlier versions
    if source.partitions:
        identity += source.partitions
    digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(source.uri).name)[:80]
    return f"input/{stem}-{digest}.parquet"


def convert(source: InputFile, name: str, mapping: ColumnMapping, shard_rows: int, store: Store) -> None:
    """Convert `source` to the file `name` of the store. Row groups have about `shard_rows` rows.

    If another driver was faster, its identical file is kept. Raises SourceError, and writes nothing, if the source
    cannot be read to its end.
    """
    schema = _converted_schema(source, mapping)
    whole = append_partitions(schema.empty_table(), source.uri).schema
    lists = frozenset(field.name for field in schema if pa.types.is_list(field.type))
    columns = columns_of(mapping, source.schema.names)
    with store.new_file() as file:
        with (
            records_of(source, lists, columns.caption, columns.url) as records,
            pq.ParquetWriter(file, whole, compression="zstd", write_page_checksum=True) as writer,
        ):
            for batch in _batches(records, shard_rows):
                writer.write_table(append_partitions(_to_table(batch, schema), source.uri))
        store.create_from(name, file)


@contextmanager
def records_of(
    source: InputFile, list_names: frozenset[str] = frozenset(), caption: str | None = None, url: str | None = None
) -> Iterator[Iterator[Record]]:
    """All records of a text file. The values of the columns `list_names` are lists; all other values are bytes.
    `caption`: the caption column, whose values must not be objects. `url`: the URL column."""
    names = source.own_names
    with _open_records(source) as lines:
        if source.kind == "text":
            yield url_records(lines)
        elif source.kind in ("json", "jsonl"):
            yield json_records(lines, names, list_names, caption)
        else:
            assert source.delimiter is not None
            csv_header(lines, source.delimiter)
            at = names.index(url) if url in names else None
            is_row = None if at is None else lambda fields: "://" in fields[at]
            yield csv_records(lines, source.delimiter, len(names), is_row)


def _open_records(source: InputFile) -> AbstractContextManager[Iterator[bytes]]:
    splits: dict[Kind, Split] = {"json": partial(split_json, source.uri), "jsonl": split_lines}
    split = splits.get(source.kind, split_any_lines)
    return lines_of(source.uri, source.files, source.encoding, split)


def _inspect_json(source: InputFile, is_corpus: bool) -> InputFile:
    names: dict[str, None] = {}
    lists: set[str] = set()
    num_rows, value = 0, None
    with _open_records(source) as pieces:
        for value, _ in json_objects(pieces):
            num_rows += 1
            if value is None:
                continue
            names.update(dict.fromkeys(value))
            if len(names) > MAX_COLUMNS:
                raise SourceError(
                    f"{source.uri}: more than {MAX_COLUMNS} distinct keys; keep only those you need or, if "
                    f"they stand for rows, write one object per row. {_WRITE_ROWS}"
                )
            lists.update(name for name, item in value.items() if isinstance(item, list))
    if num_rows and not names:
        raise SourceError(
            f"{source.uri}: has no JSON objects (of at most {MAX_RECORD_BYTES >> 20} MiB); expected one per line, or "
            f"an array of them in a .json file. {_WRITE_ROWS}"
        )
    if num_rows == 1 and value is not None and _is_table(value, is_corpus):
        raise SourceError(
            f"{source.uri}: is one JSON object with a whole table; expected one object per row. {_WRITE_ROWS}"
        )
    found = replace(source, schema=_strings(names), num_rows=num_rows, list_columns=frozenset(lists))
    return with_partitions(found)


def _is_table(value: dict[str, object], is_corpus: bool) -> bool:
    """Whether an object is a table rather than one row: in a layout of pandas' `to_json`, or lists of equal length. In
    a corpus, lists can be the captions of one row."""
    if value.keys() in _TABLE_KEYS and isinstance(value["data"], list):
        return True
    items = list(value.values())
    if all(isinstance(item, dict) for item in items):
        return _is_grid(list(value), [tuple(item) for item in items if isinstance(item, dict)])
    are_lists = not is_corpus and all(isinstance(item, list) for item in items)
    return are_lists and len({len(item) for item in items if isinstance(item, list)}) == 1


def _is_grid(outer: Sequence[str], inner: Sequence[tuple[str, ...]]) -> bool:
    """Whether the keys of an object and of the objects in it are those of columns and rows, either way round. A single
    inner key, such as `path`, can also be a field of a value, unless one side is numbered like pandas' rows."""
    if len(set(inner)) != 1:
        return False
    return len(inner[0]) > 1 or any(all(key.isdecimal() for key in keys) for keys in (outer, inner[0]))


def header_names(uri: str, header: list[bytes]) -> list[str]:
    """Column names from a header. Empty and repeated names get the number of the column, counted from 1."""
    if len(header) > MAX_COLUMNS:
        raise SourceError(
            f"{uri}: {len(header)} columns, but at most {MAX_COLUMNS} are supported; keep only those you need"
        )
    names: list[str] = []
    for number, raw in enumerate(header, start=1):
        name = raw.decode("utf-8", "replace").strip()
        names.append(f"{name or 'column'}_{number}" if not name or name in names else name)
    if len(set(names)) != len(names):
        raise SourceError(f"{uri}: two columns share a name: {shown(names)}")
    return names


def _strings(names: Iterable[str]) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string()) for name in names])


def _converted_schema(source: InputFile, mapping: ColumnMapping) -> pa.Schema:
    columns = columns_of(mapping, source.schema.names)
    fields = []
    for name in source.own_names:
        data_type = pa.binary() if name in (columns.url, columns.caption) else pa.string()
        is_list = name == columns.caption and name in source.list_columns
        fields.append(pa.field(name, pa.list_(data_type) if is_list else data_type))
    return pa.schema([*fields, pa.field(MALFORMED_COLUMN, pa.string())])


def _batches(records: Iterable[Record], shard_rows: int) -> Iterator[list[Record]]:
    """The records, divided into row groups of `shard_rows` rows (or a multiple, if that is small), or fewer if rows are
    long."""
    max_rows = shard_rows * -(-1_024 // shard_rows)
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += record.num_bytes
        if len(batch) == max_rows or num_bytes > _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _to_table(batch: Sequence[Record], schema: pa.Schema) -> pa.Table:
    nothing = [None] * (len(schema) - 1)
    columns = zip(*(record.values or nothing for record in batch), strict=True)
    arrays = [_to_array(list(column), field.type) for column, field in zip(columns, schema, strict=False)]
    problems = pa.array([record.problem for record in batch], pa.string())
    return pa.Table.from_arrays([*arrays, problems], schema=schema)


def _to_array(values: list[Any], data_type: pa.DataType) -> pa.Array:
    if pa.types.is_list(data_type):
        return pa.array(values, data_type)
    raw = pa.array(values, pa.binary())
    return decode_lossy(raw) if pa.types.is_string(data_type) else raw
