"""Writes tables to Parquet files and reads them back.

All columns are compressed except embeddings, which would shrink by only a tenth and are twice as fast to read
uncompressed (see docs/benchmarks.md). No column has a dictionary (see docs/decisions/029-parquet-layout.md).
"""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import NotAFileError
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.dataset.integrity import DamagedFileError, MissingFileError
from pairmill.schemas.pairs import is_embedding

ROW_GROUP_ROWS = 16_384
"""Maximum. A shard of the default size is one row group, because each one adds to the time to parse a footer and to
read a column."""


def write_table(table: pa.Table, file: IO[bytes]) -> None:
    """Write all rows, with the schema's metadata, in row groups of ROW_GROUP_ROWS."""
    leaves = [path for field in table.schema if not is_embedding(field) for path in _leaves(field.name, field.type)]
    write_rows(
        table, file, row_group_size=ROW_GROUP_ROWS, compression=dict.fromkeys(leaves, "zstd"), use_dictionary=False
    )


def write_rows(
    table: pa.Table, file: IO[bytes], row_group_size: int | None = None, compression: Any = "zstd", **options: Any
) -> None:
    """Like `pyarrow.parquet.write_table`, with page checksums, but a table without rows has no row group: Hugging Face
    `datasets` and ClickHouse refuse row groups without rows."""
    with pq.ParquetWriter(file, table.schema, compression=compression, write_page_checksum=True, **options) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size)


def read_table(store: Store, name: str, columns: Collection[str] | None = None) -> pa.Table:
    """Read a Parquet file of the store, with the metadata of its schema. `columns`: read only these; names that the
    file does not have are ignored.

    Raises MissingFileError, or DamagedFileError if it is not a Parquet file or a page does not match its checksum.
    """
    with _name_damaged_file(store, name), _open(store, name) as parquet:
        names = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
        table = parquet.read(columns=names, use_threads=_use_threads(store))
        return table if names is None else table.select(names)  # for Arrow, `a.b` is also field `b` of column `a`


def null_counts(store: Store, name: str) -> dict[str, int]:
    """Column -> number of rows without a value, for all columns that are not nested. Reads only the footer. Raises the
    same errors as `read_table`."""
    with _name_damaged_file(store, name), _open(store, name) as parquet:
        flat = {field.name for field in parquet.schema_arrow if not pa.types.is_nested(field.type)}
        counts = Counter[str]()
        for group in map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema in flat and column.statistics is not None:
                    counts[column.path_in_schema] += column.statistics.null_count or 0
        return dict(counts)


def count_rows(store: Store, name: str) -> int:
    """Number of rows of a file, all of whose pages are read and match their checksums. Raises the same errors as
    `read_table`."""
    with _name_damaged_file(store, name), _open(store, name) as parquet:
        return sum(batch.num_rows for batch in parquet.iter_batches(use_threads=_use_threads(store)))


def read_schema(store: Store, name: str) -> pa.Schema:
    """The schema of a Parquet file of the store, with its metadata. Raises the same errors as `read_table`."""
    with _name_damaged_file(store, name), _open(store, name) as parquet:
        return parquet.schema_arrow


@contextmanager
def _open(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    with (
        store.open_arrow(name) as file,
        pq.ParquetFile(file, pre_buffer=store.remote, page_checksum_verification=True) as parquet,
    ):
        yield parquet


@contextmanager
def _name_damaged_file(store: Store, name: str) -> Iterator[None]:
    """Turn Arrow's errors about a missing or damaged file into a MissingFileError or DamagedFileError with its name.
    For damage, Arrow may also raise an OSError, but without the errno of errors from the operating system."""
    try:
        yield
    except NotAFileError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError.of(store, name) from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, DamagedFileError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise DamagedFileError(f"{store.path(name)} is damaged: {describe(error)}") from error


def _use_threads(store: Store) -> bool:
    """Whether Arrow's threads decode columns, in parallel. A single one would only make small files slower to read.

    Objects are read through Python, and an Arrow thread that frees Python bytes while the interpreter shuts down aborts
    the process. So only the calling thread decodes them; the requests still run in parallel.
    """
    return not store.remote and pa.cpu_count() > 1


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """Names of a field's leaf columns in Parquet."""
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(f"{path}.{child.name}", child.type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_nested(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path
