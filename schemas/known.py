"""Defines which rows count as known, namely those of an earlier dataset or of a list, and the record of the filters
that a build makes from them."""

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.settings import GrowingSettings, Settings, Uri

ValueKind = Literal["uid", "url", "sha256", "md5", "phash", "pdq"]
"""The kinds of values by which rows are recognized, in the order of the checks in a build."""

EmbeddingKind = Literal["embedding", "text_embedding"]
"""The embeddings of pictures or of captions."""

DEFAULT_THRESHOLD = 0.95

MAX_DISTANCES: dict[str, int] = {"phash": 8, "pdq": 31}
"""Perceptual hashes -> the maximum distance, in bits, at which they can be compared."""

DEFAULT_KINDS: tuple[ValueKind, ...] = ("url", "sha256")


def _as_list(values: object) -> object:
    return [values] if isinstance(values, str) else values


class _Known(Settings):
    """Rows of an earlier dataset or of a list. A path alone sets `path` and leaves the other settings at their
    defaults."""

    path: Uri
    """Output folder of a build or embed; or a list: `.txt`, `.csv`, `.tsv` (also `.gz`) or `.parquet`, or a folder or
    glob of lists. In a text file, each line is one value."""
    column: str | None = None
    """Column of a list that contains the values. None: the column named after the kind of value."""
    rows: Literal["pairs", "kept", "all"] = "pairs"
    """Which rows of a dataset count: its pairs, only those that its build kept, or also its rejects."""
    subset: str | None = None
    """Only the rows in this subset of the dataset."""
    distance: Annotated[int, Field(ge=0, le=31)] = 0
    """For `phash` (up to 8) and `pdq` (up to 31), the maximum distance in bits at which pictures count as the same."""

    @property
    def kinds(self) -> Sequence[str]:
        """The values of `by`; empty if it is not given."""
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
            raise ValueError(f"distance must be at most {min(limits)} with by: {', '.join(self.kinds)}")
        if self.column is not None and len(self.kinds) != 1:
            raise ValueError("column needs by with one kind of value, the kind that the column contains")
        if self.subset is not None and self.rows != "pairs":
            raise ValueError("give either rows or a subset")
        return self


class KnownRows(_Known):
    """Rows of an earlier dataset or of a list that a build recognizes. A path alone sets `path` and leaves the other
    settings at their defaults."""

    by: Annotated[list[ValueKind], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """Kinds of values by which known rows are recognized. None: url and sha256, if the list has them; for a text file,
    url."""

    @property
    def kinds(self) -> Sequence[str]:
        """The values of `by`; empty if it is not given."""
        return self.by or ()


class Known(_Known):
    """Drop the rows that are in another dataset or a list. A path alone sets `path` and leaves the other settings at
    their defaults."""

    by: Annotated[list[Literal[ValueKind, EmbeddingKind]], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """How known rows are recognized; a row is dropped if any of these matches. None: url and sha256, if the list has
    them; for a text file, url. `embedding` and `text_embedding` compare a model's embeddings by their cosine."""
    model: str | None = None
    """Alias of the model whose embeddings are compared. None: the dataset's only model. Both datasets must have
    embeddings from the same weights."""
    other_model: str | None = None
    """Alias of the same model in the other dataset. None: the same alias."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """With embeddings, drop rows whose cosine with any known row is at least this, 0.95 by default."""

    @property
    def kinds(self) -> Sequence[str]:
        """The values of `by`; empty if it is not given."""
        return self.by or ()

    @property
    def values(self) -> KnownRows | None:
        """The settings for comparing values. None: only embeddings are compared."""
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
                raise ValueError("column is only for lists, which have no embeddings; leave it out")
            if self.rows == "all":
                raise ValueError("rows: all adds the rejects, which have no embeddings; use pairs or kept")
        return self


class KnownReport(GrowingSettings):
    """The known rows that a step compared its rows with."""

    later = frozenset({"not_compared"})

    values: dict[str, int]
    """Kind -> number of distinct known values, or number of embeddings."""
    unused: dict[str, int] = {}
    """Reason -> number of lines or rows of the list without a value."""
    not_compared: dict[str, int] = {}
    """Kind -> number of remaining rows without such a value or a usable embedding, which were not compared by it."""
    blake2b: str
    """BLAKE2b-128 of all these values. Repetitions do not matter, nor does the order, except that of embeddings."""
    earlier_blake2b: str | None = None
    """The `blake2b` of the previous selection of this subset, if it was different."""


class KnownSource(Settings):
    """The content read from one dataset or list."""

    known: KnownRows
    is_dataset: bool
    fingerprint: str
    """Fingerprint of the content: a hash of the states of a dataset's shards, or of the fingerprints of the files."""
    values: dict[ValueKind, int]
    """Kind -> number of values, including repeated ones."""
    unused: dict[str, int]
    """Reason -> number of lines or table rows without a value."""


class KnownFilter(Settings):
    """A file of sorted keys: one kind of value from all lists and datasets of a job."""

    kind: ValueKind
    distance: int = 0
    first_bit: int = 0
    """With a distance, the first bit of the file's band. The bits of the hashes are divided into `distance` + 1 bands,
    and each band has a file in which the hashes are rotated so that the band comes first. Two hashes within the
    distance have at least one band in common."""
    values: int
    """Number of distinct values."""
    file: DataFile


class KnownRecord(Settings):
    """`known/known.json` in an output folder, written last and create-only: the filters that every run uses."""

    schema_version: int = SCHEMA_VERSION
    attempt: str
    sources: list[KnownSource]
    filters: list[KnownFilter]
