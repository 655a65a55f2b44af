"""Defines what the page shows, and renders it as HTML.

The page is one file that runs no script and loads nothing. The template escapes all text; if anything slipped through,
the Content-Security-Policy would still forbid everything except inline styles and pictures inside the file.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.losses import in_words
from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.pages.visible_text import visible_text
from pairmill.pipeline.report import axis
from pairmill.pipeline.report.balances import BalanceTable
from pairmill.pipeline.report.charts import BarChart
from pairmill.pipeline.report.funnel import Funnel
from pairmill.pipeline.report.grids import Grid
from pairmill.pipeline.report.leaks import LeakGroup
from pairmill.pipeline.report.rows import Rows, ShownRow, text_of
from pairmill.pipeline.report.sections import Counts, HostRow, ScorePanel, TimeLine

MAX_VALUE_CHARS, MAX_NAME_CHARS, MAX_CAPTION_CHARS = 1_000, 80, 160
MAX_TABLES_BYTES = 3_000_000
"""Maximum size of the columns of all rows on a page, as HTML."""
MAX_ROW_BYTES, MAX_COLUMNS, _MIN_VALUE_CHARS = 12_000, 100, 60
"""Maximum size of the columns of one row, as HTML; maximum number of columns; number of characters that are never cut
from a value."""
_TABLE_ROW_BYTES = len('<tr><th scope="row"></th><td></td></tr>\n')


@dataclass(frozen=True)
class Fact:
    """A name and a value in the header."""

    name: str
    value: str


@dataclass(frozen=True)
class GridGroup:
    """Grids under one heading."""

    title: str
    about: str
    grids: Sequence[Grid]


@dataclass(frozen=True)
class Side:
    """One of two datasets or subsets that are compared."""

    name: str
    funnel: Funnel
    chart: BarChart | None
    sampled: str = ""
    """`sampled 1,000 of 9,000 rows`; empty if the chart does not come from a sample."""


@dataclass(frozen=True)
class Comparison:
    """Two subsets, or two datasets, side by side."""

    title: str
    sides: Sequence[Side]
    lines: Sequence[str]
    """Exact differences, as text."""
    grids: Sequence[Grid]


@dataclass(frozen=True)
class Page:
    """Everything that a report shows."""

    eyebrow: str
    title: str
    written: str
    facts: Sequence[Fact]
    details: Sequence[Fact]
    notes: Sequence[str]
    """Remarks on what is cut or missing."""
    sampled: str
    """`sampled 1,000 of 9,000 rows`; empty if all rows were read."""
    funnels: Sequence[Funnel]
    series: Sequence[str]
    """The names of the chosen pairs and of the other pairs."""
    score: str | None
    """The score that cards show."""
    scores: Sequence[ScorePanel] = ()
    grid_groups: Sequence[GridGroup] = ()
    comparison: Comparison | None = None
    shapes: Sequence[BarChart] = ()
    counts: Sequence[Counts] = ()
    balances: Sequence[BalanceTable] = ()
    leaks: Sequence[LeakGroup] = ()
    hosts: Sequence[HostRow] = ()
    more_hosts: str = ""
    time_line: TimeLine | None = None
    rows: Rows = field(default_factory=Rows)
    no_scores: str = ""
    """Why there are no scores to show."""
    empty: str = ""
    """Why there are no rows to show."""

    @property
    def shown_rows(self) -> Sequence[ShownRow]:
        """All rows with cards."""
        return list(self.rows.found.values())


def render(page: Page) -> str:
    """The page as HTML."""
    template = environment().get_template("report.html.j2")
    row_bytes = min(MAX_ROW_BYTES, MAX_TABLES_BYTES // max(len(page.shown_rows), 1))
    return template.render(
        page=page,
        title=f"{page.title}: pairmill report",
        values_of=lambda row: _values(row, row_bytes),
        score_of=_score,
        words=in_words,
        caption_chars=MAX_CAPTION_CHARS,
        value_chars=MAX_VALUE_CHARS,
        name_chars=MAX_NAME_CHARS,
        box=axis,
    )


def _values(row: ShownRow, max_bytes: int) -> Mapping[str, str]:
    """Column -> text, without columns that are null. Long rows are cut, so that no dataset makes a huge page: once
    half of `max_bytes` is used, values are cut short."""
    found: dict[str, str] = {}
    used, present = 0, {name: value for name, value in row.values.items() if value is not None}
    for name, value in list(present.items())[:MAX_COLUMNS]:
        text = _cut_html(text_of(value), max_bytes // 2 - used)
        used += _html_bytes(name[:MAX_NAME_CHARS]) + _html_bytes(text) + _TABLE_ROW_BYTES
        if used > max_bytes:
            break
        found[name] = text
    if more := len(present) - len(found):
        found["…"] = counted(more, "more column")
    return found


def _cut_html(text: str, room: int) -> str:
    """The text, cut to MAX_VALUE_CHARS characters and about `room` bytes of HTML, but never to fewer than
    _MIN_VALUE_CHARS characters."""
    short = _cut(text, MAX_VALUE_CHARS)
    if (size := _html_bytes(short)) <= room:
        return short
    return _cut(text, max(len(short) * max(room, 0) // size, _MIN_VALUE_CHARS))


def _html_bytes(text: str) -> int:
    """The number of bytes of the text in HTML, where a character takes between one and six bytes."""
    return len(html.escape(visible_text(text, len(text))).encode())


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return f"{text[: max_chars - 40]}… ({len(text):,} characters)"


def _score(row: ShownRow, name: str | None) -> str:
    """The row's score as a card shows it."""
    value = row.values.get(name) if name else None
    if not isinstance(value, float) or not math.isfinite(value):
        return ""
    return f"{value:.3f}".replace("-", "−")
