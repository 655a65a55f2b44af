"""Defines the interface of a step."""

from typing import Protocol

import pyarrow as pa

from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import StepReport


class Step(Protocol):
    """One step of a select job. It runs once and keeps its findings for its report."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the dataset that the step reads."""

    def check(self, schema: pa.Schema) -> None:
        """Check columns and types. Raises ExpressionError or StepError."""

    def run(self, selector: Selector, number: int) -> None:
        """Find the rows to drop, and add filters with this step number that drop them in the next scan."""

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the findings of this step to `report`. `earlier`: the report of this step from the last time that the
        subset was selected with the same steps."""
