"""Finds the types of a dataset's carried columns across all its files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pairmill.pipeline.source.files import InputFile, SourceError
from pairmill.pipeline.source.texts import plain_type
from pairmill.pipeline.source.types import Fit, common_type, fit, values_fit


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The common type of a carried column so far, and the first file that has the column."""

    type: pa.DataType
    uri: str
    found: pa.DataType
    """The column's type in the file `uri`."""


def add_type(types: dict[str, ColumnType], name: str, file: InputFile) -> None:
    """Widen the type of a column to fit this file's values. Raises SourceError, naming both files."""
    kind = file.schema.field(name).type
    if name in types and kind.equals(types[name].type):  # the usual case, and there may be a million files
        return
    found = plain_type(kind)
    known = types.setdefault(name, ColumnType(found, file.uri, found))
    common = common_type(known.type, found)
    if common is None:
        raise _conflict(name, known, file, found)
    types[name] = replace(known, type=common)


def check_values(types: dict[str, ColumnType], inputs: Sequence[InputFile]) -> None:
    """Raise SourceError, naming both files, if a column's common type cannot store every value of some file.

    Reads values only where the types alone do not settle it.
    """
    for file in inputs:
        for name in file.schema.names:
            if name not in types or file.schema.field(name).type.equals(types[name].type):
                continue
            found = plain_type(file.schema.field(name).type)
            if fit(types[name].type, found) is Fit.DEPENDS and not values_fit(
                file.uri, file.files, name, types[name].type
            ):
                other = next(each for each in inputs if _type_of(each, name) not in (None, found))
                known = replace(types[name], uri=other.uri, found=_type_of(other, name))
                raise _conflict(name, known, file, found, ", and no type can store the values of both")


def _type_of(file: InputFile, name: str) -> pa.DataType | None:
    return plain_type(file.schema.field(name).type) if name in file.schema.names else None


def _conflict(name: str, known: ColumnType, file: InputFile, found: pa.DataType, why: str = "") -> SourceError:
    return SourceError(
        f"column {name!r} is {known.found} in {known.uri} but {found} in {file.uri}{why}: "
        f"write both files with the same type, or build two outputs"
    )
