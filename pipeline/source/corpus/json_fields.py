"""Collects the fields, except captions, of the JSON beside pictures: license, exif, scores and so on.

An index keeps them as text, and its footer lists them, so they become columns like those of Parquet, with types that
can store all values. Fields that only repeat the row's own caption, URL, uid or key are left out. So are large fields,
which would slow down every reader: segmentation annotations take a megabyte per picture.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pairmill.pipeline.source.records import json_text, parse_json

FIELDS_COLUMN = "__pairmill_json"
"""Only in indexes: the fields of a row as a JSON object."""
FIELDS_KEY = "pairmill_json_fields"
"""Key of FieldNotes in the footer of an index."""
MAX_FIELDS = 200
"""Maximum number of columns for JSON fields."""
MAX_NAME_CHARS = 200
"""Maximum length of a field's name. The name becomes that of a column, which the footer of every file repeats; longer
ones are most likely data, such as a dictionary of captions."""
MAX_FIELD_BYTES = 16 << 10
MAX_ROW_BYTES = 64 << 10

_EXACT = 1 << 53
"""Integers up to this are exact as doubles."""
_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "json": pa.string()}


@dataclass(slots=True)
class FieldNotes:
    """The fields of one index, or of several."""

    kinds: dict[str, set[str]] = field(default_factory=dict)
    """Name -> kinds of its values: bool, int, float, text, json, and big for integers that are not exact as doubles."""
    own: set[str] = field(default_factory=set)
    """Names of fields with a value that is in no other column of its row."""
    left_out: int = 0
    """Number of values left out because they are too large, too deeply nested or not UTF-8, because there are too many
    names, or because their name is empty, too long or, once made valid UTF-8, equal to another."""

    def keep(self, fields: Mapping[str, Any], repeated: Iterable[str | None]) -> str | None:
        """Record the fields of a row. Returns a JSON object of the fields to keep. `repeated`: the row's own texts,
        which a field may repeat."""
        kept, size, own = {}, 0, set(repeated)
        for raw_name, value in fields.items():
            name, text = _readable(raw_name), _json(value)
            is_nameless = name in kept or not self._has_room(name)
            if text is None or is_nameless or len(text) > min(MAX_FIELD_BYTES, MAX_ROW_BYTES - size):
                self.left_out += 1
                continue
            kept[name], size = value, size + len(text)
            kinds = self.kinds.setdefault(name, set())
            if value is not None:
                kinds.add(_kind(value))
                if not (isinstance(value, str) and value in own):
                    self.own.add(name)
        return _json(kept) if kept else None

    def _has_room(self, name: str) -> bool:
        return bool(name) and len(name) <= MAX_NAME_CHARS and (name in self.kinds or len(self.kinds) < MAX_FIELDS)

    def add(self, other: "FieldNotes") -> None:
        """Add the notes of another index."""
        for name, kinds in other.kinds.items():
            if self._has_room(name):
                self.kinds.setdefault(name, set()).update(kinds)
        self.own |= other.own
        self.left_out += other.left_out

    def columns(self) -> dict[str, pa.DataType]:
        """Name -> type, in the order of first appearance."""
        return {name: type_of(kinds) for name, kinds in self.kinds.items() if name in self.own or not kinds}

    def to_json(self) -> str:
        """JSON for the footer."""
        kinds = {name: sorted(kinds) for name, kinds in self.kinds.items()}
        return json.dumps({"kinds": kinds, "own": sorted(self.own), "left_out": self.left_out})

    @classmethod
    def from_json(cls, text: bytes | None) -> "FieldNotes":
        """Parse the result of `to_json`; None, from an index made before 0.2, has no fields."""
        if text is None:
            return cls()
        values = json.loads(text)
        kinds = {name: set(kinds) for name, kinds in values["kinds"].items()}
        return cls(kinds, set(values["own"]), values["left_out"])


def type_of(kinds: Iterable[str]) -> pa.DataType:
    """The type that can store values of all these kinds; text can store any value."""
    found = set(kinds)
    if found == {"int", "big"} or found == {"big"}:
        return pa.int64()
    if found == {"int", "float"}:
        return pa.float64()
    return _TYPES.get(next(iter(found)), pa.string()) if len(found) == 1 else pa.string()


def holds(kind: pa.DataType, kinds: Iterable[str]) -> bool:
    """Whether a column of this type can store values of these kinds exactly."""
    found = set(kinds)
    if pa.types.is_string(kind):
        return True
    return found <= ({"int", "float"} if pa.types.is_floating(kind) else {"int", "big"}) and not pa.types.is_boolean(
        kind
    )


def column_names(fields: Iterable[str], taken: Sequence[str]) -> dict[str, str]:
    """Field -> name of its column, with the prefix `json_` if the name is already taken."""
    names: dict[str, str] = {}
    for name in fields:
        column = name
        while column in taken or column in names.values():
            column = f"json_{column}"
        names[name] = column
    return names


def append_fields(table: pa.Table, columns: Mapping[str, tuple[str, pa.DataType]]) -> pa.Table:
    """The rows of an index with additional columns: field -> (name, type). Fields that a row lacks are null."""
    if not columns or FIELDS_COLUMN not in table.column_names:
        return table
    rows = [parse_json(text) if text else {} for text in table[FIELDS_COLUMN].to_pylist()]
    for name, (column, kind) in columns.items():
        values = [_as(row.get(name), kind) for row in rows]
        table = table.append_column(column, pa.array(values, kind))
    return table


def _as(value: Any, kind: pa.DataType) -> Any:
    if value is None or not pa.types.is_string(kind):
        return float(value) if value is not None and pa.types.is_floating(kind) else value
    return value if isinstance(value, str) else _json(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _EXACT:
            return "int"
        return "big" if -(1 << 63) <= value < 1 << 63 else "json"
    if isinstance(value, bytes):  # a number as written
        return "float" if math.isfinite(float(value)) else "json"
    return {float: "float", str: "text"}.get(type(value), "json")


def _json(value: Any) -> str | None:
    """JSON in valid UTF-8; None if the value cannot be written, for example because it is nested too deeply."""
    try:
        text = json_text(value)
        text.encode()
    except (RecursionError, ValueError):  # not UTF-8, or an integer with thousands of digits
        return None
    return text


def _readable(text: str) -> str:
    """A name as valid UTF-8: invalid bytes and lone surrogates are replaced."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
