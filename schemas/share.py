"""Defines how many rows a step keeps: a fraction or a count."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from pairmill.schemas.settings import Settings

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Share(Settings):
    """How many rows a step keeps: a fraction of its input rows, or a count."""

    fraction: Fraction | None = None
    """Fraction of the rows to keep, rounded to the nearest row."""
    count: Count | None = None
    """Number of rows to keep."""

    @model_validator(mode="after")
    def _either_fraction_or_count(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either a fraction or a count")
        return self

    def rows_to_keep(self, num_rows: int) -> int:
        """The number of rows to keep out of `num_rows`. A fraction is rounded to the nearest row."""
        count = self.count if self.count is not None else math.floor((self.fraction or 0.0) * num_rows + 0.5)
        return min(num_rows, count)
