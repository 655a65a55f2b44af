"""Defines which rows count as known: those of an earlier dataset, or of a list. Also the record of the filters that a
build made from them."""

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.settings import Settings, Uri

ValueKind = Literal["uid", "url", "sha256", "md5", "phash", "pdq"]
"""What rows are recognized by. The order is that of the checks in a build."""

EmbeddingKind = Literal["embedding", "text_embedding"]
"""The embeddings of pictures, or of captions."""

DEFAULT_THRESHOLD = 0.95

MAX_DISTANCES: dict[str, int] = {"phash": 8, "pdq": 31}
"""The perceptual hashes, and the greatest distance in bits at which they can be compared."""

DEFAULT_KINDS: tuple[ValueKind, ...] = ("url", "sha256")


def _as_list(values: object) -> object:
    return [values] if isinstance(values, str) else values


class _Known(Settings):
    """Rows of an earlier dataset, or of a list. A path alone stands for all defaults."""

    path: Uri
    """Output folder of a build or embed; or a list: `.txt`, `.csv`, `.tsv` (also `.gz`) or `.parquet`, or a folder or
    glob of lists. In a text file, each line is one value."""
    column: str | None = None
    """Column of a list with the values. None: the column with the name of the kind of value."""
    rows: Literal["pairs", "kept", "all"] = "pairs"
    """Which rows of a dataset count: its pairs, only those that its build kept, or also its rejects."""
    subset: str | None = None
    """Only the rows in this subset of the dataset."""
    distance: Annotated[int, Field(ge=0, le=31)] = 0
    """For `phash` (up to 8) and `pdq` (up to 31), the greatest distance in bits at which pictures count as the same."""

    @property
    def kinds(self) -> Sequence[str]:
        """What known rows are recognized by, if it is given."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, os.PathLike)) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        limits = [MAX_DISTANCES[kind] for kind in self.kinds if kind in MAX_DISTANCES]
        if self.distance and not limits:
            raise ValueError("distance works only with by: phash and by: pdq")
        if limits and self.distance > min(limits):
            raise ValueError(f"distance: at most {min(limits)} with by: {', '.join(self.kinds)}")
        if self.column is not None and len(self.kinds) != 1:
            raise ValueError("column: say with by which one kind of value the column has")
        if self.subset is not None and self.rows != "pairs":
            raise ValueError("give either rows or a subset")
        return self


class KnownRows(_Known):
    """Rows of an earlier dataset, or of a list, that a build recognizes. A path alone stands for all defaults."""

    by: Annotated[list[ValueKind], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """What known rows are recognized by. None: url and sha256, as far as the list has them; in a text file, url."""

    @property
    def kinds(self) -> Sequence[str]:
        """What known rows are recognized by, if it is given."""
        return self.by or ()


class Known(_Known):
    """Drop the rows that another dataset or a list has. A path alone stands for all defaults."""

    by: Annotated[list[Literal[ValueKind, EmbeddingKind]], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """What known rows are recognized by; a row that is known by any of these is dropped. None: url and sha256, as far
    as the list has them; in a text file, url. `embedding` and `text_embedding`: by the cosine of a model's
    embeddings."""
    model: str | None = None
    """Alias of the model whose embeddings are compared; None: the only one. Both datasets must have embeddings by the
    same weights."""
    other_model: str | None = None
    """Alias of the same model in the other dataset. None: the same alias."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """With embeddings, drop rows whose cosine with any known row is at least this, 0.95 by default."""

    @property
    def kinds(self) -> Sequence[str]:
        """What known rows are recognized by, if it is given."""
        return self.by or ()

    @property
    def values(self) -> KnownRows | None:
        """The part that compares values; None: only embeddings are compared."""
        kinds = None if self.by is None else [kind for kind in self.by if kind in get_args(ValueKind)]
        if kinds == []:
            return None
        return KnownRows.model_validate(
            {"by": kinds, **self.model_dump(include={"path", "column", "rows", "subset", "distance"})}
        )

    @property
    def embeddings(self) -> Sequence[EmbeddingKind]:
        """The embeddings to compare."""
        return [kind for kind in get_args(EmbeddingKind) if kind in self.kinds]

    @model_validator(mode="after")
    def _embeddings_are_compared(self) -> Self:
        given = [name for name in ("model", "other_model", "threshold") if getattr(self, name) is not None]
        if given and not self.embeddings:
            raise ValueError(f"{given[0]} works only with by: {' or '.join(get_args(EmbeddingKind))}")
        if self.embeddings and self.values is None:
            if self.column is not None:
                raise ValueError("column is of lists, which have no embeddings; leave it out")
            if self.rows == "all":
                raise ValueError("rows: all adds the rejects, which have no embeddings; use pairs or kept")
        return self


class KnownReport(Settings):
    """What a step compared the rows with."""

    values: dict[str, int]
    """Kind -> number of different known values, or of embeddings."""
    unused: dict[str, int] = {}
    """Reason -> lines or rows of the list without a value."""
    blake2b: str
    """BLAKE2b-128 of all these values; repetitions and order do not matter, except the order of embeddings."""
    earlier_blake2b: str | None = None
    """That of the values when the subset was selected before, if they were others."""


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
    first_bit: int = 0
    """With a distance: there is one file for each of `distance` + 1 bands of bits, in which the hashes are rotated so
    that the band comes first. Two hashes within the distance have at least one band in common."""
    values: int
    """Number of different values."""
    file: DataFile


class KnownRecord(Settings):
    """`known/known.json` in an output folder, written last and create-only: the filters that every run uses."""

    schema_version: int = SCHEMA_VERSION
    attempt: str
    sources: list[KnownSource]
    filters: list[KnownFilter]
