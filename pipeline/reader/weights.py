"""Adds the weights of a subset to the columns that are read from the dataset."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from pairmill.pipeline.dataset.subset import WEIGHT, Weights
from pairmill.schemas.pairs import source_column_name


def renamed_weight(schema: pa.Schema) -> str | None:
    """The name of the dataset's own column `weight` beside the weights of a subset: `source_weight`, as for an input
    column whose name is taken. None: the dataset has no such column."""
    return source_column_name(WEIGHT, {name.lower() for name in schema.names}) if WEIGHT in schema.names else None


def with_weight(schema: pa.Schema) -> pa.Schema:
    """The schema of a subset with weights, in which the dataset's own column `weight` has another name."""
    own = renamed_weight(schema)
    fields = [field.with_name(own) if own and field.name == WEIGHT else field for field in schema]
    return pa.schema([*fields, pa.field(WEIGHT, pa.float32())])


def read_weighted(
    read: Callable[[Sequence[str]], pa.Table], columns: Sequence[str], weights: Weights, own: str | None
) -> pa.Table:
    """These columns. `read` reads them from the dataset, except the weights. `own`: the `renamed_weight`."""
    if WEIGHT not in columns and own not in columns:
        return read(columns)
    names = [WEIGHT if name == own else name for name in columns if name != WEIGHT] or ["uid"]
    table = read(names)
    table = table.rename_columns([own if own and name == WEIGHT else name for name in table.column_names])
    return table.append_column(pa.field(WEIGHT, pa.float32()), pa.array(weights)).select(columns)
