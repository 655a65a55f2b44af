"""Explains errors in expressions: a message, carets below the faulty part, and the form that was probably meant."""

import ast
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from pairmill.pipeline.select.comparisons import is_number
from pairmill.schemas.errors import PairmillError

SHOWN_CHARS = 48
"""Characters of an expression to quote around the faulty part: few enough that the line and the carets below it fit
60 columns."""

_INDENT = "  "
_MEANT = {
    "&&": "and",
    "||": "or",
    "&": "and",
    "|": "or",
    "!": "not",
    "=": "==",
    "===": "==",
    "!==": "!=",
    "<>": "!=",
    "=>": ">=",
    "=<": "<=",
    "and": "and",
    "or": "or",
    "not": "not",
    "in": "in",
    "is": "is",
    "null": "None",
    "none": "None",
    "true": "True",
    "false": "False",
    "like": "contains(column, 'text')",
    "between": "1 <= column <= 2",
}
"""Operators and words of SQL and other languages (the case of words is ignored) -> how to write them here."""

_TOKEN = re.compile(
    r"""(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|(?P<operator>[=!<>&|]+(?:\s+=(?!=))?)|(?P<word>[^\W\d]\w*)"""
)


class ExpressionError(PairmillError, ValueError):
    """The expression cannot be parsed or does not fit the columns; the message quotes it and points at the problem."""


def require_columns(schema: pa.Schema, names: Iterable[str]) -> None:
    """Raise ExpressionError if the dataset lacks one of these columns."""
    for name in sorted(names):
        if name not in schema.names:
            raise ExpressionError(no_column(schema, name))


def no_column(schema: pa.Schema, name: str) -> str:
    """The message for a missing column, with the name that was probably meant."""
    if found := misspelt(name):
        meant = "for null, write `is None` or `is not None`" if found[2] == "None" else f"write {found[2]!r}"
        return f"there is no column {name!r}; {meant}"
    close = get_close_matches(name, schema.names, n=1)
    return f"there is no column {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def pointing(text: str, start: int, end: int, message: str) -> ExpressionError:
    """The error for text[start:end]: the message, the expression on a second line, and carets on a third."""
    first = max(0, min(start - SHOWN_CHARS // 2, len(text) - SHOWN_CHARS))
    shown = re.sub(r"\s", " ", text[first : first + SHOWN_CHARS])
    before, after = "... " * (first > 0), " ..." * (first + SHOWN_CHARS < len(text))
    carets = "^" * max(1, min(end, first + SHOWN_CHARS) - start)
    blanks = " " * (len(before) + start - first)
    return ExpressionError(f"{message}\n{_INDENT}{before}{shown}{after}\n{_INDENT}{blanks}{carets}")


def at_node(text: str, node: ast.AST, message: str) -> ExpressionError:
    """The error for a node of the tree parsed from `text`."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", 1)
    start = _place(text, first, getattr(node, "col_offset", 0))
    return pointing(text, start, _place(text, last, getattr(node, "end_col_offset", 0)), message)


def of_syntax(text: str, error: Exception) -> ExpressionError:
    """Convert an error from Python's parser. Suggests the right form if the text uses another language's."""
    if found := misspelt(text):
        start, end, meant = found
        return pointing(text, start, end, f"use {meant!r} instead of {text[start:end]!r}")
    message = f"cannot be parsed: {getattr(error, 'msg', error)}"
    if not isinstance(error, SyntaxError):
        return ExpressionError(f"{text[:SHOWN_CHARS]!r} {message}")
    start = _line_start(text, error.lineno or 1) + error.offset - 1 if error.offset else len(text)
    start = min(start, len(text))
    return pointing(text, start, start + 1, message)


def misspelt(text: str) -> tuple[int, int, str] | None:
    """(start, end, form that was probably meant) of the first operator or word that belongs to another language."""
    for token in _TOKEN.finditer(text):
        written = re.sub(r"\s", "", token.group())
        meant = None if token["text"] else _meant(written)
        if meant is not None and meant != token.group():
            return token.start(), token.end(), meant
    return None


def _meant(written: str) -> str | None:
    if written in (">=", "<=", "==", "!=", "<", ">"):
        return written
    found = _MEANT.get(written.lower())
    return written if found is not None and written == found.lower() == found else found


def kind_of(value: Any) -> str:
    """The everyday name for the type of a column or constant."""
    kind = value.type
    if pa.types.is_boolean(kind):
        return "true or false"
    if is_number(kind):
        return "a number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return "a duration" if pa.types.is_duration(kind) else "a time of day"
    if pa.types.is_null(kind):
        return "null in all rows"
    return "a time" if pa.types.is_temporal(kind) else f"a {kind}"


def mismatch(text: str, right: ast.expr, names: tuple[str, str], kinds: tuple[str, str]) -> ExpressionError:
    """The error for comparing operands of different kinds. `names`: as written in `text`."""
    hint = ""
    if isinstance(right, ast.Constant) and kinds == ("a number", "text"):
        has_digits = re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", str(right.value))
        hint = f"; without quotation marks it is a number: {str(right.value).strip()}" if has_digits else ""
    if isinstance(right, ast.Constant) and kinds == ("text", "a number"):
        hint = f"; as text it is {str(right.value)!r}"
    if sorted(kinds) == ["a duration", "a number"]:
        hint = "; write durations as '7 days' or '12 hours'"
    return at_node(text, right, f"{names[0]} is {kinds[0]}, and {names[1]} is {kinds[1]}{hint}")


def _place(text: str, line: int, column_bytes: int) -> int:
    """Convert a position from Python's parser, which counts UTF-8 bytes within a line, to an index into the text."""
    start = _line_start(text, line)
    return start + len(text[start:].encode()[:column_bytes].decode(errors="ignore"))


def _line_start(text: str, line: int) -> int:
    return sum(len(each) for each in text.splitlines(keepends=True)[: line - 1])
