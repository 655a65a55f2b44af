"""Defines subsets of a finished dataset: the steps that select rows, and the record of what each step did."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.settings import Settings, Uri

SUBSET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"

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


class SelectStep(Settings):
    """One step of a select job; exactly one of the fields is set."""

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

    @model_serializer(mode="wrap")
    def _without_uids(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Earlier versions know no `uids`."""
        values: dict[str, object] = serialize(self)
        if self.uids is None:
            values.pop("uids", None)
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> "SelectStep":
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(
                "a step is one of where, top, dedup, sample and uids; write each step as a separate list item"
            )
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


class SelectJob(Settings):
    """`pairmill select`: which rows of a finished dataset belong to a subset."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed."""
    name: Annotated[str, Field(pattern=f"^{SUBSET_NAME}$")]
    """Name of the subset, which is written to `subsets/NAME/`."""
    rows: Literal["kept", "pairs"] = "kept"
    """Which rows to start from: `kept` (status ok), or all `pairs`, including those that the build's score rules
    dropped."""
    partial: bool = False
    """Select from the finished shards even if others are missing."""
    steps: list[SelectStep] = []
    """Steps, run in this order after a dedup by uid."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()


class Cluster(Settings):
    """A group of duplicates, identified by the row that is kept."""

    rows: int
    """Size of the group, including the row that is kept."""
    row_id: str
    url: str | None


class UidFileReport(Settings):
    """The file of uids that a step selected from."""

    num_uids: int
    """Number of different uids."""
    blake2b: str
    """BLAKE2b-128 of the file."""
    earlier_blake2b: str | None = None
    """That of the file when the subset was selected before, if it was another one."""


class StepReport(Settings):
    """What one step did."""

    step: str
    rows_in: int
    rows_out: int
    threshold: float | None = None
    """`top` only: the lowest score that is kept. None if all rows are kept."""
    largest_clusters: list[Cluster] = []
    """`dedup` only: the groups with the most rows."""
    uids: UidFileReport | None = None
    """`uids` only: the file. Uids beyond `rows_out` are in no row that the earlier steps left."""

    @model_serializer(mode="wrap")
    def _without_uids(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Earlier versions know no `uids`."""
        values: dict[str, object] = serialize(self)
        if self.uids is None:
            values.pop("uids", None)
        return values


class SubsetFiles(Settings):
    """The files of a subset that cover one chunk of shards."""

    rows: DataFile
    """Shard, row and uid of each selected row."""
    shards: DataFile
    """For each shard, its generation and the step that dropped each row."""


class Subset(Settings):
    """`subsets/NAME/selection.json`, written last: the subset exists if and only if this file does."""

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
    """State of the dataset: a hash of (shard, generation, BLAKE2b of the pairs file) for all shards, in order."""
    files: list[SubsetFiles]
    """One entry per chunk, in shard order."""
    versions: dict[str, str]
