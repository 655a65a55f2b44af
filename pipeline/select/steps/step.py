"""Defines what a kind of step does."""

from typing import Protocol

import pyarrow as pa

from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import StepReport


class Step(Protocol):
    """One step of a select job. It runs once, and keeps what it found for its report."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the dataset that the step reads."""

    def check(self, schema: pa.Schema) -> None:
        """Check columns and types. Raises ExpressionError or StepError."""

    def run(self, selector: Selector, number: int) -> None:
        """Find the rows to drop, and add filters with this number that drop them in the next scan."""

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """`report` with what this step found. `earlier`: the same step's report when the subset was last selected, with
        the same steps."""
