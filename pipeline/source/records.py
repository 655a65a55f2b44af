"""Parses a stream of text lines into records: URLs, CSV and TSV records, JSON objects.

No line raises an error: an unreadable record carries the reason. Bytes are passed on unchanged, whether or not they
are valid UTF-8.
"""

import codecs
import csv
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pairmill.pipeline.common.text import DETAIL_CHARS, clean_text, counted, utf8_bytes
from pairmill.pipeline.source import text_file

_MAX_READINGS = 4
"""A line that has been read this many times as part of other records must be a record by itself. Otherwise, hostile
quotes could make every record extend to the end of the file, and a megabyte would take an hour."""

_with_literals = json.JSONDecoder(parse_int=str.encode, parse_float=str.encode).decode
"""Numbers stay bytes, as written, because Python's floats would change them: 0.12345678901234567890, 1e400."""
_scalar_to_json = json.JSONEncoder(ensure_ascii=False).encode


class Record(NamedTuple):
    """One row of a text file."""

    values: list[Any] | None
    """bytes, None, or (JSON) a list of these, in column order. None if there is a `problem`."""
    problem: str | None
    """Why there are no values, and the beginning of the text; at most 200 characters."""
    num_bytes: int


def url_records(lines: Iterator[bytes]) -> Iterator[Record]:
    """One URL per line, stripped. Empty lines are skipped. A byte order mark may begin any line: several lists may have
    been joined."""
    for line in lines:
        if url := line.removeprefix(codecs.BOM_UTF8).strip():
            yield Record([url], None, len(line)) if len(line) <= text_file.MAX_RECORD_BYTES else _too_long(line)


def csv_header(lines: Iterator[bytes], delimiter: str) -> list[bytes] | None:
    """The fields of the first record; None for an empty file. Raises csv.Error if it cannot be read."""
    reader = csv.reader(_PhysicalLines(lines), delimiter=delimiter, strict=True)
    header = next((fields for fields in reader if fields), None)
    return None if header is None else [name.encode("latin-1") for name in header]


def csv_records(
    lines: Iterator[bytes], delimiter: str, num_columns: int, is_row: Callable[[list[str]], bool] | None = None
) -> Iterator[Record]:
    """The records, quoted as in RFC 4180. `lines` starts after the header. `is_row`: whether the fields of a line look
    like those of a row, so such a line is unlikely to be part of a caption.

    If the quotes do not match, or the number of fields is wrong, the record's first line becomes a record by itself,
    and parsing continues with the next line. So a stray quote loses one row, not everything up to the next quote. In
    TSV, where quotes are mostly text, such a line is read literally if that gives the right number of fields. A TSV
    record of several lines is also treated this way if a later line looks like a row, because then the quotes in the
    first line are stray too.
    """
    physical = _PhysicalLines(lines)
    reader = csv.reader(physical, delimiter=delimiter, strict=True)
    while True:
        fields, problem = _next_fields(reader, physical)
        if fields is None and problem is None:
            return
        if fields == []:
            continue
        is_tsv = delimiter == "\t"
        if fields is None or len(fields) != num_columns or (is_tsv and _is_several(physical, num_columns, is_row)):
            problem = problem or f"{counted(len(fields or []), 'field')}, not {num_columns}"
            line = physical.put_back()
            fields = _split_literally(line) if is_tsv else None
            if fields is None or len(fields) != num_columns:
                yield _problem(problem, line.encode("latin-1"))
                continue
        yield Record([field.encode("latin-1") for field in fields], None, physical.num_bytes)


def _next_fields(reader: Iterator[list[str]], physical: "_PhysicalLines") -> tuple[list[str] | None, str | None]:
    """The next record's fields, or why they cannot be read; (None, None) at the end. A blank line has no fields."""
    physical.begin()
    try:
        return next(reader, None), None
    except csv.Error as error:
        return None, str(error)


def _is_several(physical: "_PhysicalLines", num_columns: int, is_row: Callable[[list[str]], bool] | None) -> bool:
    """Whether the lines of a TSV record look like several records: the first line and at least one other have all
    fields and look like rows. A quoted caption with line breaks hardly ever looks like that."""
    if is_row is None or len(physical.taken) < 2:
        return False
    first, *others = (len(fields) == num_columns and is_row(fields) for fields in map(_split_literally, physical.taken))
    return first and any(others)


