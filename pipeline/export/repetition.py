"""Decides how an export writes the weights of a subset: as copies of rows, or as a column."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import WEIGHT, read_rows
from pairmill.pipeline.select.weights import draws_of, times
from pairmill.schemas.export import ExportFormat, ExportJob
from pairmill.schemas.subset import Subset


@dataclass(frozen=True)
class Repetition:
    """The way in which the weights are written."""

    mode: Literal["copies", "weight"] | None
    """None: the subset has no weights."""
    form: ExportFormat

    @classmethod
    def of(cls, job: ExportJob, subset: Subset) -> "Repetition":
        """The mode that the job sets. By default, WebDataset and DataComp get copies, and other formats a column."""
        if subset.weight_sum is None:
            return cls(None, job.format)
        return cls(job.repeat or ("copies" if job.format in ("webdataset", "datacomp") else "weight"), job.format)

    @property
    def copies_rows(self) -> bool:
        """Whether the files contain each row as often as the first epoch shows it."""
        return self.mode == "copies" and not self.copies_uids

    @property
    def copies_uids(self) -> bool:
        """Whether `subset.npy` contains each uid as often as the first epoch shows its row. The other files are a pool,
        which contains each row once."""
        return self.mode == "copies" and self.form == "datacomp"

    @property
    def has_column(self) -> bool:
        """Whether the rows have a column `weight`."""
        return self.mode == "weight" or self.copies_uids

    def shard_rows(self, store: Store, subset: Subset) -> dict[int, int] | None:
        """Shard -> number of its rows, including copies; shards without rows are absent. None: the numbers of selected
        rows."""
        if not self.copies_rows:
            return None
        found: dict[int, int] = {}
        for table in read_rows(store, subset):
            shards, inverse = np.unique(table["shard"].to_numpy(), return_inverse=True)
            rows = np.bincount(inverse, first_epoch(table), len(shards)).astype(np.int64)
            found |= {shard: number for shard, number in zip(shards.tolist(), rows.tolist(), strict=True) if number}
        return found


def first_epoch(rows: pa.Table) -> npt.NDArray[np.int64]:
    """How often the first epoch shows each row of a table from `read_rows`."""
    return times(rows[WEIGHT].to_numpy(), draws_of(rows["uid"]), 0)
