"""Renders the page of an evaluation or a probe: one HTML file that loads nothing and runs no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pairmill.pipeline.evaluate.line_chart import LineChart
from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.pages.visible_text import visible_text
from pairmill.pipeline.report import axis
from pairmill.pipeline.report.charts import BarChart

MAX_ROWS = 1_000
"""Maximum number of rows of a table on a page; the page says how many more there are."""
_CELL_CHARS = 60


@dataclass(frozen=True)
class Table:
    """A table of text. The names of classes in it are untrusted."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows on the page."""
        return self.rows[:MAX_ROWS]

    def lines(self, most: int) -> list[str]:
        """The first rows as aligned text, below the title and the head."""
        cells = [[visible_text(cell, _CELL_CHARS) for cell in row] for row in (self.head, *self.rows[:most])]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )).rstrip()
            for row in cells
        ]  # fmt: skip
        more = [f"... and {len(self.rows) - most:,} more"] if len(self.rows) > most else []
        return [self.title, *lines, *more]


@dataclass(frozen=True)
class Section:
    """The section of one evaluation."""

    title: str
    lead: str
    """What the evaluation measures, in a sentence or two."""
    results: Sequence[str]
    """The main results, as lines."""
    notes: Sequence[str] = ()
    """What was sampled or left out."""
    line_charts: Sequence[LineChart] = ()
    bar_charts: Sequence[BarChart] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class EvaluationPage:
    """The content of a page."""

    eyebrow: str
    title: str
    facts: Sequence[tuple[str, str]]
    """(name, value) pairs."""
    sections: Sequence[Section]


def render(page: EvaluationPage) -> str:
    """The page as HTML."""
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    template = environment().get_template("evaluate.html.j2")
    return template.render(page=page, title=f"{page.title}: {page.eyebrow}", box=axis, written=written)
