"""Describes groups of duplicates for the report of a step."""

from bisect import bisect_right
from collections.abc import Iterator

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import Cluster


def described(selector: Selector, groups: Array) -> Iterator[Cluster]:
    """DUPLICATE_GROUPs, each with what identifies the row that stays."""
    for row_index, rows in groups:
        chunk = selector.chunks[bisect_right(selector.chunk_starts, row_index) - 1]
        row = chunk.read_row(row_index, frozenset({"row_id", "url"}))
        row_id, url = row["row_id"][0].as_py(), row["url"][0].as_py()
        yield Cluster(rows=int(rows), row_id=row_id, url=clean_text(url))
