"""Defines the schemas of exports: subsets written as files for other tools."""

from typing import Annotated, Literal

from pydantic import Field

from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import CONFIG_VERSION
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.settings import GrowingSettings, Settings, Uri
from pairmill.schemas.subset import SUBSET_NAME

ExportFormat = Literal["webdataset", "parquet", "clip-retrieval", "datacomp"]


class ExportJob(Settings):
    """`pairmill export`: writes the rows of a subset in a fixed order, in files of `samples_per_file` samples."""

    config_version: Literal[1] = CONFIG_VERSION
    """Version of the job file's format."""
    dataset: Uri
    """Output folder of a build or embed, or folder of a mixture."""
    subset: Annotated[str, Field(pattern=f"^{SUBSET_NAME}$")] | None = None
    """Name of a subset made by `pairmill select`. Required unless `dataset` is a mixture."""
    output: Uri
    """New folder or `s3://bucket/...` for the files."""
    format: ExportFormat = "webdataset"
    """File format and layout."""
    samples_per_file: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Samples per tar or Parquet file; the last file contains the remainder."""
    shuffle_seed: int | None = 0
    """Seed of the shuffle across shards. None: dataset order, which `clip-retrieval` and `datacomp` always use."""
    models: list[str] | None = None
    """Aliases of the models whose embeddings to write. None: all. Only for `clip-retrieval` and `datacomp`."""
    carry: list[str] | Literal["all"] | None = None
    """Input columns to write to the `.json` files of `webdataset`, or `all`. None: the columns of the dataset's
    `images.carry`."""
    caption: str = "original"
    """Caption to write: `original`, the name of a score with captions written by a model, or `best`, the caption with
    the highest similarity."""
    repeat: Literal["copies", "weight"] | None = None
    """How to write a subset with weights: `copies` writes a row as often as the first epoch shows it (in `datacomp`,
    its uid in `subset.npy`), `weight` writes it once, with a column `weight`. None: copies for `webdataset` and
    `datacomp`."""
    s3: S3Config = S3Config()
    run: RunConfig = RunConfig()


LAYOUT = 2
"""Version of the layout of exported files. Version 1 (before pairmill 0.2) stored a corpus's pictures unchanged and
derived DataComp column names from the model aliases."""


class ExportRecord(GrowingSettings):
    """`.pairmill/export.json` in the output: the export that the folder belongs to. No other export may use the
    folder."""

    later = frozenset({"repeat", "captions", "added"})

    schema_version: int = SCHEMA_VERSION
    dataset: str
    subset: str
    """Empty for a mixture."""
    subset_attempt: str
    format: ExportFormat
    samples_per_file: int
    shuffle_seed: int | None
    columns: list[str]
    """Dataset columns that the files are made from."""
    rows: int
    num_files: int
    layout: int = 1
    caption: str = "original"
    repeat: Literal["copies", "weight"] | None = None
    """How the weights of the subset were written, if it has any."""
    captions: list[str] = []
    """The columns of captions that `best` compares with the original. Every part compares the same ones, even if more
    were added meanwhile. Empty for any other `caption`."""
    added: dict[str, str] = {}
    """The added models and scores that the files are made from -> their fingerprints; in a mixture, each name follows
    that of its dataset."""


class ExportedPart(Settings):
    """`.pairmill/manifests/K.json`: marks part K as complete. The format determines how many files a part has."""

    number: int
    rows: int
    files: dict[str, DataFile]
    """Path relative to the output -> file."""
    image_endings: list[str] = []
    """File name extensions of the part's pictures, sorted."""


class PartRemoval(Settings):
    """`.pairmill/removals/K.json`: exists while a purge rewrites part K, so that another purge can finish it."""

    rows: int
    """Rows of the part before the purge."""
    gone: list[int]
    """Indices of the rows that the purge removes."""
