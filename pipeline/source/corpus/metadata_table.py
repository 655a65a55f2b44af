"""Reads a table beside pictures in Hugging Face's ImageFolder layout: `metadata.csv`, `.jsonl` or `.parquet`.

https://huggingface.co/docs/datasets/image_dataset#imagefolder. The column `file_name` has the path of a picture,
relative to the table's folder. The other columns are what a `.json` beside the picture would contain.
"""

import csv
import posixpath
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.arrow import python_values
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.dataset.webdataset_tar import has_map, json_scalar, map_scalars, times_as_text
from pairmill.pipeline.source.columns import is_text
from pairmill.pipeline.source.convert import header_names
from pairmill.pipeline.source.delimiter import detect_delimiter, first_lines
from pairmill.pipeline.source.files import INT96_UNIT, PICTURE_ENDINGS, SourceError, shown
from pairmill.pipeline.source.list_views import with_lists
from pairmill.pipeline.source.names import FILE_NAME
from pairmill.pipeline.source.records import csv_header, csv_records, json_objects, json_text, parse_json
from pairmill.pipeline.source.text_file import lines_of, split_any_lines
from pairmill.pipeline.source.texts import plain_type, readable
from pairmill.pipeline.source.types import exact_times, int96_columns
from pairmill.schemas.job.source import SourceConfig

MAX_TABLE_BYTES = 64 << 20
"""Larger tables are refused, because a table is in memory while the folders that it describes are indexed."""
_MAX_PARSED_BYTES = 4 * MAX_TABLE_BYTES
_BATCH_ROWS = 256

Object = dict[str, object]


@dataclass(slots=True)
class MetadataTable:
    """The rows of a table, by picture."""

    rows: dict[str, list[bytes]] = field(default_factory=dict)
    """Path of a picture, as `plain_path` returns it -> its rows, each as a JSON object."""
    problems: list[str] = field(default_factory=list)
    """Why a row cannot be read, for each such row."""


def plain_path(name: str) -> str:
    """A path or URL with `/` between its parts and without `.`."""
    scheme, mark, path = name.rpartition("://")
    return scheme + mark + posixpath.normpath(path.replace("\\", "/"))


def common_form(name: str) -> str:
    """The form that all spellings of a path or URL have in common, in whatever Unicode normal form they are."""
    return unicodedata.normalize("NFC", plain_path(name))


def parse_row(row: bytes) -> Object:
    """The columns of a row, without the name of the picture."""
    values = parse_json(row.decode("utf-8", "surrogatepass"))
    return {name: value for name, value in values.items() if name != FILE_NAME}


def names_pictures(uri: str, files: Files, source: SourceConfig) -> bool:
    """Whether a table has a column `file_name` and at least one row. Reads only its beginning.

    Raises SourceError if it cannot be read, or has that column and is too large.
    """
    lenient = source.model_copy(update={"encoding": source.encoding or "utf-8"})  # it may be a table of other things
    with _naming(uri):
        if next(_rows(uri, files, lenient), None) is None:
            return False
        with files.open(uri) as file:
            size = file.seek(0, 2)
    if size > MAX_TABLE_BYTES:
        raise _too_large(uri, size)
    return True


def read_table(uri: str, files: Files, source: SourceConfig) -> MetadataTable:
    """The rows of a table with a column `file_name`. Raises SourceError if it cannot be read."""
    table, num_bytes = MetadataTable(), 0
    with _naming(uri):
        for row in _rows(uri, files, source):
            if isinstance(row, str):
                table.problems.append(row)
            elif not isinstance(name := row.get(FILE_NAME), str) or not name:
                table.problems.append(f"a row has no {FILE_NAME}")
            else:
                num_bytes += _add_row(table, plain_path(name), row)
                if num_bytes > _MAX_PARSED_BYTES:
                    raise _too_large(uri, num_bytes)
    return table


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Convert exceptions raised while a table is read to SourceErrors that name the table."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, csv.Error) as error:
        raise SourceError(f"{uri}: is not a readable table: {error}") from error


