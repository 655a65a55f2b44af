"""Adds the weights of a subset to the columns that are read from the dataset."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from pairmill.pipeline.dataset.subset import WEIGHT, Weights


def with_weight(schema: pa.Schema) -> pa.Schema:
    """The schema of a subset with weights. It hides a column of the dataset with the same name."""
    return pa.schema([*(field for field in schema if field.name != WEIGHT), pa.field(WEIGHT, pa.float32())])


def read_weighted(read: Callable[[Sequence[str]], pa.Table], columns: Sequence[str], weights: Weights) -> pa.Table:
    """These columns. `read` reads all of them except the weight."""
    if WEIGHT not in columns:
        return read(columns)
    table = read([name for name in columns if name != WEIGHT] or ["uid"])
    return table.append_column(pa.field(WEIGHT, pa.float32()), pa.array(weights)).select(columns)
