"""The step `where`: keeps the rows for which an expression is true."""

from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import Where
from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import StepReport


@dataclass(frozen=True)
class WhereStep:
    """Keeps the rows for which an expression is true."""

    expression: Expression

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def check(self, schema: pa.Schema) -> None:
        """Check that the expression is boolean. Raises ExpressionError."""
        self.expression.check(schema, "boolean")

    def run(self, selector: Selector, number: int) -> None:
        """Add a filter."""
        selector.filters.append(Where(number, self.expression))

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """There is nothing to add to the report."""
        return report
