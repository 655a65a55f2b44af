"""How a table becomes a Parquet file: compressed, but for the embeddings, which compress by a tenth and are read twice
as fast without (measured in docs/benchmarks.md)."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.schemas.pairs import is_embedding

ROW_GROUP_ROWS = 1_024


def write_table(table: pa.Table, file: IO[bytes]) -> None:
    """Write all rows, with the schema's metadata, in row groups of ROW_GROUP_ROWS."""
    leaves = [path for field in table.schema if not is_embedding(field) for path in _leaves(field.name, field.type)]
    compression = dict.fromkeys(leaves, "zstd")
    pq.write_table(table, file, row_group_size=ROW_GROUP_ROWS, compression=compression, use_dictionary=leaves)


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """Parquet's names for the columns that a field becomes."""
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
