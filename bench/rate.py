"""Computes the steady rate of a run.

It has no dependencies, because scripts in the environments of the tools that pairmill is compared with import it too.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate


def steady_rate(ends: Iterable[tuple[float, int]]) -> float:
    """Rows per second: the slope of rows over time, by least squares, given (time, rows) for every finished shard.

    Dividing the rows of all shards but the first by the time from the first shard's end to the last one's would
    overestimate the rate, because shards that are in flight when the first one ends are counted in full. If four shards
    end two at a time, it would be half too high. The slope is too high as well if there are only a few times as many
    shards as are in flight at once.
    """
    points = sorted(ends)
    return slope(list(zip((time for time, _ in points), accumulate(rows for _, rows in points), strict=True)))


def middle_rate(samples: Sequence[tuple[float, int]]) -> float:
    """Rows per second between the first and the last twentieth of the rows, given (time, rows so far), with rows inside
    shards, at several times."""
    total = max((rows for _, rows in samples), default=0)
    return slope([(time, rows) for time, rows in samples if total <= 20 * rows <= 19 * total])


def slope(points: Sequence[tuple[float, int]]) -> float:
    """The slope of rows over time, by least squares. 0.0 if there are fewer than two distinct times."""
    if not points:
        return 0.0
    mean_time = sum(time for time, _ in points) / len(points)
    mean_total = sum(total for _, total in points) / len(points)
    spread = sum((time - mean_time) ** 2 for time, _ in points)
    if not spread:
        return 0.0
    return sum((time - mean_time) * (total - mean_total) for time, total in points) / spread
