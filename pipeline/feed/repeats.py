"""Computes how often each row of a weighted subset is shown in an epoch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import WEIGHT, read_rows
from pairmill.pipeline.select.weights import Draws, Weights, draws_of, times
from pairmill.schemas.subset import Subset

_BLOCK_ROWS = 4_000_000
"""Number of rows counted at a time."""


@dataclass(frozen=True, eq=False)
class Repeats:
    """The weights of all selected rows. Takes 8 bytes of memory per row."""

    weights: Weights
    """In dataset order, like `draws`."""
    draws: Draws
    starts: npt.NDArray[np.int64]
    """Index of each shard's first row in `weights`, then the total number of rows; shape (shards + 1,)."""

    @classmethod
    def of(cls, store: Store, record: Subset, counts: npt.NDArray[np.int64]) -> "Repeats | None":
        """The weights of a subset; None if it has none. `counts`: number of selected rows of each shard."""
        if record.weight_sum is None:
            return None
        weights, draws = [np.zeros(0, np.float32)], [np.zeros(0, np.uint32)]
        for table in read_rows(store, record):
            weights.append(table[WEIGHT].to_numpy())
            draws.append(draws_of(table["uid"]))
        return cls(np.concatenate(weights), np.concatenate(draws), np.concatenate([[0], np.cumsum(counts)]))

    def times(self, index: int, epoch: int) -> npt.NDArray[np.int64]:
        """How often each selected row of a shard is shown; shape (rows,)."""
        return times(self.weights_in(index), self.draws[self._rows(index)], epoch)

    def weights_in(self, index: int) -> Weights:
        """The weight of each selected row of a shard; shape (rows,)."""
        return self.weights[self._rows(index)]

    def counts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Number of rows shown from each shard in an epoch, including repetitions; shape (shards,)."""
        found, first = np.zeros(len(self.starts) - 1, np.int64), 0
        while first < len(found):
            end = max(first + 1, int(np.searchsorted(self.starts, self.starts[first] + _BLOCK_ROWS, "right")) - 1)
            rows = slice(self.starts[first], self.starts[end])
            sums = np.concatenate([[0], np.cumsum(times(self.weights[rows], self.draws[rows], epoch))])
            found[first:end] = np.diff(sums[self.starts[first : end + 1] - self.starts[first]])
            first = end
        return found

    def _rows(self, index: int) -> slice:
        return slice(self.starts[index], self.starts[index + 1])
