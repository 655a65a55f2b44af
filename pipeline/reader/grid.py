"""Shows some pairs with their pictures as a grid in a notebook, for `dataset.show()`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.reader.thumbnails import RowRef, Thumbnail
from pairmill.pipeline.select.comparisons import Numbers, exact_numbers

SIDE = 240
"""Maximum side of a picture in the grid, in pixels."""


@dataclass(frozen=True)
class Card:
    """One pair of a grid."""

    thumbnail: Thumbnail
    value: str | None
    """The value that the pairs are ordered by, as text; None for a random sample."""
    caption: str | None
    status: str
    kept: bool
    uid: str


@dataclass(frozen=True)
class Grid:
    """Pairs and their pictures. Jupyter displays them as a grid, a terminal as one line."""

    title: str
    cards: Sequence[Card]

    def __repr__(self) -> str:
        return self.title

    def _repr_html_(self) -> str:
        """What Jupyter displays: HTML without scripts or links, in which captions are plain text."""
        return environment().get_template("grid.html.j2").render(grid=self)


@dataclass(frozen=True)
class Order:
    """An order of rows: the highest values first, the lowest values first, or those closest to `around`."""

    column: str
    around: float | None = None
    lowest: bool = False

    def __str__(self) -> str:
        if self.column == "uid":
            return "a random sample, by uid"
        if self.around is not None:
            return f"{self.column} around {self.around:g}"
        return f"by {self.column}, {'lowest' if self.lowest else 'highest'} first"

    def value(self, number: float) -> str | None:
        """The value as a card shows it; None for a random sample."""
        if self.column == "uid":
            return None
        return (
            f"{number:,}" if isinstance(number, int) else f"{number:,.0f}" if number.is_integer() else f"{number:.3f}"
        )

    def keys(self, values: Numbers) -> Numbers:
        """The sort key of each value. The lowest keys come first."""
        if self.around is not None:
            return np.abs(values - self.around)
        if self.lowest or self.column == "uid":
            return values
        return (
            -values if values.dtype == np.float64 else np.invert(values)
        )  # the highest integer has the lowest complement


def first_rows(
    shards: Iterable[tuple[int, npt.NDArray[np.int64], pa.ChunkedArray]], order: Order, n: int
) -> list[tuple[RowRef, float]]:
    """The first `n` rows in this order, each with its value. Null and NaN are left out. Ties are in the order of the
    dataset.

    `shards`: (position, rows [m] of the shard, their values [m]).
    """
    best: list[tuple[float, RowRef, float]] = []
    for position, rows, column in shards:
        values, is_valid = _numbers(column)
        keys, valid = order.keys(values), np.flatnonzero(is_valid)
        first = valid[np.argsort(keys[valid], kind="stable")[:n]]
        best += [(keys[i].item(), RowRef(position, int(rows[i])), values[i].item()) for i in first]
        best = sorted(best)[:n]
    found = [(ref, value) for _, ref, value in best]
    return found if order.around is None else sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _numbers(column: pa.ChunkedArray) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """(the values [rows], a mask of those that are neither null nor NaN [rows]). Uids, which are hashes, become the
    number in their first 13 hex digits."""
    if pa.types.is_string(column.type):
        return np.array([int(uid[:13], 16) for uid in column.to_pylist()], np.int64), np.ones(len(column), np.bool_)
    return exact_numbers(column.combine_chunks())
