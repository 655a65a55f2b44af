"""The steady rate of a run that ends its shards in parallel; no dependency, so the peers' runners import it too."""

from collections.abc import Iterable
from itertools import accumulate


def steady_rate(ends: Iterable[tuple[float, int]]) -> float:
    """Rows per second from (time, rows) of every shard that ended: the slope of rows over time, by least squares.

    Rows over the time between the first and the last end would count what was already under way at the first: half as
    much again where four shards end in two pairs. 0.0 where fewer than two moments are known.
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
