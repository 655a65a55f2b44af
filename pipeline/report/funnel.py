"""The funnel: how many rows each step and each reason took, on the way from row to kept pair or to a subset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pairmill.pipeline.report.losses import losses
from pairmill.pipeline.report.sample import Totals
from pairmill.schemas.status import Status
from pairmill.schemas.subset import Subset


@dataclass(frozen=True)
class Reason:
    """Rows that one reason took."""

    name: str
    rows: int


@dataclass(frozen=True)
class Stage:
    """A step of the funnel."""

    name: str
    rows_in: int
    rows_out: int
    total: int
    """Rows at the top of the funnel."""
    reasons: Sequence[Reason]

    @property
    def lost(self) -> int:
        """Rows that the step took."""
        return self.rows_in - self.rows_out

    @property
    def share_left(self) -> float:
        """Rows after the step, of all rows."""
        return self.rows_out / max(self.total, 1)

    @property
    def share_lost(self) -> float:
        """Rows that the step took, of all rows."""
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
    """From row to kept pair."""
    by_step: dict[str, list[Reason]] = {}
    for loss in losses(totals.statuses, totals.custom_rules):
        by_step.setdefault(loss.step.value, []).append(Reason(loss.reason.replace("_", " ") if loss.rule is None
                                                              else loss.reason, loss.rows))  # fmt: skip
    kept = totals.statuses.get(Status.OK, 0)
    stages = list(_stages(totals.rows, by_step))
    return Funnel("rows in", totals.rows, "kept", kept, stages)


def _stages(rows: int, by_step: dict[str, list[Reason]]) -> Iterator[Stage]:
    left = rows
    for name, reasons in by_step.items():
        before, left = left, left - sum(reason.rows for reason in reasons)
        yield Stage(name, before, left, rows, reasons)


def of_subset(subset: Subset) -> Funnel:
    """From pair to selected row."""
    stages = [Stage(report.step, report.rows_in, report.rows_out, subset.rows_in, []) for report in subset.reports]
    return Funnel("pairs", subset.rows_in, f"in {subset.name}", subset.rows_out, stages)
