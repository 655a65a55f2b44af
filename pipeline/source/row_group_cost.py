"""Computes from page headers how much memory the rows of a Parquet row group take, because a few bytes can encode
gigabytes.

A dictionary or shared prefix can repeat a long string for every row, a run can repeat a value millions of times in one
row, and a page of zeros unpacks to a thousand times its size. The sizes in the footer cannot be trusted.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.list_views import with_lists
from pairmill.pipeline.source.page_levels import longest_entry, longest_row
from pairmill.pipeline.source.pages import DICTIONARY, Page, pages_of
from pairmill.schemas.errors import FailureKind, PairmillError

MAX_ROW_BYTES = 1 << 30
"""Maximum bytes of one row's values in a nested column."""
MAX_PAGE_BYTES, MAX_PAGE_RATIO = 64 << 20, 20
"""A page that unpacks to more than MAX_PAGE_BYTES must take up at least a 20th of its unpacked size in the file.
Writers aim for pages of 1 MiB; pictures, which do not compress, can make pages larger."""

_BATCH_ROWS, _BATCH_BYTES = 65_536, 256 << 20
_DELTA_BYTE_ARRAY = 7
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


class CostError(PairmillError, ValueError):
    """A row group would take too much memory; the message says in which column, and why."""

    kind = FailureKind.INPUT


def bounded_batches(
    uri: str, file: IO[bytes], parquet: pq.ParquetFile, columns: Sequence[str], groups: Iterable[int]
) -> Iterator[pa.RecordBatch]:
    """The given columns of the given row groups, without list views, in batches of bounded memory.

    Raises SourceError.
    """
    for group in groups:
        try:
            size = batch_rows(file, parquet, group, _BATCH_ROWS, _BATCH_BYTES)
        except ValueError as error:
            raise SourceError(f"{uri}: cannot be read: {error}") from error
        for batch in parquet.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False):
            yield with_lists(
                batch.select(list(dict.fromkeys(columns)))
            )  # to Arrow, `a.b` is also field `b` of column `a`


def batch_rows(file: IO[bytes], parquet: pq.ParquetFile, group: int, max_rows: int, max_bytes: int) -> int:
    """How many rows of a row group, at most `max_rows`, can be decoded at once in about `max_bytes` of memory.

    Does not count the pages at the two ends of the batch. Raises CostError, or ValueError if a page header cannot be
    read.
    """
    metadata = parquet.metadata.row_group(group)
    share = max_bytes // max(metadata.num_columns, 1)
    row_bytes = sum(
        _row_bytes(file, metadata.column(index), parquet.schema.column(index), share)
        for index in range(metadata.num_columns)
    )
    return max(1, min(max_rows, max_bytes // (row_bytes + 1)))


def _row_bytes(file: IO[bytes], chunk: Any, leaf: Any, share: int) -> int:
    """Maximum bytes of a row in one column; 0 for a nested column whose rows take at most `share` in total."""
    if not chunk.num_values:
        return 0
    pages = list(pages_of(file, chunk))
    for page in pages:
        if page.num_bytes > MAX_PAGE_BYTES and page.num_bytes > MAX_PAGE_RATIO * page.packed_bytes:
            raise CostError(
                f"column {leaf.path!r}: a page of {page.packed_bytes:,} bytes that unpacks to {page.num_bytes:,}"
            )
    value_bytes = _value_bytes(file, pages, chunk, leaf)
    if not leaf.max_repetition_level:
        return value_bytes
    data = [page for page in pages if page.is_data]
    if sum(page.num_values for page in data) * value_bytes <= share:
        return 0
    row_bytes = longest_row(file, data, chunk.compression, leaf.max_repetition_level) * value_bytes
    if row_bytes > MAX_ROW_BYTES:
        raise CostError(f"column {leaf.path!r}: a row of up to {row_bytes:,} bytes, more than {MAX_ROW_BYTES:,}")
    return row_bytes


def _value_bytes(file: IO[bytes], pages: list[Page], chunk: Any, leaf: Any) -> int:
    """Maximum bytes of a value. For text without a dictionary or shared prefixes, the highest average of a page."""
    if leaf.physical_type in _WIDTHS:
        return _WIDTHS[leaf.physical_type]
    if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(leaf.length)
    is_text = leaf.logical_type.type == "STRING"
    longest = 8  # bytes of an offset
    for page in pages:
        if page.kind == DICTIONARY:
            num_bytes = longest_entry(file, page, chunk.compression)
        elif page.encoding == _DELTA_BYTE_ARRAY or not is_text:  # perhaps one large picture, so an average says little
            num_bytes = page.num_bytes
        else:
            num_bytes = page.num_bytes // max(page.num_values, 1)
        longest = max(longest, num_bytes + 8)
    return longest
