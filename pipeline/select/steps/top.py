"""The steps `top` and `sample`: keep the first rows of an order."""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pairmill.pipeline.dataset.subset import NOT_DROPPED
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.filters import AtLeast
from pairmill.pipeline.select.keys import score_of
from pairmill.pipeline.select.order import HIGHEST, LOWEST, NO_SCORE, ORDER_KEY, Order, OrderKey, OrderKeys
from pairmill.pipeline.select.outputs import Array, KeysWithin, SampledKeys
from pairmill.pipeline.select.selector import Selector, sorted_rows
from pairmill.pipeline.select.step_error import StepError
from pairmill.schemas.select_steps import Sample, Top
from pairmill.schemas.subset import StepReport

SAMPLED_SHARDS = 64
"""Keys are sampled from at least this many evenly spaced shards, if there are that many."""
SAMPLED_ROWS = 200_000
"""Approximate number of sampled keys. With this many, the window around a quantile contains a few percent of the
rows."""
WINDOW_SIGMAS = 20.0
"""Half the width of this window, in standard errors of a random sample. Rows of the same shard may resemble each other,
so the sample is less informative than a random sample of the same size."""


@dataclass
class TopStep:
    """Keeps the rows with the highest keys of an order."""

    order: Order
    share: Top | Sample
    threshold: float | None = None
    """The lowest score that stays."""
    without_score: int = 0
    """Rows that stay although they have no score."""
    kind: pa.DataType = field(default_factory=pa.float64)
    """The type of the scores, which `check` sets."""

    @classmethod
    def of(cls, share: Top | Sample) -> "TopStep":
        """Create the step. `top` orders rows by a score, `sample` by a hash of the uid."""
        return cls(Order(share.by) if isinstance(share, Top) else Order(None, share.seed), share)

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the order."""
        return self.order.columns

    def check(self, schema: pa.Schema) -> None:
        """Check that the score is a number. Raises ExpressionError."""
        if self.order.by is not None:
            score = Expression(self.order.by)
            score.check(schema, "number")
            self.kind = score.evaluate(schema.empty_table()).type

    def run(self, selector: Selector, number: int) -> None:
        """Find the key of the last row to keep, and drop the rows below it.

        A sample of the keys yields a window that almost surely contains this key; all keys within the window then
        determine it exactly (Floyd and Rivest 1975, "Expected time bounds for selection").
        """
        sampled, remaining = _sample(selector, self.order)
        to_keep, sigmas = self.share.rows_to_keep(remaining), WINDOW_SIGMAS
        while True:
            window = _window(self.order, sampled, to_keep / max(1, remaining), sigmas)
            within, above = selector.scan_sorted(window)
            remaining = selector.counts[NOT_DROPPED]  # no longer an estimate
            to_keep = self.share.rows_to_keep(remaining)
            if to_keep == remaining:
                if self.order.by:
                    self.without_score = to_keep - self._num_scored(selector)
                return
            if not to_keep:
                selector.filters.append(AtLeast(number, self.order, HIGHEST))
                return
            from_window = to_keep - int(above.sum())
            if 0 < from_window <= len(within):
                break
            sigmas *= 4  # about once in a million jobs
        last = OrderKey(*within[-from_window].item())
        if self.order.by and last.rank == NO_SCORE.rank:
            if not (scored := self._num_scored(selector)):
                raise StepError(f"{self.order.by!r} is null in all rows; use another column")
            self.without_score = to_keep - scored
        selector.filters.append(AtLeast(number, self.order, last))
        self.threshold = score_of(last.rank, last.low_bits, self.kind) if self.order.by else None

    def _num_scored(self, selector: Selector) -> int:
        """The number of remaining rows with a score that is neither null nor NaN."""
        _, above = selector.scan_sorted(KeysWithin(self.order, NO_SCORE, NO_SCORE))
        return int(above.sum())

    def report(self, selector: Selector, report: StepReport, earlier: StepReport | None) -> StepReport:
        """Add the threshold to the report, and the rows without a score."""
        return report.model_copy(update={"threshold": self.threshold, "without_score": self.without_score})


def _sample(selector: Selector, order: Order) -> tuple[Array, int]:
    """(sorted keys of a sample of the remaining rows, estimated number of remaining rows)."""
    shards, tasks = sum(len(chunk.shards) for chunk in selector.chunks), selector.tasks
    for every in (max(1, shards // SAMPLED_SHARDS), 1):
        output = SampledKeys(order, SAMPLED_ROWS * every / max(1, selector.num_rows))
        results = selector.peek(output, every)
        seen, remaining = (sum(tasks.get([result[index] for result in results])) for index in (0, 1))
        keys = np.concatenate([np.zeros(0, ORDER_KEY), *tasks.get([result[2] for result in results])])
        if len(keys):
            break  # otherwise, all remaining rows may be in other shards
    return sorted_rows(keys), round(remaining * selector.num_rows / max(1, seen))


def _window(order: Order, sampled: OrderKeys, fraction: float, sigmas: float) -> KeysWithin:
    """The keys around the (1 - fraction) quantile. `sampled` is in ascending order."""
    size = len(sampled)
    margin = sigmas * math.sqrt(size * fraction * (1 - fraction)) + 1
    low, high = math.floor(size * (1 - fraction) - margin), math.ceil(size * (1 - fraction) + margin)
    lowest = LOWEST if low < 0 else OrderKey(*sampled[low].item())
    highest = HIGHEST if high >= size else OrderKey(*sampled[high].item())
    return KeysWithin(order, lowest, highest)
