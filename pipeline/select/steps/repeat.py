"""The step `repeat`: sets how often each row is shown per epoch."""

from dataclasses import dataclass, field

import pyarrow as pa

from pairmill.pipeline.dataset.subset import NOT_DROPPED
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.soft_cap import NumberBuckets, merge_buckets, solve_shift
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.weights import TICK, HasWeight, Weighting, WeightSums, sum_of_ticks
from pairmill.schemas.repeat import MAX_WEIGHT, Repeat, RepeatReport
from pairmill.schemas.subset import StepReport

_MAX_ERROR = 1e-3
"""Maximum relative error of the sum of the weights, which is usually accurate to about one part in a million."""


@dataclass
class RepeatStep:
    """Assigns a weight to each row, and keeps the rows whose weight is above 0."""

    repeat: Repeat
    found: RepeatReport | None = field(default=None, init=False)

    @property
    def expression(self) -> Expression:
        """The expression from which the weight is computed."""
        return Expression(self.repeat.by or self.repeat.weight or "")

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the expression."""
        return self.expression.columns

    def check(self, schema: pa.Schema) -> None:
        """Check that the expression is a number. Raises ExpressionError."""
        self.expression.check(schema, "number")

    def run(self, selector: Selector, number: int) -> None:
        """Solve for the scale of a soft cap, if there is one, and drop the rows without a weight. Raises StepError."""
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
            raise StepError(f"the highest weight is {most.max():,.6g}; set max to {MAX_WEIGHT:,.0f} or less")
        weight_sum = sum_of_ticks(ticks)
        if samples is not None and abs(weight_sum - samples) > _MAX_ERROR * samples + selector.num_rows * TICK:
            raise StepError(
                f"scale `by` down, or subtract a constant: its values are so large or so far apart that the weights "
                f"add up to {weight_sum:,.6g} instead of the requested {samples:,.6g} samples"
            )
        self.found = RepeatReport(
            weight_sum=weight_sum, highest=float(most.max(initial=0.0)), rows_below_one=int(below.sum())
        )

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the weights to the report."""
        return report.model_copy(update={"repeat": self.found})

    def _solved(self, selector: Selector, alpha: float, highest: float) -> tuple[float, float]:
        """(the shift of the soft cap, the number of samples for which it was solved)."""
        tasks = selector.tasks
        parts = [part for (part,) in selector.scan(NumberBuckets(self.expression))]
        buckets = merge_buckets()
        for part in tasks.get(tasks.map(merge_buckets, [(part,) for part in parts])):
            buckets = merge_buckets(buckets, part)
        if not selector.counts[NOT_DROPPED]:
            return 0.0, 0.0  # an earlier step has dropped all rows, and the job will say so
        samples = self.repeat.samples or (self.repeat.mean or 0.0) * float(buckets["rows"].sum())
        return solve_shift(buckets, alpha, highest, samples), samples
