"""Describes groups of duplicates for a step's report."""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import Cluster


def described(selector: Selector, groups: Array) -> Iterator[Cluster]:
    """Convert DUPLICATE_GROUPs to Clusters, which identify the row that stays by its row_id and URL."""
    for row_index, rows in groups:
        chunk = selector.chunks[bisect_right(selector.chunk_starts, row_index) - 1]
        row = chunk.read_rows(np.array([row_index]), frozenset({"row_id", "url"}))
        row_id, url = row["row_id"][0].as_py(), row["url"][0].as_py()
        yield Cluster(rows=int(rows), row_id=row_id, url=clean_text(url))
