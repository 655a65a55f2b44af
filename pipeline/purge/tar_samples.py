"""Copies a WebDataset tar without some of its samples. The others are copied byte for byte, no matter what wrote the
tar."""

import tarfile
from collections.abc import Collection, Iterator
from typing import IO

from pairmill.pipeline.dataset.webdataset_tar import read_range, read_tar

_TEXTS = ("txt", "json")
_UID_CHARS = 32


def keys_of(file: IO[bytes]) -> Iterator[str]:
    """The key of each sample: the name of its members up to the first dot."""
    last = None
    for name, _, _ in read_tar(file):
        if (key := name.partition(".")[0]) != last:
            yield key
        last = key


def uid_of_key(key: str) -> str:
    """The uid of the row that a sample was made from: the beginning of its key."""
    return key[:_UID_CHARS]


def copy_samples(source: IO[bytes], target: IO[bytes], kept: Collection[str]) -> dict[str, int]:
    """Copy the samples of rows with these uids, in order. Returns key -> offset of its picture in the copy."""
    offsets: dict[str, int] = {}
    end = target.tell()
    for name, offset, length in read_tar(source):
        key, _, ending = name.partition(".")
        if uid_of_key(key) not in kept:
            continue
        if ending not in _TEXTS:
            offsets[key] = end + tarfile.BLOCKSIZE
        whole = tarfile.BLOCKSIZE + length + -length % tarfile.BLOCKSIZE
        end += target.write(read_range(source, offset - tarfile.BLOCKSIZE, whole))
    target.write(bytes(2 * tarfile.BLOCKSIZE + -(end + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))
    return offsets
