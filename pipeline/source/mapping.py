"""Defines the meaning of the input's columns and the source of its pictures. Both are decided once, when the input is
first planned."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

_COLUMN = "column:"

ALTERNATES_COLUMN = "image_alternates"
"""In indexes and in flight: further pictures with the same key, as structs of STORED. The first picture that decodes
is used."""


@dataclass(frozen=True)
class WebPictures:
    """Pictures on the web: a URL per row."""


@dataclass(frozen=True)
class IndexedPictures:
    """Pictures in tars or folders. An index, made during planning, records the location of each picture."""


@dataclass(frozen=True)
class PairsPictures:
    """Pictures of another pairmill output, whose pairs files record the location of each picture."""


@dataclass(frozen=True)
class ColumnPictures:
    """Pictures in a column of the input's Parquet files."""

    column: str


@dataclass(frozen=True)
class NoPictures:
    """No pictures, only captions."""


ON_THE_WEB = WebPictures()

PictureSource = WebPictures | IndexedPictures | PairsPictures | ColumnPictures | NoPictures

_NAMES: dict[PictureSource, str | None] = {
    ON_THE_WEB: None,
    IndexedPictures(): "index",
    PairsPictures(): "pairs",
    NoPictures(): "none",
}
"""The name of each source in plan files. A column of pictures is `column:NAME`."""


@dataclass(frozen=True)
class ColumnMapping:
    """The roles and types of the columns. Picklable.

    Column names are those of the input files. `extra` is the schema of the columns carried to the output, with output
    names, all nullable. `extra_columns` are their input names, in the same order.
    """

    url_column: str
    caption_column: str | None
    uid_column: str | None
    sha256_column: str | None
    license_column: str | None
    extra: pa.Schema
    extra_columns: tuple[str, ...]
    pictures: PictureSource = ON_THE_WEB
    shared_urls: str | None = None
    """File in the output folder with the URLs and captions that several input pictures share; None if there are
    none. See `shared_urls.py`."""
    has_partitions: bool = False
    """Whether folder names such as `lang=en` count as columns. False in plans made before 0.2."""
    json_fields: Mapping[str, str] = field(default_factory=dict)
    """For tars and folders: field of the JSON beside a picture -> its name in `extra_columns`."""
    has_checksums: bool = False
    """Whether the pairs have the column CHECKSUM. Plans made before 0.2 do not record it."""

    @property
    def has_captions(self) -> bool:
        """Whether the dataset has captions (some may still be null)."""
        return self.caption_column is not None

    def output_name(self, column: str | None) -> str | None:
        """Output name of a carried input column; None if `column` is None."""
        return None if column is None else str(self.extra.names[self.extra_columns.index(column)])

    def carried(self, wanted: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
        """Output names of the columns in `images.carry`, which may be given by their input or output names.

        Raises ValueError for a column that is not carried.
        """
        if wanted == "all":
            return tuple(self.extra.names)
        names = dict(zip(self.extra_columns, self.extra.names, strict=True))
        for name in wanted:
            if name not in names and name not in self.extra.names:
                known = ", ".join(self.extra_columns) or "none"
                raise ValueError(f"images.carry: no carried column {name!r}; the input has: {known}")
        return tuple(dict.fromkeys(names.get(name, name) for name in wanted))

    def to_json(self) -> dict[str, object]:
        """Plain values for the plan file."""
        pictures = self.pictures
        name = f"{_COLUMN}{pictures.column}" if isinstance(pictures, ColumnPictures) else _NAMES[pictures]
        extra = base64.b64encode(self.extra.serialize().to_pybytes()).decode()
        values = {**self.__dict__, "extra_columns": list(self.extra_columns), "extra": extra, "pictures": name}
        if self.shared_urls is None:
            del values["shared_urls"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ColumnMapping":
        """Parse the result of `to_json`. Raises KeyError or ValueError for anything else."""
        extra = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["extra"])))
        pictures = _picture_source(values.get("pictures"))
        return cls(**{**values, "extra": extra, "extra_columns": tuple(values["extra_columns"]), "pictures": pictures})


def _picture_source(name: str | None) -> PictureSource:
    if name is not None and name.startswith(_COLUMN):
        return ColumnPictures(name.removeprefix(_COLUMN))
    for source, known in _NAMES.items():
        if known == name:
            return source
    raise ValueError(f"unknown picture source: {name!r}")
