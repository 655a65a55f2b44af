"""Turns datasets and lists into files of keys, in bounded memory: 64 MB, plus one batch of values.

Needs disk for 8 bytes per value and as much again per different value.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.bands import WHOLE, Band, bands
from pairmill.pipeline.known.datasets import KnownDataset
from pairmill.pipeline.known.key_file import KeyFile, write_keys
from pairmill.pipeline.known.key_sorter import KeySorter
from pairmill.pipeline.known.keys import Keys, Mask
from pairmill.pipeline.known.read_values import Tally
from pairmill.pipeline.known.sources import Source, open_source
from pairmill.schemas.known import KnownRows, KnownSource, ValueKind


@dataclass(frozen=True, order=True)
class FilterId:
    """What a file of keys has: values of one kind, that are compared with one distance."""

    kind: ValueKind
    distance: int = 0
    band: Band = WHOLE
    """With a distance, the band that comes first."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.distance}-{self.band.first_bit}" if self.distance else self.kind

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.kind} within {self.distance} bits" if self.distance else self.kind

    def contains(self, file: KeyFile, keys: Keys) -> Mask:
        """For each key [n], whether the file has it, or one within the distance in this band."""
        return self.band.near(file, keys, self.distance) if self.distance else file.contains(keys)


def filters_of(kind: ValueKind, distance: int) -> Sequence[FilterId]:
    """The files that values of one kind belong to."""
    distance = distance if kind == "phash" else 0
    return [FilterId(kind, distance, band) for band in bands(distance)]


@dataclass(frozen=True)
class Collected:
    """All values of several sources."""

    sources: Sequence[KnownSource]
    sorters: Mapping[FilterId, KeySorter]


@contextmanager
def collected(store: Store, lists: Sequence[KnownRows], output: str | None) -> Iterator[Collected]:
    """Read all sources. Scratch files are in `store`, and go with the context. `output`: see `open_source`.

    Raises KnownError for a source that cannot be used.
    """
    opened = [open_source(known, store.files, output) for known in lists]  # all of them, before hours of reading
    sorters: dict[FilterId, KeySorter] = {}
    with ExitStack() as scratch:
        sources = []
        for known, source in zip(lists, opened, strict=True):
            tally = Tally()
            fingerprint = source.fingerprint
            for kind, keys in source.keys(tally):
                for which in filters_of(kind, known.distance):
                    if which not in sorters:
                        sorters[which] = KeySorter(scratch.enter_context(store.new_file()))
                    sorters[which].add(which.band.first(keys))
            sources.append(_record(known, source, fingerprint, tally))
        yield Collected(sources, {which: sorters[which] for which in sorted(sorters)})


def _record(known: KnownRows, source: Source, fingerprint: str, tally: Tally) -> KnownSource:
    return KnownSource(
        known=known,
        is_dataset=isinstance(source, KnownDataset),
        fingerprint=fingerprint,
        values=dict(tally.values),
        unused=dict(tally.unused),
    )


@contextmanager
def key_file(store: Store, sorter: KeySorter) -> Iterator[tuple[IO[bytes], int, str, int]]:
    """(temporary file of keys, number of keys, BLAKE2b-128, number of bytes)."""
    with store.new_file() as file:
        num_keys = write_keys(file, sorter.in_order())
        digest, num_bytes = file_checksum(file)
        yield file, num_keys, digest, num_bytes
