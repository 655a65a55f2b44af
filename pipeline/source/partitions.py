"""Finds columns whose values are in folder names, such as `lang=en/part-0.parquet`, as Hive, Spark and pyarrow write
them.

Values are text, with percent-encoding undone; Hive's name for null is null.
"""

import re
from urllib.parse import unquote

import pyarrow as pa

from pairmill.pipeline.common.files import S3_SCHEMES, is_remote

_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"


def partitions_of(uri: str) -> dict[str, str | None]:
    """Name -> value, from the folders in a file's path or URL."""
    found = {}
    path = _QUERY.sub("", uri) if is_remote(uri) and not uri.startswith(S3_SCHEMES) else uri
    for folder in path.split("/")[:-1]:
        if match := _PARTITION.fullmatch(folder):
            value = unquote(match[2])
            found[unquote(match[1])] = None if value == _NULL else value
    return found


def append_partitions(table: pa.Table, uri: str) -> pa.Table:
    """A file's rows plus a column for each partition in its path, unless the file has its own column of that name."""
    for name, value in partitions_of(uri).items():
        if name not in table.schema.names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table
