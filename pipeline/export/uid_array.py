"""Reads the uids of a subset for `subset.npy`, in DataComp's layout."""

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows
from pairmill.pipeline.export.repetition import first_epoch
from pairmill.pipeline.select.keys import key_halves
from pairmill.schemas.subset import Subset


def sorted_uids(store: Store, subset: Subset, copies: bool = False) -> npt.NDArray[np.void]:
    """The uids as a sorted array of two uint64 each, shape (rows,), for DataComp's `resharder.py`. 16 bytes per row.
    `copies`: repeat each uid as often as the first epoch shows its row.

    https://github.com/mlfoundations/datacomp: `np.array([(int(uid[:16], 16), int(uid[16:32], 16))], np.dtype("u8,u8"))`
    """
    parts = []
    for table in read_rows(store, subset):
        part = np.empty(table.num_rows, np.dtype("u8,u8"))
        part["f0"], part["f1"] = key_halves(table["uid"], "uid")
        parts.append(np.repeat(part, first_epoch(table)) if copies else part)
    uids = np.concatenate(parts)
    return uids[np.lexsort((uids["f1"], uids["f0"]))]
