"""Turns the filters in a page's address into one expression for `select`.

Parameters: `min:COLUMN`, `max:COLUMN`, `has:COLUMN`, `is:COLUMN` (repeatable), `null:COLUMN`, `where` (an expression),
`rows` (kept or pairs), `subset`, `sort`, `order`, `around`, `page`.
"""

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlencode

import pyarrow.compute as pc

from pairmill.pipeline.explore.summary import Column
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.subset import SUBSET_NAME

RowsOf = Literal["kept", "pairs"]
Order = Literal["best", "worst", "around", "random"]

_FILTERS = ("min", "max", "has", "is", "null")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?)?", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_TEXT = 1_000


class QueryError(PairmillError, ValueError):
    """A parameter of the address is invalid; the message says which one."""


@dataclass(frozen=True)
class Query:
    """What a gallery shows: the rows, their order, and the page."""

    rows: RowsOf = "kept"
    subset: str | None = None
    filters: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    """(min, max, has, is or null; column) -> values."""
    where: str = ""
    """An expression that must be true in addition to the filters."""
    sort: str = ""
    """The column that the rows are sorted by. Empty: the first score."""
    order: Order = "best"
    around: str = ""
    page: int = 1

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]]) -> "Query":
        """The query in the parameters of an address. Raises QueryError."""
        filters: dict[tuple[str, str], list[str]] = {}
        plain: dict[str, str] = {}
        for name, value in parameters:
            kind, colon, column = name.partition(":")
            if colon and kind in _FILTERS:
                if value.strip() or kind == "is":  # a choice can be an empty text
                    filters.setdefault((kind, column), []).append(value[:_MAX_TEXT])
            else:
                plain[name] = value
        rows, order = plain.get("rows") or "kept", plain.get("order") or "best"
        if rows not in ("kept", "pairs"):
            raise QueryError(f"rows: {rows!r} is neither kept nor pairs")
        if order not in ("best", "worst", "around", "random"):
            raise QueryError(f"order: {order!r} is not best, worst, around or random")
        page = plain.get("page") or "1"
        if not (page.isascii() and page.isdigit() and 1 <= len(page) <= 9 and int(page)):
            raise QueryError(f"page: {page[:20]!r} is not a page number")
        around = plain.get("around", "").strip()
        if around and not _NUMBER.fullmatch(around):
            raise QueryError(f"around: {around[:20]!r} is not a number")
        subset = plain.get("subset") or None
        if subset is not None and not re.fullmatch(SUBSET_NAME, subset):
            raise QueryError(f"subset: {subset[:40]!r} is not a valid subset name")
        return cls(
            rows=rows,  # type: ignore[arg-type]  # checked above
            subset=subset,
            filters=filters,
            where=plain.get("where", "").strip(),
            sort=plain.get("sort", ""),
            order=order,  # type: ignore[arg-type]
            around=around,
            page=int(page),
        )

    def values(self, kind: str, column: str) -> Sequence[str]:
        """The values of one filter."""
        return self.filters.get((kind, column), ())

    def value(self, kind: str, column: str) -> str:
        """The last value of one filter; empty if it is not set."""
        return (self.values(kind, column) or [""])[-1]

    def is_set(self, column: str) -> bool:
        """Whether a column has a filter."""
        return any(name == column for _, name in self.filters)

    def at_page(self, page: int) -> "Query":
        """The same query for another page."""
        return replace(self, page=page)

    def without(self, column: str) -> "Query":
        """The same query without the filters of a column."""
        return replace(self, filters={key: value for key, value in self.filters.items() if key[1] != column}, page=1)

    @property
    def address(self) -> str:
        """The parameters of the query's address, for use after `?`."""
        plain = {
            "rows": "" if self.rows == "kept" else self.rows,
            "subset": self.subset or "",
            "where": self.where,
            "sort": self.sort,
            "order": "" if self.order == "best" else self.order,
            "around": self.around,
            "page": "" if self.page == 1 else str(self.page),
        }
        filters = [(f"{kind}:{column}", value) for (kind, column), values in self.filters.items() for value in values]
        return urlencode([*filters, *((name, value) for name, value in plain.items() if value)])


def clauses(query: Query, columns: Mapping[str, Column]) -> list[str]:
    """The expressions that must all be true: those of the filters, then `where`. Raises QueryError."""
    names = dict.fromkeys(column for _, column in query.filters)
    found = []
    for name in names:
        if name not in columns:
            raise QueryError(f"there is no filter for a column {name!r}")
        found += _clauses(query, columns[name])
    return [*found, *([query.where] if query.where else [])]


def expression(parts: Sequence[str]) -> str:
    """One expression from clauses; empty if there are none."""
    if len(parts) < 2:
        return "".join(parts)
    return " and ".join(part if _is_simple(part) else f"({part})" for part in parts)


def reference(column: str) -> str:
    """The form in which an expression refers to a column."""
    if _IDENTIFIER.fullmatch(column) and not keyword.iskeyword(column):
        return column
    return f"col({literal(column)})"


def literal(text: str) -> str:
    """Text as a literal of an expression."""
    return repr(text)


def _is_simple(part: str) -> bool:
    """Whether a clause needs no parentheses when joined with `and`."""
    return bool(_SIMPLE.fullmatch(part))


_SIMPLE = re.compile(r"[A-Za-z0-9_]+ (>=|<=|==|!=|>|<) [0-9.eE+-]+|[A-Za-z0-9_]+ == (True|False|'[A-Za-z0-9_./ -]*')|"
                     r"contains\(lower\([A-Za-z0-9_]+\), '[^'\\]*'\)")  # fmt: skip


def _clauses(query: Query, column: Column) -> list[str]:
    name, found = reference(column.name), []
    for kind, sign in (("min", ">="), ("max", "<=")):
        if value := query.value(kind, column.name).strip():
            found.append(f"{name} {sign} {_bound(column, value)}")
    for value in query.values("has", column.name):
        found.append(f"contains(lower({name}), {literal(_lower(value.strip()))})")
    chosen = [_choice(column, value) for value in query.values("is", column.name)]
    options = [f"{name} == {chosen[0]}"] if len(chosen) == 1 else [f"{name} in [{', '.join(chosen)}]"] if chosen else []
    if query.value("null", column.name):
        options.append(f"{name} is None")
    return [*found, " or ".join(options)] if options else found


def _lower(text: str) -> str:
    """The text in lower case, as in the expression. Python's own function differs for `İ`, and for `Σ` at the end of a
    word, so such captions would not contain their own words."""
    return str(pc.utf8_lower(text).as_py())


def _bound(column: Column, value: str) -> str:
    if column.kind == "number" and _NUMBER.fullmatch(value):
        return _LEADING_ZEROS.sub("", value.removeprefix("+"), count=1)  # Python refuses 007
    if column.kind == "time" and _TIME.fullmatch(value):
        return literal(value)
    expected = "a date such as 2026-01-31" if column.kind == "time" else "a number"
    raise QueryError(f"{column.name}: {value[:40]!r} is not {expected}")


def _choice(column: Column, value: str) -> str:
    if column.is_boolean:
        if value not in ("True", "False"):
            raise QueryError(f"{column.name}: {value[:40]!r} is neither True nor False")
        return value
    return literal(value)