def _add_row(table: MetadataTable, path: str, row: Object) -> int:
    """Add a row. Returns its size in bytes."""
    try:
        data = json_text(row).encode("utf-8", "surrogatepass")
    except RecursionError:
        table.problems.append(f"{path[:100]}: nested too deeply")
        return 0
    table.rows.setdefault(path, []).append(data)
    return len(data)


def _too_large(uri: str, size: int) -> SourceError:
    return SourceError(
        f"{uri}: {size:,} bytes are too many for a metadata table (at most {MAX_TABLE_BYTES >> 20} MB, as it is read "
        "as a whole); split the pictures into several folders, each with its own table"
    )


def _rows(uri: str, files: Files, source: SourceConfig) -> Iterator[Object | str]:
    """Each row, or why it cannot be read. Nothing if there is no column `file_name`."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    return readers[posixpath.splitext(uri)[1]](uri, files, source)


def _csv_rows(uri: str, files: Files, source: SourceConfig) -> Iterator[Object | str]:
    """Empty fields are null, as in Hugging Face's reader."""
    with lines_of(uri, files, source.encoding, split_any_lines) as lines:
        sample = first_lines(lines)
        delimiter = source.delimiter or detect_delimiter(sample, ",", lambda names: FILE_NAME in names)
        every = chain(sample, lines)
        header = csv_header(every, delimiter) or []
        if FILE_NAME.encode() not in (name.strip() for name in header):
            return
        names = header_names(uri, header)
        at = names.index(FILE_NAME)
        for record in csv_records(every, delimiter, len(names), lambda fields: _names_picture(fields[at])):
            texts = [value.decode("utf-8", "surrogateescape") or None for value in record.values or ()]
            yield record.problem or dict(zip(names, texts, strict=True))


def _names_picture(field: str) -> bool:
    """Whether a field, perhaps within quotation marks, is the path of a picture."""
    return field.strip(' "').lower().endswith(PICTURE_ENDINGS)


def _json_rows(uri: str, files: Files, source: SourceConfig) -> Iterator[Object | str]:
    """The first lines decide whether there is a column `file_name`."""
    with lines_of(uri, files, source.encoding) as lines:
        sample = first_lines(lines)
        first = [value for value, _ in json_objects(iter(sample), parse_json) if value is not None]
        if sample and not first:
            raise SourceError(f"{uri}: has no JSON objects; expected one per line")
        if not any(FILE_NAME in value for value in first):
            return
        for value, line in json_objects(chain(sample, lines), parse_json):
            yield f"not a JSON object: {line[:100].decode('utf-8', 'replace').strip()}" if value is None else value


def _parquet_rows(uri: str, files: Files, source: SourceConfig) -> Iterator[Object | str]:
    with files.open(uri) as file, open_parquet(file, coerce_int96_timestamp_unit=INT96_UNIT) as parquet:
        names = parquet.schema_arrow.names
        if FILE_NAME not in names:
            return
        if len(set(names)) != len(names):
            raise SourceError(f"{uri}: two columns share a name: {shown(names)}")
        for batch in _batches(file, parquet):
            columns = [_json_values(column) for column in batch.columns]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _batches(file: IO[bytes], parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """The rows, with exact times in INT96 columns, which are read a second time in nanoseconds."""
    int96 = int96_columns(parquet)
    finer = pq.ParquetFile(file) if int96 else None
    # Each row group by itself, because across them, the batches of other columns may have other sizes.
    for group in range(parquet.num_row_groups):
        in_nanoseconds = finer and finer.iter_batches(_BATCH_ROWS, [group], int96)
        for batch in map(with_lists, parquet.iter_batches(_BATCH_ROWS, [group])):
            yield exact_times(batch, with_lists(next(in_nanoseconds).select(int96))) if in_nanoseconds else batch


def _json_values(column: pa.Array) -> list[Any]:
    """The values as JSON has them, but with NaN and infinity. Bytes are text; of a fixed size or nested, base64."""
    kind = plain_type(column.type)
    if is_text(kind):
        raw = column.cast(kind).cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    column = readable(column)
    values = [map_scalars(value, json_scalar) for value in python_values(times_as_text(column))]
    return [None if value is None else json_text(value) for value in values] if has_map(column.type) else values
