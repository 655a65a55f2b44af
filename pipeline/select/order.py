"""Defines a total order of rows that does not depend on where a row is read."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import RANK, SAMPLE, TIES, fill_ranks, ranks, uid_hashes

ORDER_KEY = np.dtype([*RANK.descr, ("tie", "<u8")])
"""An OrderKey in an array."""

OrderKeys = npt.NDArray[np.void]
"""(rows,) of ORDER_KEY."""


class OrderKey(NamedTuple):
    """One position in an order. Rows compare by `rank`, then `rest`, then `tie`. Higher is better."""

    rank: int
    rest: int
    tie: int


LOWEST = OrderKey(0, 0, 0)
HIGHEST = OrderKey(2**64 - 1, 2**16 - 1, 2**64 - 1)
"""Above every row: no number has this rank."""


@dataclass(frozen=True)
class Order:
    """Orders rows by score, with ties broken by a hash of the uid. Without a score, by that hash alone."""

    by: str | None
    seed: int = 0

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `keys` reads."""
        return frozenset({"uid"}) | (Expression(self.by).columns if self.by else frozenset())

    def keys(self, table: pa.Table) -> OrderKeys:
        """The key of each row."""
        keys = np.empty(table.num_rows, ORDER_KEY)
        fill_ranks(keys, ranks(table, self.by) if self.by else np.zeros(len(keys), RANK))
        keys["tie"] = uid_hashes(table["uid"], TIES if self.by else SAMPLE, self.seed)
        return keys


def below(keys: OrderKeys, limit: OrderKey) -> npt.NDArray[np.bool_]:
    """For each key, whether it is lower than `limit`."""
    result = np.zeros(len(keys), np.bool_)
    for name, value in zip(reversed(OrderKey._fields), reversed(limit), strict=True):
        column = keys[name]
        number = column.dtype.type(value)
        result = (column < number) | ((column == number) & result)
    return result


def equal(keys: OrderKeys, key: OrderKey) -> npt.NDArray[np.bool_]:
    """For each key, whether it equals `key`."""
    result = np.ones(len(keys), np.bool_)
    for name, value in zip(OrderKey._fields, key, strict=True):
        result &= keys[name] == keys.dtype[name].type(value)
    return result
