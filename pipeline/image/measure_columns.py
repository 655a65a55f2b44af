"""Turns the measures of pictures into columns of scores."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pairmill.pipeline.image.measures import Measured
from pairmill.schemas.job.pictures import PictureScore


def measure_columns(name: str, settings: PictureScore, measured: Sequence[Measured | None]) -> dict[str, pa.Array]:
    """The columns of one score. `measured`: the measures of each row; None makes all of the row's columns null."""
    schema = settings.columns(name)
    return {
        column: pa.array([None if each is None else each[suffix] for each in measured], schema.field(column).type)
        for suffix, column in settings.column_names(name).items()
    }


def append_measures(
    table: pa.Table, scores: Mapping[str, PictureScore], measured: Sequence[Measured | None]
) -> pa.Table:
    """Append the columns of these scores (name -> settings). `measured`: the measures of each row; None makes all of
    the row's columns null."""
    for name, settings in scores.items():
        for column, values in measure_columns(name, settings, measured).items():
            table = table.append_column(column, values)
    return table
