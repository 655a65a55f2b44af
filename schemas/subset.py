"""Defines subsets of a finished dataset: the job that selects rows, and the record of what each step did."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairmill.schemas.balance import BalanceReport
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.known import KnownReport
from pairmill.schemas.leak import LeakReport
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.repeat import RepeatReport
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.select_steps import SelectStep
from pairmill.schemas.settings import GrowingSettings, Settings, Uri

SUBSET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"


class SelectJob(Settings):
    """`pairmill select`: which rows of a finished dataset belong to a subset."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed."""
    name: Annotated[str, Field(pattern=f"^{SUBSET_NAME}$")]
    """Name of the subset, which is written to `subsets/NAME/`."""
    rows: Literal["kept", "pairs"] = "kept"
    """Rows to start from: `kept` (status ok), or all `pairs`, including those that the build's score rules dropped."""
    partial: bool = False
    """Select from the finished shards even if others are missing."""
    steps: list[SelectStep] = []
    """Steps to run in this order, after a dedup by uid."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _one_weight_per_row(self) -> Self:
        if sum(step.repeat is not None for step in self.steps) > 1:
            raise ValueError("steps: only one step can be a repeat, because a row has one weight")
        return self


class Cluster(Settings):
    """A group of duplicates, identified by the row that is kept."""

    rows: int
    """Size of the group, including the row that is kept."""
    row_id: str
    url: str | None


class UidFileReport(Settings):
    """The file of uids that a step selected from."""

    num_uids: int
    """Number of distinct uids."""
    blake2b: str
    """BLAKE2b-128 of the file."""
    earlier_blake2b: str | None = None
    """The `blake2b` of the previous selection of this subset, if it was different."""


class StepReport(GrowingSettings):
    """What one step did."""

    later = frozenset({"uids", "balance", "repeat", "not_compared", "low_quality", "known", "leak", "without_score"})

    step: str
    rows_in: int
    rows_out: int
    threshold: float | None = None
    """`top` only: the lowest score that is kept. None if all rows are kept."""
    without_score: int = 0
    """`top` only: rows that are kept although their score is null or NaN, because fewer rows have a score than are
    kept."""
    largest_clusters: list[Cluster] = []
    """`dedup` only: the groups with the most rows."""
    not_compared: int = 0
    """`dedup` only: rows that were not compared, because they have no value, no usable embedding or, by pdq, no hash of
    64 hex digits."""
    low_quality: int = 0
    """`dedup` by pdq with a distance only: rows whose hash has low quality; only rows with equal hashes are their
    duplicates."""
    uids: UidFileReport | None = None
    """`uids` only: the file. Its uids in excess of `rows_out` match no row that remained after the earlier steps."""
    balance: BalanceReport | None = None
    """`balance` only: the entries and the curve."""
    repeat: RepeatReport | None = None
    """`repeat` only: the weights."""
    known: KnownReport | None = None
    """`known` only: what the rows were compared with."""
    leak: LeakReport | None = None
    """`leak` only: the overlap."""


class SubsetFiles(Settings):
    """The files of a subset that cover one chunk of shards."""

    rows: DataFile
    """Shard, row and uid of each selected row."""
    shards: DataFile
    """For each shard, its generation and, for each row, the step that dropped it."""


class Subset(GrowingSettings):
    """`subsets/NAME/selection.json`, written last: the subset exists if and only if this file does."""

    later = frozenset({"partial", "weight_sum", "overlaps"})

    schema_version: int = SCHEMA_VERSION
    name: str
    attempt: str
    rows: Literal["kept", "pairs"]
    partial: bool = False
    """Whether the rows were selected from the finished shards even if others were missing."""
    steps: list[SelectStep]
    shards: int
    rows_in: int
    rows_out: int
    weight_sum: float | None = None
    """The sum of the weights of all rows, if a step assigned weights. It is about the number of samples per epoch."""
    reports: list[StepReport]
    generations_blake2b: str
    """State of the dataset: a hash of (shard, generation, BLAKE2b of the pairs file) for all shards, in order."""
    files: list[SubsetFiles]
    """One entry per chunk, in shard order."""
    overlaps: list[DataFile] = []
    """One file per step `leak`: the evaluation pictures that it found in the dataset."""
    versions: dict[str, str]
