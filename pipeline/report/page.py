"""The page: everything that it shows, and how it becomes HTML.

One file that runs no script and loads nothing. The template escapes all text; if anything slipped through, the
Content-Security-Policy would forbid everything but inline styles and pictures inside the file.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.report import charts
from pairmill.pipeline.report.charts import BarChart
from pairmill.pipeline.report.funnel import Funnel
from pairmill.pipeline.report.grids import Grid
from pairmill.pipeline.report.rows import Rows, ShownRow, text_of
from pairmill.pipeline.report.sections import Counts, HostRow, ScorePanel, TimeLine

MAX_VALUE_CHARS, MAX_CAPTION_CHARS = 1_000, 160
MAX_ROW_CHARS, MAX_COLUMNS, _MIN_VALUE_CHARS = 4_000, 100, 60
"""Of all values of a row together, as HTML; how many columns it shows; and what each value may have in any case."""


@dataclass(frozen=True)
class Fact:
    """A line of the header."""

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
    """Where the chart comes from a sample: `sampled 1,000 of 9,000 rows`."""


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
    """What is sampled, cut or missing."""
    sampled: str
    """Where exact counts end: `sampled 1,000 of 9,000 rows`; empty if all rows were read."""
    funnels: Sequence[Funnel]
    series: Sequence[str]
    """Names of the chosen pairs and of the others."""
    score: str | None
    """The score that cards show."""
    scores: Sequence[ScorePanel] = ()
    grid_groups: Sequence[GridGroup] = ()
    comparison: Comparison | None = None
    shapes: Sequence[BarChart] = ()
    counts: Sequence[Counts] = ()
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
    return template.render(
        page=page,
        title=f"{page.title}: pairmill report",
        values_of=_values,
        score_of=_score,
        words=words,
        caption_chars=MAX_CAPTION_CHARS,
        value_chars=MAX_VALUE_CHARS,
        box=charts,
    )


def words(name: str) -> str:
    """A status in words. The names of custom rules stay as they are."""
    status, colon, rule = name.partition(": ")
    return status.replace("_", " ") + colon + rule


def _values(row: ShownRow) -> Mapping[str, str]:
    """Column -> text, without columns that are null. Long rows are cut, so that no dataset makes a huge page."""
    found: dict[str, str] = {}
    room, present = MAX_ROW_CHARS, {name: value for name, value in row.values.items() if value is not None}
    for name, value in list(present.items())[:MAX_COLUMNS]:
        found[name] = _cut(text_of(value), max(min(room, MAX_VALUE_CHARS), _MIN_VALUE_CHARS))
        room -= len(html.escape(found[name]))
    if more := len(present) - len(found):
        found["…"] = counted(more, "more column")
    return found


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
