"""Tells which rows are captions of the same picture.

Rows with the same SHA-256 are captions of one picture. So are rows without a SHA-256 that come from the list of
captions of one input row.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ID_COLUMNS = ("row_id", "sha256")


def picture_ids(table: pa.Table) -> npt.NDArray[np.uint64]:
    """A 64-bit id of each row's picture [rows]: a hash of the SHA-256 of its bytes or, if there is none, of the input
    row."""
    ids = []
    for row_id, sha256 in zip(table["row_id"].to_pylist(), table["sha256"].to_pylist(), strict=True):
        ids.append(hashlib.blake2b((sha256 or input_row(row_id)).encode(), digest_size=8).digest())
    return np.frombuffer(b"".join(ids), "<u8").astype(np.uint64)


def input_row(row_id: str) -> str:
    """The part of a row id that all captions of one input row share."""
    return ":".join(row_id.split(":")[:2])
