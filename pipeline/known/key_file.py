"""Reads and writes files of sorted 64-bit keys, and looks up many keys at once.

16 bytes   MAGIC
uint64     number of keys
uint64     b: there are 2^b buckets, each with all keys that share the same first b bits
uint64[]   the distinct keys, ascending
uint64[]   for each bucket, the number of keys before it; then the number of keys: 2^b + 1 numbers

All numbers are little-endian. Buckets have 8 to 16 keys on average, so a key takes 68 to 72 bits. A lookup reads two
numbers of the table and one bucket: usually two cache lines, or two pages of a cold file.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np

from pairmill.pipeline.known.keys import Keys, Mask
from pairmill.pipeline.known.known_error import KnownError

MAGIC = b"pairmill keys 1\n"
HEADER_BYTES = len(MAGIC) + 16
MAX_BUCKET_KEYS = 16
"""Buckets have at most this many keys on average."""
_BUCKETS_AT_A_TIME = 1 << 20


def write_keys(file: IO[bytes], in_order: Iterable[Keys]) -> int:
    """Write the file, which must be empty, named and open for reading too. Returns the number of keys."""
    num_keys = 0
    file.write(bytes(HEADER_BYTES))
    for keys in in_order:
        file.write(keys.astype("<u8").data)
        num_keys += len(keys)
    file.flush()
    bits = bucket_bits(num_keys)
    keys = _mapped(file.name, HEADER_BYTES, num_keys)
    for first in range(0, 1 << bits, _BUCKETS_AT_A_TIME):
        buckets = np.arange(first, min(first + _BUCKETS_AT_A_TIME, 1 << bits), dtype=np.uint64)
        lowest = buckets << np.uint64(64 - bits) if bits else buckets
        file.write(np.searchsorted(keys, lowest).astype("<u8").data)
    file.write(np.array([num_keys], "<u8").data)
    file.seek(0)
    file.write(MAGIC + np.array([num_keys, bits], "<u8").tobytes())
    file.flush()
    return num_keys


def bucket_bits(num_keys: int) -> int:
    """The number of leading bits of a key that determine its bucket."""
    return max(0, (num_keys - 1) // MAX_BUCKET_KEYS).bit_length()


@dataclass(frozen=True)
class KeyFile:
    """An open file, mapped into memory: all processes of a machine share its pages."""

    keys: Keys
    """The distinct keys, ascending."""
    starts: Keys
    """For each bucket, the index of its first key; then the number of keys."""

    @classmethod
    def open(cls, path: str) -> "KeyFile":
        """Map a local file. Raises KnownError if it is not a complete file of keys."""
        with open(path, "rb") as file:
            header, num_bytes = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
        if len(header) == HEADER_BYTES and header.startswith(MAGIC):
            num_keys, bits = np.frombuffer(header[len(MAGIC) :], "<u8").tolist()
            if bits == bucket_bits(num_keys) and num_bytes == HEADER_BYTES + 8 * (num_keys + (1 << bits) + 1):
                starts = _mapped(path, HEADER_BYTES + 8 * num_keys, (1 << bits) + 1)
                return cls(_mapped(path, HEADER_BYTES, num_keys), starts)
        raise KnownError(f"{path} is damaged: it is not a complete file of known keys")

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.keys)

    def contains(self, keys: Keys) -> Mask:
        """For each key, whether the file has it: a binary search in each bucket, for all keys at once. Shapes (n,)."""
        found = np.zeros(len(keys), np.bool_)
        if not len(self.keys):
            return found
        bits = (len(self.starts) - 1).bit_length() - 1
        bucket = (keys >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)
        low, end = self.starts[bucket].astype(np.int64), self.starts[bucket + 1].astype(np.int64)
        high, last = end, len(self.keys) - 1
        while (open_ := low < high).any():
            middle = (low + high) >> 1
            is_less = self.keys[np.minimum(middle, last)] < keys
            low = np.where(open_ & is_less, middle + 1, low)
            high = np.where(open_ & ~is_less, middle, high)
        found[:] = (low < end) & (self.keys[np.minimum(low, last)] == keys)
        return found


def _mapped(path: str, offset: int, count: int) -> Keys:
    if not count:  # an empty range cannot be mapped
        return np.zeros(0, np.uint64)
    return np.asarray(np.memmap(path, "<u8", "r", offset, (count,)))
