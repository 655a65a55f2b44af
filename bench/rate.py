"""Computes the steady rate of a run with parallel shards.

It has no dependencies, because scripts in the environments of the tools that pairmill is compared with import it too.
"""

from collections.abc import Iterable
from itertools import accumulate


def steady_rate(ends: Iterable[tuple[float, int]]) -> float:
    """Rows per second: the slope of rows over time, by least squares, given (time, rows) for every finished shard.

    Dividing the rows of all shards but the first by the time from the first shard's end to the last one's would
    overestimate the rate, because shards that are in flight when the first one ends are counted in full. If four shards
    end two at a time, it would be half too high.
    Returns 0.0 if there are fewer than two distinct times.
    """
    points = sorted(ends)
    times = [time for time, _ in points]
    totals = list(accumulate(rows for _, rows in points))
    if not points:
        return 0.0
    mean_time, mean_total = sum(times) / len(times), sum(totals) / len(totals)
    spread = sum((time - mean_time) ** 2 for time in times)
    if not spread:
        return 0.0
    return sum((time - mean_time) * (total - mean_total) for time, total in zip(times, totals, strict=True)) / spread
