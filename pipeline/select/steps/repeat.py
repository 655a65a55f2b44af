"""The step `repeat`: how often each row is shown per epoch."""

from dataclasses import dataclass, field

import pyarrow as pa

from pairmill.pipeline.dataset.subset import NOT_DROPPED, WEIGHT
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.soft_cap import NumberBuckets, merge_buckets, solve_shift
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.weights import TICK, HasWeight, Weighting, WeightSums, sum_of_ticks
from pairmill.schemas.repeat import MAX_WEIGHT, Repeat, RepeatReport
from pairmill.schemas.subset import StepReport

_MAX_ERROR = 1e-3
"""Of the sum of the weights, which is usually right to about one part in a million."""


@dataclass
class RepeatStep:
    """Gives each row a weight, and keeps those whose weight is above 0."""

    repeat: Repeat
    found: RepeatReport | None = field(default=None, init=False)

    @property
    def expression(self) -> Expression:
        """What the weight is made from."""
        return Expression(self.repeat.by or self.repeat.weight or "")

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def check(self, schema: pa.Schema) -> None:
        """It must be a number. Raises ExpressionError, and StepError if the dataset itself has a column `weight`."""
        if WEIGHT in schema.names:
            raise StepError(f"the dataset has a column {WEIGHT!r} of its own, so a subset cannot have one")
        self.expression.check(schema, "number")

    def run(self, selector: Selector, number: int) -> None:
        """Find the scale of a soft cap in one pass; then add a filter. Raises StepError."""
        highest = self.repeat.max or float("inf")
        weighting = Weighting(self.expression, highest=highest)
        samples = None
        if self.repeat.by is not None:
            alpha = self.repeat.alpha
            shift, samples = self._solved(selector, alpha, highest)
            weighting = Weighting(self.expression, alpha, shift, highest)
        selector.filters.append(HasWeight(number, weighting))
        selector.weighting = weighting
        ticks, below, most = selector.scan_sorted(WeightSums(weighting))
        if most.max(initial=0.0) > MAX_WEIGHT:
            raise StepError(f"the highest weight is {most.max():,.6g}; set max, to {MAX_WEIGHT:,.0f} or less")
        weight_sum = sum_of_ticks(ticks)
        if samples is not None and abs(weight_sum - samples) > _MAX_ERROR * samples + selector.num_rows * TICK:
            raise StepError(
                f"scale by down: its numbers lie so far apart that the weights add up to {weight_sum:,.6g}, not to the "
                f"{samples:,.6g} samples asked for"
            )
        self.found = RepeatReport(
            weight_sum=weight_sum, highest=float(most.max(initial=0.0)), rows_below_one=int(below.sum())
        )

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """The weights."""
        return report.model_copy(update={"repeat": self.found})

    def _solved(self, selector: Selector, alpha: float, highest: float) -> tuple[float, float]:
        """(the shift of the soft cap, the samples that it was solved for)."""
        tasks = selector.tasks
        parts = [part for (part,) in selector.scan(NumberBuckets(self.expression))]
        buckets = merge_buckets()
        for part in tasks.get(tasks.map(merge_buckets, [(part,) for part in parts])):
            buckets = merge_buckets(buckets, part)
        if not selector.counts[NOT_DROPPED]:
            return 0.0, 0.0  # an earlier step has dropped all rows, and the job will say so
        samples = self.repeat.samples or (self.repeat.mean or 0.0) * float(buckets["rows"].sum())
        return solve_shift(buckets, alpha, highest, samples), samples
