"""Defines mixtures. A mixture combines rows of several datasets in the given proportions, and has its own folder."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.manifest import SCHEMA_VERSION
from pairmill.schemas.s3 import SECRET, S3Config
from pairmill.schemas.settings import Settings, Uri
from pairmill.schemas.subset import SUBSET_NAME, Subset

MIXTURE_RECORD = "mixture.json"

MAX_SOURCES = 100

_SOURCE = re.compile(rf"(?P<dataset>.+?)(?::(?P<subset>{SUBSET_NAME}))?=(?P<share>[^=]+)")


class MixSource(Settings):
    """One of the datasets of a mixture."""

    dataset: Uri
    """Output folder of a build or embed."""
    subset: Annotated[str, Field(pattern=f"^{SUBSET_NAME}$")] | None = None
    """Name of a subset. None: all kept rows."""
    share: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    """Share of the samples of an epoch. Only ratios matter: 0.7 and 0.3 are the same as 70 and 30."""

    @classmethod
    def parse(cls, text: str) -> "MixSource":
        """Parse `DATASET[:SUBSET]=SHARE`. Raises ValueError."""
        found = _SOURCE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not DATASET=SHARE or DATASET:SUBSET=SHARE, such as out:clean=0.7")
        try:
            share = float(found["share"])
        except ValueError:
            raise ValueError(f"{text!r}: the share {found['share']!r} is not a number") from None
        try:
            return cls(dataset=found["dataset"], subset=found["subset"], share=share)
        except ValidationError as error:
            problem = error.errors()[0]
            shown = "" if problem["type"] == SECRET else f" (got {text!r})"
            message = problem["msg"].removeprefix("Value error, ")
            raise ValueError(f"{problem['loc'][0]}: {message}{shown}") from None

    def __str__(self) -> str:
        return self.dataset if self.subset is None else f"{self.dataset}:{self.subset}"


class MixJob(Settings):
    """`pairmill select MIX --mix ..`: combines several datasets in the given proportions, to be read as one."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    output: Uri
    """New folder or `s3://bucket/...` for the mixture."""
    sources: Annotated[list[MixSource], Field(min_length=1, max_length=MAX_SOURCES)]
    """The datasets. A row that is in several datasets is taken from the first of them."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Samples per epoch. None: as many as possible without repeating a row."""
    repeat: bool = False
    """With `count`: repeat rows of a dataset that has too few for its share."""
    dedup: list[Literal["url", "sha256", "phash"]] = ["sha256"]
    """Columns to compare in addition to `uid`: rows of different datasets with equal values in one of them are
    duplicates."""
    partial: bool = False
    """Mix finished shards even if others are missing."""
    seed: int = 0
    """Seed of the sample that is drawn from each dataset."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        named = [str(source) for source in self.sources]
        if len(set(named)) < len(named):
            repeated = next(name for name in named if named.count(name) > 1)
            raise ValueError(f"sources: {repeated} is listed more than once; list it once, with its total share")
        if self.repeat and self.count is None:
            raise ValueError("repeat needs count: without it, a mixture is never so large that rows must repeat")
        return self


class MixtureSource(Settings):
    """The part of a mixture that comes from one dataset."""

    name: str
    """Name of the dataset in the column `dataset`."""
    dataset: str
    """Absolute path or URL."""
    subset: str | None
    share: float
    subset_attempt: str | None
    """The `attempt` of the subset that the rows came from, if any."""
    samples: int
    """Samples per epoch. If rows are repeated, this is an average and can exceed the number of rows."""
    rows: Subset
    """The rows that were taken, and what happened to the other rows, in the form of a subset, except that the files are
    in the mixture's folder."""


class Mixture(Settings):
    """`mixture.json`, written last: the mixture exists if and only if this file does."""

    schema_version: int = SCHEMA_VERSION
    attempt: str
    count: int | None
    repeat: bool
    dedup: list[Literal["url", "sha256", "phash"]]
    partial: bool
    seed: int
    sources: list[MixtureSource]
    versions: dict[str, str]

    @property
    def num_rows(self) -> int:
        """Number of distinct rows."""
        return sum(source.rows.rows_out for source in self.sources)

    @property
    def num_samples(self) -> int:
        """Samples per epoch."""
        return sum(source.samples for source in self.sources)


def source_names(sources: Sequence[MixSource]) -> list[str]:
    """A short, unique name for each source: its folder's name, with the subset if needed, or else the whole path."""
    folders = [source.dataset.rstrip("/").rpartition("/")[2] or source.dataset for source in sources]
    with_subsets = [
        name if source.subset is None else f"{name}:{source.subset}"
        for name, source in zip(folders, sources, strict=True)
    ]
    every = [folders, with_subsets, [str(source) for source in sources]]
    return next(names for names in every if len(set(names)) == len(names) or names is every[-1])
