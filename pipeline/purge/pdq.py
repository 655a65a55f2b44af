"""Compares PDQ hashes (256 bits) by their Hamming distance.

31 bits or less is the usual bound for the same picture: https://github.com/facebook/ThreatExchange, pdq/README.md.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Words = npt.NDArray[np.uint64]

MAX_DISTANCE = 31
_BLOCK_PAIRS = 1 << 22
"""Pairs of hashes that are compared at a time: 128 MB."""


def words_of(hashes: list[bytes]) -> Words:
    """Hashes of 32 bytes as uint64 [n, 4]."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)


def is_near(column: pa.ChunkedArray, listed: Words) -> npt.NDArray[np.bool_]:
    """Whether each hash (64 hex digits) is within MAX_DISTANCE of one that is listed; [rows]. False for null and for
    anything else."""
    found = np.zeros(len(column), np.bool_)
    is_hash = pc.match_substring_regex(column.cast(pa.string()), "^[0-9a-fA-F]{64}$").fill_null(False)
    rows = np.flatnonzero(is_hash.to_numpy())
    if not len(rows) or not len(listed):
        return found
    hashes = words_of([bytes.fromhex(text) for text in column.take(pa.array(rows)).to_pylist()])
    step = max(1, _BLOCK_PAIRS // len(listed))
    for start in range(0, len(rows), step):
        block = hashes[start : start + step]
        distances = np.bitwise_count(block[:, None, :] ^ listed[None, :, :]).sum(axis=2, dtype=np.uint16)
        found[rows[start : start + step]] = (distances <= MAX_DISTANCE).any(axis=1)
    return found
