"""Defines the files of known values, by kind and distance: how each is made, and how rows are looked up in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np

from pairmill.pipeline.known.bands import WHOLE, Band, bands
from pairmill.pipeline.known.hash_index import HashIndex
from pairmill.pipeline.known.key_file import KeyFile, write_keys
from pairmill.pipeline.known.key_sorter import KeySorter
from pairmill.pipeline.known.keys import PDQ_WORDS, Keys, Mask
from pairmill.pipeline.known.known_error import KnownError
from pairmill.schemas.known import MAX_DISTANCES, ValueKind

MAX_PDQ_HASHES = 2_000_000
"""Each process that looks rows up keeps an index of the whole list: 300 bytes per hash."""


class Lookup(Protocol):
    """An open file of known values."""

    def contains(self, keys: Keys) -> Mask:
        """For each key, whether it is known. Shapes (n,), or (n, PDQ_WORDS) and (n,)."""


class Collector(Protocol):
    """Collects values and writes the file."""

    def add(self, keys: Keys) -> None:
        """Add keys, in any order."""

    def write(self, file: IO[bytes]) -> int:
        """Write the file, which must be empty. Returns the number of distinct values."""


@dataclass(frozen=True, order=True)
class FilterId:
    """Identifies a file by the kind of its values and the distance within which they are compared."""

    kind: ValueKind
    distance: int = 0
    band: Band = WHOLE
    """For phash with a distance, the band that comes first."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.distance}-{self.band.first_bit}" if self.distance else self.kind

    @property
    def label(self) -> str:
        """The kind and distance, for messages."""
        return f"{self.kind} within {self.distance} bits" if self.distance else self.kind

    def collector(self, scratch: IO[bytes]) -> Collector:
        """An empty collector. `scratch`: a temporary file for its keys."""
        return _Hashes([]) if self.kind == "pdq" else _Keys(self.band, KeySorter(scratch))

    def open(self, path: str) -> Lookup:
        """Open a local file. Raises KnownError if it is damaged."""
        if self.kind == "pdq":
            return _open_hashes(path, self.distance)
        file = KeyFile.open(path)
        return _OpenBand(self.band, self.distance, file) if self.distance else file


def filters_of(kind: ValueKind, distance: int) -> Sequence[FilterId]:
    """The files to which values of one kind are written."""
    distance = distance if kind in MAX_DISTANCES else 0
    return [FilterId(kind, distance, band) for band in (bands(distance) if kind == "phash" else [WHOLE])]


@dataclass
class _Keys:
    band: Band
    sorter: KeySorter

    def add(self, keys: Keys) -> None:
        """Rotate the keys and pass them to the sorter."""
        self.sorter.add(self.band.first(keys))

    def write(self, file: IO[bytes]) -> int:
        """Write a file of keys."""
        return write_keys(file, self.sorter.in_order())


@dataclass(frozen=True)
class _OpenBand:
    band: Band
    distance: int
    file: KeyFile

    def contains(self, keys: Keys) -> Mask:
        """For each hash, whether the file has one within the distance and with the same band."""
        return self.band.near(self.file, keys, self.distance)


@dataclass
class _Hashes:
    """Collects PDQ hashes in memory. The file contains their words, sorted."""

    parts: list[Keys]

    def add(self, keys: Keys) -> None:
        """Add hashes. Raises KnownError if there are too many."""
        self.parts.append(keys)
        if sum(map(len, self.parts)) > 2 * MAX_PDQ_HASHES:
            self._merge()

    def write(self, file: IO[bytes]) -> int:
        """Write the words, little-endian."""
        words = self._merge()
        file.write(words.astype("<u8").tobytes())
        file.flush()
        return len(words)

    def _merge(self) -> Keys:
        words = np.unique(np.concatenate([np.zeros((0, PDQ_WORDS), np.uint64), *self.parts]), axis=0)
        if len(words) > MAX_PDQ_HASHES:
            raise KnownError(f"there are {len(words):,} known pdq hashes; at most {MAX_PDQ_HASHES:,} can be compared")
        self.parts = [words]
        return words


@dataclass(frozen=True)
class _OpenHashes:
    index: HashIndex

    def contains(self, keys: Keys) -> Mask:
        """For each hash, whether the list has one within the distance."""
        return self.index.has_near(keys)


def _open_hashes(path: str, distance: int) -> _OpenHashes:
    words = np.fromfile(path, "<u8").astype(np.uint64)
    if len(words) % PDQ_WORDS:
        raise KnownError(f"{path} is damaged: it is not a complete file of hashes")
    return _OpenHashes(HashIndex.of(words.reshape(-1, PDQ_WORDS), distance))
