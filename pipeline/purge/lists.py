"""Reads lists of values to withdraw: text files with one value per line, or Parquet files with a column named after the
kind of value."""

import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_remote
from pairmill.pipeline.common.foreign_parquet import PARQUET_MAGICS, open_parquet
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.purge.keys import canonical
from pairmill.schemas.errors import JobError
from pairmill.schemas.purge import LIST_KINDS, ListKind

_BATCH_ROWS = 65_536
_PART_OF_HASH = re.compile(r"(?=.*\d)[0-9a-f-]{8,}")
"""A truncated hash, or one of another kind."""
_URL = re.compile(r"//|:[/\\]")
"""Matches in every URL, even in one that cannot be requested."""
_MORE_THAN_A_URL = re.compile(r"""^["'<`]|["'>`]$|\t|,["']|["'],""")
"""A quoted URL, or a line of CSV or TSV. A comma alone proves nothing: it is common within URLs."""

Values = Mapping[ListKind, frozenset[str]]
"""Kind -> values in canonical form (see `keys.py`)."""

NOUNS: dict[ListKind, str] = {
    "uid": "uid",
    "url": "URL",
    "host": "host",
    "sha256": "SHA-256 hash",
    "pdq": "PDQ hash",
}
_EXPECTED: dict[ListKind, str] = {
    "uid": "32 hex digits or a UUID",
    "url": "a URL alone, without quotation marks or other fields",
    "host": "a host such as example.com, without a scheme, port or path",
    "sha256": "64 hex digits",
    "pdq": "a PDQ hash of 64 hex digits",
}


def read_list(files: Files, path: str, kind: ListKind) -> frozenset[str]:
    """The values of a list, in canonical form. Raises JobError, naming the line, for a value that is not of this kind.

    Text: UTF-8, optionally `.gz`; empty lines and lines that start with # are skipped. Parquet: the column named like
    `kind`, as text; uids can also be 16 bytes. Null is skipped.
    """
    found = set[str]()
    for where, text in _texts(files, path, (kind,)):
        value = _canonical(kind, where[0], text)
        if value is None:
            shown = clean_text(text, 60) or ""
            raise JobError(f"{path}, {where[1]}: {shown!r} is not {_EXPECTED[kind]}")
        found.add(value)
    if not found:
        raise JobError(f"{path} has no values; it needs {_EXPECTED[kind]} on each line")
    return frozenset(found)


def read_any_list(files: Files, path: str) -> dict[ListKind, frozenset[str]]:
    """The values of a list, by kind. In text, 32 hex digits or a UUID are a uid, 64 hex digits are both a SHA-256 and a
    PDQ hash, a value with `//` or `:/` is a URL, and anything else is a host, unless it looks like part of a hash. In
    Parquet, the column names are the kinds. Raises JobError."""
    found: dict[ListKind, set[str]] = {kind: set() for kind in LIST_KINDS}
    for (column, place), text in _texts(files, path, LIST_KINDS):
        kinds = _kinds_of(text) if column is None else (column,)
        matches = {kind: value for kind in kinds if (value := _canonical(kind, column, text)) is not None}
        if not matches:
            shown = clean_text(text, 60) or ""
            raise JobError(
                f"{path}, {place}: {shown!r} is not a complete uid, URL, host or hash; if it is meant as one, use a "
                "Parquet file with a column `uid`, `url`, `host`, `sha256` or `pdq`"
            )
        for kind, value in matches.items():
            found[kind].add(value)
    if not any(found.values()):
        raise JobError(f"{path} has no values")
    return {kind: frozenset(values) for kind, values in found.items() if values}


def _canonical(kind: ListKind, column: ListKind | None, text: str) -> str | None:
    """The canonical form of a value of a list; None if it is not of this kind. Unlike a cell of Parquet, a line of text
    can have quotation marks around the value, or other fields, so that nothing would match it."""
    if kind == "url" and column is None and _MORE_THAN_A_URL.search(text):
        return None
    return canonical(kind, text)


def _kinds_of(text: str) -> tuple[ListKind, ...]:
    """The kinds of value that `text` can be."""
    if _URL.search(text):
        return ("url",)
    hashes: tuple[ListKind, ...] = ("uid", "sha256", "pdq")
    if _PART_OF_HASH.fullmatch(text.strip().lower()) or any(canonical(kind, text) for kind in hashes):
        return hashes
    return ("host",)


_Place = tuple[ListKind | None, str]
"""(the column, if there are columns; a description of the position, for messages)."""


def _texts(files: Files, path: str, kinds: tuple[ListKind, ...]) -> Iterator[tuple[_Place, str]]:
    if is_remote(path) and not path.startswith(S3_SCHEMES):
        raise JobError(f"{path} cannot be read: use a local file or s3://")
    try:
        with files.open(path) as file:
            is_parquet = file.read(4) in PARQUET_MAGICS
        yield from _parquet_texts(files, path, kinds) if is_parquet else _lines(files, path)
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or clean_text(str(error))
        raise JobError(f"{path} cannot be read: {reason}") from None


def _lines(files: Files, path: str) -> Iterator[tuple[_Place, str]]:
    for number, line in enumerate(files.read_text_lines(path), start=1):
        text = line.strip()
        if "\0" in text:  # in UTF-16, for example, which would match nothing
            raise JobError(
                f"{path}, line {number:,}: contains a zero byte; save the list in UTF-8 or, with gzip, as .gz"
            )
        if text and not text.startswith("#"):
            yield (None, f"line {number:,}"), text


def _parquet_texts(files: Files, path: str, kinds: tuple[ListKind, ...]) -> Iterator[tuple[_Place, str]]:
    with files.open(path) as file, open_parquet(file) as parquet:
        names = [kind for kind in kinds if kind in parquet.schema_arrow.names]
        if not names:
            raise JobError(f"{path} has no column {' or '.join(f'`{kind}`' for kind in kinds)}")
        row = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            batch.validate(full=True)  # for example, checks that all text is UTF-8
            for name in names:
                for offset, value in enumerate(_as_text(batch.column(name))):
                    if value is not None:
                        yield (name, f"row {row + offset:,}, column `{name}`"), value
            row += batch.num_rows


def _as_text(column: pa.Array) -> list[str | None]:
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    if pa.types.is_fixed_size_binary(values.type):
        return [None if value is None else value.hex() for value in values.to_pylist()]
    texts: list[str | None] = values.cast(pa.string()).to_pylist()
    return texts
