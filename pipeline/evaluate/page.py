"""Renders the page of an evaluation or a probe: one HTML file that loads nothing and runs no script."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pairmill.pipeline.common.terminal_text import cells
from pairmill.pipeline.evaluate.line_chart import LineChart
from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.pages.visible_text import visible_text
from pairmill.pipeline.report import axis
from pairmill.pipeline.report.charts import BarChart

MAX_ROWS = 1_000
"""Maximum number of rows of a table on a page; the page says how many more there are."""
_CELL_CHARS = 60
_GAP = "  "


@dataclass(frozen=True)
class Table:
    """A table of text. The names of classes in it are untrusted."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_names: int = 1
    """Number of columns, from the left, that contain names instead of numbers."""

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows on the page."""
        return self.rows[:MAX_ROWS]

    def lines(self, most: int, width: int) -> list[str]:
        """The first rows as aligned text, below the title and the head. Cells are wrapped to fit the width."""
        from rich.console import Console
        from rich.table import Table as TextTable
        from rich.text import Text

        rows = [[visible_text(cell, _CELL_CHARS) for cell in row] for row in (self.head, *self.rows[:most])]
        widths = [max(map(cells, column)) + len(_GAP) for column in zip(*rows, strict=True)]
        if sum(widths) - len(_GAP) > width:  # intervals go on lines of their own
            rows = [[cell.replace(" (", "\n(") for cell in row] for row in rows]
        table = TextTable(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), show_header=False)
        for number in range(len(self.head)):
            table.add_column(justify="left" if number < self.num_names else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
        with console.capture() as shown:
            console.print(table)
        more = [f"... and {len(self.rows) - most:,} more"] if len(self.rows) > most else []
        return [self.title, *(line.rstrip() for line in shown.get().splitlines()), *more]


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
