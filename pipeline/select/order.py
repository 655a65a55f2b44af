"""A total order of rows, the same wherever a row is read."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.keys import SAMPLE, TIES, U64, ranks, uid_hashes

ORDER_KEY = np.dtype([("rank", "<u8"), ("tie", "<u8")])
"""An OrderKey in an array."""

OrderKeys = npt.NDArray[np.void]
"""(rows,) of ORDER_KEY."""


class OrderKey(NamedTuple):
    """One position in an order: rows compare by `rank`, equal ranks by `tie`. Higher is better."""

    rank: int
    tie: int


LOWEST = OrderKey(0, 0)
HIGHEST = OrderKey(2**64 - 1, 2**64 - 1)
"""Above every row: no number has this rank."""


@dataclass(frozen=True)
class Order:
    """By score, ties broken by a hash of the uid. Without a score, by that hash alone."""

    by: str | None
    seed: int = 0

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `keys` reads."""
        return frozenset({"uid"}) | (Expression(self.by).columns if self.by else frozenset())

    def keys(self, table: pa.Table) -> OrderKeys:
        """The key of each row."""
        keys = np.empty(table.num_rows, ORDER_KEY)
        keys["rank"] = ranks(table, self.by) if self.by else 0
        keys["tie"] = uid_hashes(table["uid"], TIES if self.by else SAMPLE, self.seed)
        return keys


def below(keys: OrderKeys, limit: OrderKey) -> npt.NDArray[np.bool_]:
    """Per key, whether it is lower than `limit`."""
    rank: U64 = keys["rank"]
    limit_rank = np.uint64(limit.rank)
    result: npt.NDArray[np.bool_] = (rank < limit_rank) | ((rank == limit_rank) & (keys["tie"] < np.uint64(limit.tie)))
    return result


def equal(keys: OrderKeys, key: OrderKey) -> npt.NDArray[np.bool_]:
    """Per key, whether it is this one."""
    result: npt.NDArray[np.bool_] = (keys["rank"] == np.uint64(key.rank)) & (keys["tie"] == np.uint64(key.tie))
    return result
