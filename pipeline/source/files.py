"""Which input files there are, and what is in them.

A dataset is one or more files: Parquet, CSV, TSV, JSON lines or plain lists of URLs (all but Parquet also .gz).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files, join
from pairmill.schemas.errors import FailureKind, PairmillError

Kind = Literal["parquet", "csv", "tsv", "jsonl", "text", "index"]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    ".txt": "text",
}
SUFFIXES = (*_KINDS, *(f"{suffix}.gz" for suffix, kind in _KINDS.items() if kind != "parquet"))

MALFORMED_COLUMN = "__pairmill_malformed"
"""Only in converted files: null, or why the row could not be read, with the beginning of its text."""

_SHOWN_COLUMNS = 30


class SourceError(PairmillError, ValueError):
    """An input cannot be used as it is; the message names the file and says what to do."""

    kind = FailureKind.INPUT


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file, and what its footer (Parquet), header (CSV, TSV) or a first pass (JSON lines) says."""

    uri: str
    kind: Kind
    schema: pa.Schema
    num_rows: int | None
    """None: known only when the file is converted."""
    files: Files
    list_columns: frozenset[str] = frozenset()
    """JSON lines: columns with a list in at least one row."""


def kind_of(uri: str) -> Kind:
    """The format that a file's name says. Raises SourceError for any other name."""
    name = PurePosixPath(uri.lower())
    suffix = name.suffixes[-2] if name.suffix == ".gz" and len(name.suffixes) > 1 else name.suffix
    if not name.name.endswith(SUFFIXES):
        raise SourceError(f"{uri}: cannot tell the format from the name; known endings are {', '.join(SUFFIXES)}")
    return _KINDS[suffix]


def list_inputs(paths: Iterable[str], without: str, files: Files) -> list[str]:
    """Absolute paths or URLs of all input files: in the order of `paths`, sorted within each, each file once.

    `without`: the output folder, which may lie within an input folder; nothing in it is input.
    """
    found: dict[str, None] = {}
    for path in paths:
        try:
            uris = files.expand(path, SUFFIXES)
        except FileNotFoundError as error:
            raise SourceError(f"source.paths: {error}") from error
        uris = [uri for uri in uris if not uri.startswith(f"{without.rstrip('/')}/")]
        kinds = {kind_of(uri): uri for uri in uris}
        if len(kinds) > 1 and "text" in kinds:  # most likely a readme, whose lines are no URLs
            raise SourceError(
                f"source.paths: {path} holds {kinds['text']} beside other formats, and a text file is read as a list "
                f"of URLs; name what you mean with a glob, such as {join(path, '*.parquet')}"
            )
        found.update(dict.fromkeys(uris))
    if not found:
        raise SourceError(f"source.paths: nothing there but the output folder {without}")
    return list(found)


def inspect_parquet(uri: str, files: Files) -> InputFile:
    """Schema and number of rows from the footer. Raises SourceError for what is no whole Parquet file."""
    try:
        with files.open(uri) as file, pq.ParquetFile(file) as parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (FileNotFoundError, PermissionError) as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{uri}: not a whole Parquet file (half-written, cut or damaged?): {error}") from error
    if len(set(schema.names)) != len(schema.names):
        raise SourceError(f"{uri}: two columns share a name: {shown(schema.names)}")
    return InputFile(uri, "parquet", schema, num_rows, files)


def decode_lossy(raw: pa.Array) -> pa.Array:
    """A binary array as strings: bytes that are not UTF-8 become U+FFFD, null stays null."""
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return pa.array(texts, pa.string())


def shown(names: Sequence[str]) -> str:
    """Column names for an error message, not too many."""
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(repr(name[:80]) for name in names[:_SHOWN_COLUMNS]) or "none") + more
