"""Defines which rows count as known: those of an earlier dataset, or of a list. Also the record of the filters that a
build made from them."""

import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.settings import Settings, Uri

ValueKind = Literal["uid", "url", "sha256", "md5", "phash"]
"""What rows are recognized by. The order is that of the checks in a build."""

DEFAULT_KINDS: tuple[ValueKind, ...] = ("url", "sha256")


def _as_list(values: object) -> object:
    return [values] if isinstance(values, str) else values


class KnownRows(Settings):
    """Rows of an earlier dataset, or of a list."""

    path: Uri
    """Output folder of a build or embed; or a list: `.txt`, `.csv`, `.tsv` (also `.gz`) or `.parquet`, or a folder or
    glob of lists. In a text file, each line is one value."""
    by: Annotated[list[ValueKind], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """What known rows are recognized by. None: url and sha256, as far as the list has them; in a text file, url."""
    column: str | None = None
    """Column of a list with the values. None: the column with the name of the kind of value."""
    rows: Literal["pairs", "kept", "all"] = "pairs"
    """Which rows of a dataset count: its pairs, only those that its build kept, or also its rejects."""
    subset: str | None = None
    """Only the rows in this subset of the dataset."""
    distance: Annotated[int, Field(ge=0, le=8)] = 0
    """For `phash`, the greatest distance in bits at which pictures count as the same."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        """A path alone stands for all defaults."""
        return {"path": value} if isinstance(value, (str, os.PathLike)) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "KnownRows":
        kinds = self.by or []
        if self.distance and "phash" not in kinds:
            raise ValueError("distance works only with by: phash")
        if self.column is not None and len(kinds) != 1:
            raise ValueError("column: say with by which one kind of value the column has")
        if self.subset is not None and self.rows != "pairs":
            raise ValueError("give either rows or a subset")
        return self


class KnownSource(Settings):
    """What was read from one dataset or list."""

    known: KnownRows
    is_dataset: bool
    fingerprint: str
    """Of the content: a hash of the states of a dataset's shards, or of the fingerprints of the files."""
    values: dict[ValueKind, int]
    """Kind -> number of values, repeated ones included."""
    unused: dict[str, int]
    """Reason -> lines, or rows of tables, without a value."""


class KnownFilter(Settings):
    """A file of sorted keys: one kind of value from all lists and datasets of a job."""

    kind: ValueKind
    distance: int = 0
    values: int
    """Number of different values."""
    file: DataFile


class KnownRecord(Settings):
    """`known/known.json` in an output folder, written last and create-only: the filters that every run uses."""

    schema_version: int = SCHEMA_VERSION
    attempt: str
    sources: list[KnownSource]
    filters: list[KnownFilter]
