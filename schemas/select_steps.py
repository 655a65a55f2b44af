"""Defines the steps of a select job."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from pairmill.schemas.settings import GrowingSettings, Settings, Uri

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Share(Settings):
    """How many rows a step keeps: a fraction of its input rows, or a count."""

    fraction: Fraction | None = None
    """Share of the rows to keep, rounded to the nearest row."""
    count: Count | None = None
    """Number of rows to keep."""

    @model_validator(mode="after")
    def _either_fraction_or_count(self) -> Self:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either a fraction or a count")
        return self

    def rows_to_keep(self, num_rows: int) -> int:
        """How many of `num_rows` rows to keep. A fraction is rounded to the nearest row."""
        count = self.count if self.count is not None else math.floor((self.fraction or 0.0) * num_rows + 0.5)
        return min(num_rows, count)


class Top(_Share):
    """The rows with the highest score. Null and NaN rank below every number; a hash of the uid breaks ties."""

    by: str
    """A column or a numeric expression such as `similarity_a + similarity_b`; `-width` keeps the narrowest pictures.
    Integers are compared exactly, decimals as the nearest float64."""


class Sample(_Share):
    """A random sample, by a hash of the uid and the seed. With the same seed, larger samples contain smaller ones."""

    seed: int = 0
    """Seed of the sample."""


class Dedup(Settings):
    """Keep one row of each group of duplicates. Null and NaN are duplicates of nothing."""

    by: str
    """Column whose equal values are duplicates: uid, url, sha256, phash, ..."""
    distance: Annotated[int, Field(ge=0, le=8)] = 0
    """For `by: phash`, the maximum distance in bits between duplicates. Candidate pairs are collected on one machine,
    26 bytes each; each additional bit of distance means more comparisons."""
    best: str | None = None
    """Keep the row with the highest value of this column or expression. None: the first row in dataset order."""

    @model_validator(mode="after")
    def _distance_needs_a_hash(self) -> "Dedup":
        if self.distance and self.by != "phash":
            raise ValueError("distance works only with by: phash, the only column of perceptual hashes")
        return self


class SelectStep(GrowingSettings):
    """One step of a select job; exactly one of the fields is set."""

    later = frozenset({"uids"})

    where: str | None = None
    """Keep rows for which this expression is true, such as `similarity >= 0.28 and width >= 200`. Null counts as
    false."""
    top: Top | None = None
    """Keep the rows with the highest score."""
    dedup: Dedup | None = None
    """Keep one row of each group of duplicates."""
    sample: Sample | None = None
    """Keep a random sample."""
    uids: Uri | None = None
    """Keep the rows whose uid is in the column `uid` of this Parquet file (local or `s3://`), such as the one that
    `pairmill search --save` writes. 32 hex digits or UUIDs; other columns are ignored."""

    @model_validator(mode="after")
    def _one_kind(self) -> "SelectStep":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            kinds = " and ".join(", ".join(type(self).model_fields).rsplit(", ", 1))
            raise ValueError(f"a step is one of {kinds}; write each step as a separate list item")
        return self

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    def __str__(self) -> str:
        step = getattr(self, self.kind)
        if isinstance(step, str):
            return f"{self.kind}: {step}"
        options = step.model_dump(exclude_defaults=True)
        by = {"by": options.pop("by")} if "by" in options else {}  # first, for the reader
        return f"{self.kind}: " + ", ".join(f"{name} {value}" for name, value in (by | options).items())
