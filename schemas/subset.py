"""A choice from a dataset: the steps that a person asks for, and the record of what came of them."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pairmill.schemas.jobs import CONFIG_VERSION, RunConfig, Uri
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.s3 import S3Config

SUBSET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Share(_Settings):
    """Either a fraction of the rows that come in, or a count."""

    fraction: Fraction | None = None
    """Share of the rows to keep, rounded to the nearest row."""
    count: Count | None = None
    """Number of rows to keep."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Any:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either a fraction or a count")
        return self

    def of(self, num_rows: int) -> int:
        """Rows to keep of `num_rows`: the fraction rounded to the nearest row, and never more than there are."""
        wanted = self.count if self.count is not None else math.floor((self.fraction or 0.0) * num_rows + 0.5)
        return min(num_rows, wanted)


class Top(_Share):
    """The rows with the highest score. Nulls and NaN rank below all numbers, equal scores by a hash of the uid."""

    by: str
    """A column, or an expression of numbers such as `similarity_a + similarity_b`; `-width` keeps the narrowest. Whole
    numbers beyond 2^53 are compared as the nearest float64."""


class Sample(_Share):
    """A random choice by a hash of the uid and the seed: of one seed, the smaller sample is part of the larger."""

    seed: int = 0
    """Seed of the random choice."""


class Dedup(_Settings):
    """One row of each group of equals. Null is equal to nothing."""

    by: str
    """Column whose equal values are duplicates: uid, url, sha256, phash, ..."""
    distance: Annotated[int, Field(ge=0, le=8)] = 0
    """For `by: phash`, the distance in bits up to which two rows are duplicates. The candidate pairs are gathered on
    one machine, 24 bytes each; with every bit of distance more rows are compared."""
    best: str | None = None
    """Keep the row with the highest value of this column or expression; None: the first in the dataset's order."""

    @model_validator(mode="after")
    def _distance_needs_a_hash(self) -> "Dedup":
        if self.distance and self.by != "phash":
            raise ValueError("distance is for by: phash, the one column that holds a perceptual hash")
        return self


class SelectStep(_Settings):
    """One step of a choice: exactly one of its kinds."""

    where: str | None = None
    """Keep rows for which this expression is true, such as `similarity >= 0.28 and width >= 200`. Null counts as
    false."""
    top: Top | None = None
    """Keep the rows with the highest score."""
    dedup: Dedup | None = None
    """Keep one row of each group of duplicates."""
    sample: Sample | None = None
    """Keep a random sample."""

    @model_validator(mode="after")
    def _one_kind(self) -> "SelectStep":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError("a step is one of where, top, dedup and sample; write each as a list item of its own")
        return self

    @property
    def kind(self) -> str | None:
        """Which of the four it is."""
        return next((name for name in type(self).model_fields if getattr(self, name) is not None), None)

    def __str__(self) -> str:
        value = getattr(self, self.kind or "")
        if isinstance(value, str):
            return f"{self.kind}: {value}"
        facts = value.model_dump(exclude_defaults=True)
        by = {"by": facts.pop("by")} if "by" in facts else {}
        return f"{self.kind}: " + ", ".join(f"{name} {fact}" for name, fact in (by | facts).items())


class SelectJob(_Settings):
    """`pairmill select`: which rows of a finished dataset to train on."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed."""
    name: Annotated[str, Field(pattern=f"^{SUBSET_NAME}$")]
    """Name of the subset, which is written to `subsets/NAME/`."""
    rows: Literal["kept", "pairs"] = "kept"
    """Which rows to start from: `kept` (status ok), or all `pairs`, including those that a score rule of the build
    refused."""
    partial: bool = False
    """Select from the finished shards although others are missing."""
    steps: list[SelectStep] = []
    """Steps, run in this order after a dedup by uid."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()


class StepReport(_Settings):
    """What one step did."""

    step: str
    rows_in: int
    rows_out: int
    threshold: float | None = None
    """Of `top`: the score of the last row that was kept."""
    largest_clusters: list[dict[str, Any]] = []
    """Of `dedup`: `rows` of the group, and `row_id` and `url` of the row that was kept."""


class Subset(_Settings):
    """`subsets/NAME/selection.json`, written last: the choice exists if and only if this file does."""

    schema_version: int = SCHEMA_VERSION
    name: str
    attempt: str
    rows: Literal["kept", "pairs"]
    steps: list[SelectStep]
    shards: int
    rows_in: int
    rows_out: int
    reports: list[StepReport]
    generations_blake2b: str
    """Over (shard, generation, BLAKE2b of its pairs file) in order: the state of the dataset that was chosen from."""
    files: list[dict[Literal["rows", "shards"], DataFile]]
    """Per stretch of shards: `rows` holds shard, row and uid of each chosen row, `shards` the generation and every
    row's fate."""
    versions: dict[str, str]
