"""Computes the funnel from input rows to kept pairs, or from pairs to a subset: the number of rows lost at each step
and for each reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pairmill.pipeline.report.sample import Totals
from pairmill.schemas.status import Status
from pairmill.schemas.subset import Subset


@dataclass(frozen=True)
class Reason:
    """The rows lost for one reason."""

    name: str
    """The status; for a custom rule, `custom_rule: NAME`."""
    rows: int
    share_left: float
    """The rows that are left after it, as a share of all rows."""
    share: float
    """The rows lost, as a share of all rows."""


@dataclass(frozen=True)
class Stage:
    """A step of the funnel."""

    name: str
    rows_in: int
    rows_out: int
    total: int
    """The number of rows at the top of the funnel."""
    reasons: Sequence[Reason]

    @property
    def lost(self) -> int:
        """The number of rows lost at the step."""
        return self.rows_in - self.rows_out

    @property
    def share_left(self) -> float:
        """The rows after the step, as a share of all rows."""
        return self.rows_out / max(self.total, 1)

    @property
    def share_lost(self) -> float:
        """The rows lost at the step, as a share of all rows."""
        return self.lost / max(self.total, 1)


@dataclass(frozen=True)
class Funnel:
    """A funnel from `rows` to `left`."""

    start: str
    rows: int
    end: str
    left: int
    stages: Sequence[Stage]


def of_dataset(totals: Totals) -> Funnel:
    """The funnel of a dataset, from input rows to kept pairs."""
    kept, rows, left = totals.statuses.get(Status.OK, 0), totals.rows, totals.rows
    stages: list[Stage] = []
    for step, losses_of_step in groupby(totals.losses(), lambda loss: loss.step):
        before, reasons = left, []
        for loss in losses_of_step:
            left -= loss.rows
            reasons.append(Reason(loss.reason, loss.rows, left / rows, loss.rows / rows))
        stages.append(Stage(step.value, before, left, rows, reasons))
    return Funnel("rows in", rows, "kept", kept, stages)


def of_subset(subset: Subset) -> Funnel:
    """The funnel of a subset, from pairs to selected rows."""
    stages = [Stage(report.step, report.rows_in, report.rows_out, subset.rows_in, []) for report in subset.reports]
    return Funnel("pairs", subset.rows_in, f"in {subset.name}", subset.rows_out, stages)
