"""Defines the step `repeat` and its report."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from pairmill.schemas.settings import Settings

MAX_WEIGHT = 10_000.0
"""The highest weight a row can have. A higher one is more likely a mistake than intended."""


class Repeat(Settings):
    """Give each row a weight: how many times it is shown per epoch. A row with a weight of 2.3 is shown twice, and a
    third time in 3 of 10 epochs. Rows with a weight of 0 or less, null or NaN are dropped.

    With `by`, the weights are those of soft cap sampling (FLYT, https://arxiv.org/abs/2503.08805, section 3.3): rows
    are drawn in proportion to e^by, and each draw of a row lowers its `by` by alpha. For many small draws, the expected
    number of draws has a closed form, n = ln(1 + alpha s e^by) / alpha, where s makes the sum equal `samples`.
    """

    by: str | None = None
    """A column or numeric expression: the logarithm of the row's relative chance of being drawn."""
    weight: str | None = None
    """Instead of `by`: a column or numeric expression that is the weight itself, such as `least(4, 1 + 3 * score)`."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """With `by`: the sum of all weights, which is about the number of samples per epoch."""
    mean: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """With `by`, instead of `samples`: the mean weight of the rows whose `by` is a number."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.15
    """With `by`: how much each draw of a row lowers its `by`. Higher values make the weights more even."""
    max: Annotated[float, Field(gt=0, le=MAX_WEIGHT)] | None = None
    """The highest weight. With `by`, the other rows are shown more often to make up for it."""

    @field_validator("by", "weight", mode="before")
    @classmethod
    def _is_no_number(cls, value: object) -> object:
        if isinstance(value, (int, float)):
            raise ValueError("write an expression with a column, such as least(4, 1 + 3 * score)")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.by is None) == (self.weight is None):
            raise ValueError("give either by, for a soft cap, or weight, an expression that is the weight")
        if self.by is not None and (self.samples is None) == (self.mean is None):
            raise ValueError("by needs either samples, the sum of all weights, or mean")
        if self.weight is not None and (self.samples is not None or self.mean is not None or self.alpha != 0.15):
            raise ValueError("samples, mean and alpha work only with by")
        return self


class RepeatReport(Settings):
    """The weights that a step `repeat` assigned."""

    weight_sum: float
    """The sum of the weights of the remaining rows: the samples per epoch, unless a later step drops rows."""
    highest: float
    rows_below_one: int
    """Rows that are not shown in every epoch."""