def _split_literally(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


class _PhysicalLines:
    """The lines that csv.reader reads. All lines of a record but the first can be put back, to be read again."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), text_file.MAX_RECORD_BYTES))  # process-wide; 128 KB by default
        self._lines = lines
        self._put_back: list[tuple[str, int]] = []  # (line, how often it was put back), next line last
        self._taken: list[tuple[str, int]] = []
        self.num_bytes = 0

    def __iter__(self) -> "_PhysicalLines":
        return self

    def __next__(self) -> str:
        if self._taken and self._taken[0][1] >= _MAX_READINGS:
            raise csv.Error("a quote that is not closed")
        # Latin-1 maps each byte to one character, so any bytes survive the round trip.
        line, readings = self._put_back.pop() if self._put_back else (next(self._lines).decode("latin-1"), 0)
        self._taken.append((line, readings))
        self.num_bytes += len(line)
        if self.num_bytes > text_file.MAX_RECORD_BYTES:
            raise csv.Error(f"longer than {text_file.MAX_RECORD_BYTES} bytes")
        return line

    @property
    def taken(self) -> list[str]:
        """The lines of this record."""
        return [line for line, _ in self._taken]

    def begin(self) -> None:
        """Start a new record."""
        self._taken, self.num_bytes = [], 0

    def put_back(self) -> str:
        """Put back all lines of this record but the first, and return that one."""
        self._put_back.extend((line, readings + 1) for line, readings in reversed(self._taken[1:]))
        line, _ = self._taken[0]
        self.num_bytes = len(line)
        return line


def _literal_if_unusual(text: str) -> float | bytes:
    value = float(text)
    return value if repr(value) == text else text.encode()


def _integer_or_literal(text: str) -> int | bytes:
    try:
        return int(text)
    except ValueError:  # more digits than Python's limit
        return text.encode()


_with_unusual_literals = json.JSONDecoder(parse_float=_literal_if_unusual).decode
_with_long_integers = json.JSONDecoder(parse_float=_literal_if_unusual, parse_int=_integer_or_literal).decode


def parse_json(text: str) -> Any:
    """Like `json.loads`, but a number that Python would write differently is bytes, as written. Raises ValueError or
    RecursionError."""
    try:
        return _with_unusual_literals(text)
    except ValueError:  # perhaps only because of an integer with thousands of digits
        return _with_long_integers(text)


def json_text(value: Any) -> str:
    """JSON text of a value that `parse_json` may have returned. Raises ValueError or RecursionError."""
    try:
        return _scalar_to_json(value)
    except TypeError:  # bytes; only Python can write them, which takes ten times as long
        return _to_json(value)


def json_objects(
    lines: Iterator[bytes], decode: Callable[[str], Any] = _with_literals
) -> Iterator[tuple[dict[str, object] | None, bytes]]:
    """(object, line) for each line that is not blank. The object is None if the line is not a JSON object. Unless
    `decode` says otherwise, numbers are bytes. If an object has a key twice, the last value counts."""
    for line in lines:
        line = line.removeprefix(codecs.BOM_UTF8)  # as in `url_records`
        if not line.strip():
            continue
        try:
            value = _parse(line, decode) if len(line) <= text_file.MAX_RECORD_BYTES else None
        except (ValueError, RecursionError):  # not JSON, or thousands of brackets
            value = None
        yield (value if isinstance(value, dict) else None), line


def _parse(line: bytes, decode: Callable[[str], Any]) -> Any:
    value = decode(line.decode("utf-8", "surrogateescape"))
    if isinstance(value, dict) and not (line.isascii() and b"\\u" not in line):
        return {_raw(key).decode("utf-8", "replace"): item for key, item in value.items()}  # keys are column names
    return value


def json_records(
    lines: Iterator[bytes], names: list[str], list_names: frozenset[str], caption: str | None = None
) -> Iterator[Record]:
    """The values of the keys `names`, as lists for those in `list_names`. Values other than text and null become JSON
    text, with numbers as they are written. A `caption` that is or contains an object, or is a nested list, makes its
    row malformed, because JSON is useless as a caption."""
    for value, line in json_objects(lines):
        if value is None:
            yield _problem("not a JSON object", line) if len(line) <= text_file.MAX_RECORD_BYTES else _too_long(line)
            continue
        if (kind := _not_a_caption(value.get(caption) if caption is not None else None)) is not None:
            yield _problem(f"the caption is {kind}", line)
            continue
        if caption is not None and isinstance(value.get(caption), (float, list)):
            value[caption] = _nan_to_null(value[caption])
        try:
            values = [(_as_list if name in list_names else _raw_or_null)(value.get(name)) for name in names]
        except RecursionError:  # nesting that can be parsed, but is too deep to serialize
            yield _problem("nested too deeply", line)
            continue
        yield Record(values, None, len(line))


def _not_a_caption(value: Any) -> str | None:
    """Why a value is useless as a caption: it is or contains an object, or is a nested list. None if it is usable."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) for item in items):
        return "an object"
    return "a list in a list" if any(isinstance(item, list) for item in items) else None


def is_nan(value: Any) -> bool:
    """Whether this is NaN, which is how pandas and Python write a missing caption (img2dataset#46)."""
    return isinstance(value, float) and math.isnan(value)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_to_null(item) for item in value]
    return None if is_nan(value) else value


def _as_list(value: Any) -> list[bytes | None] | None:
    if value is None:
        return None
    return [_raw_or_null(item) for item in (value if isinstance(value, list) else [value])]


def _raw_or_null(value: Any) -> bytes | None:
    return None if value is None else _raw(value)


def _to_json(value: Any) -> str:
    """JSON text. Only containers need Python: their numbers are bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return f"[{', '.join(map(_to_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_scalar_to_json(key)}: {_to_json(item)}' for key, item in value.items())}}}"
    return _scalar_to_json(value)


def _raw(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return utf8_bytes(value if isinstance(value, str) else _to_json(value))


def _too_long(line: bytes) -> Record:
    return _problem(f"longer than {text_file.MAX_RECORD_BYTES} bytes", line)


def _problem(reason: str, raw: bytes) -> Record:
    text = raw[: 8 * DETAIL_CHARS].decode("utf-8", "replace")
    return Record(None, clean_text(f"{reason}: {text}") or reason, len(raw))
