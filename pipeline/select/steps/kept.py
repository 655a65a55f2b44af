"""The first step of every job: selects the statuses to start from."""

from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.select.filters import IsKept
from pairmill.pipeline.select.selector import Selector
from pairmill.schemas.subset import StepReport


@dataclass(frozen=True)
class KeptStep:
    """Keeps the rows that the build kept, or all pairs."""

    only_kept: bool

    @property
    def columns(self) -> frozenset[str]:
        """The status, which every dataset has."""
        return frozenset({"status"}) if self.only_kept else frozenset()

    def check(self, schema: pa.Schema) -> None:
        """There is nothing to check."""

    def run(self, selector: Selector, number: int) -> None:
        """Add a filter, unless all pairs stay."""
        if self.only_kept:
            selector.filters.append(IsKept(number))

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """There is nothing to add to the report."""
        return report
