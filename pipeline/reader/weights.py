"""Adds the weights of a subset to what is read of the dataset."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from pairmill.pipeline.dataset.subset import WEIGHT, Weights


def with_weight(schema: pa.Schema) -> pa.Schema:
    """The schema of a subset that has weights. A column of the dataset with this name, which was added later, is
    hidden."""
    return pa.schema([*(field for field in schema if field.name != WEIGHT), pa.field(WEIGHT, pa.float32())])


def read_weighted(read: Callable[[Sequence[str]], pa.Table], columns: Sequence[str], weights: Weights) -> pa.Table:
    """These columns, of which `read` reads all but the weight."""
    if WEIGHT not in columns:
        return read(columns)
    table = read([name for name in columns if name != WEIGHT] or ["uid"])
    return table.append_column(pa.field(WEIGHT, pa.float32()), pa.array(weights)).select(columns)
