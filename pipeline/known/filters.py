"""Turns datasets and lists into files of keys, in bounded memory: 64 MB, plus one batch of values.

Needs 8 bytes of disk per value, and another 8 per distinct value.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.datasets import KnownDataset
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.lookup import Collector, FilterId, filters_of
from pairmill.pipeline.known.read_values import Tally
from pairmill.pipeline.known.sources import Source, open_source
from pairmill.schemas.known import KnownRows, KnownSource


@dataclass(frozen=True)
class Collected:
    """All values of several sources."""

    sources: Sequence[KnownSource]
    collectors: Mapping[FilterId, Collector]


@contextmanager
def collected(store: Store, lists: Sequence[KnownRows], output: str | None) -> Iterator[Collected]:
    """Read all sources. Scratch files in `store` are deleted when the context ends. `output`: see `open_source`.

    Raises KnownError for a source that cannot be used.
    """
    opened = [open_source(known, store.files, output) for known in lists]  # open all of them before hours of reading
    collectors: dict[FilterId, Collector] = {}
    with ExitStack() as scratch:
        sources = []
        for known, source in zip(lists, opened, strict=True):
            tally = Tally()
            fingerprint = source.fingerprint
            for kind, keys in source.keys(tally):
                for which in filters_of(kind, known.distance):
                    if which not in collectors:
                        collectors[which] = which.collector(scratch.enter_context(store.new_file()))
                    collectors[which].add(keys)
            if not isinstance(source, KnownDataset) and not tally.values.total():
                raise KnownError(f"{known.path} has no values; a list needs at least one")
            sources.append(_record(known, source, fingerprint, tally))
        yield Collected(sources, {which: collectors[which] for which in sorted(collectors)})


def _record(known: KnownRows, source: Source, fingerprint: str, tally: Tally) -> KnownSource:
    return KnownSource(
        known=known,
        is_dataset=isinstance(source, KnownDataset),
        fingerprint=fingerprint,
        values=dict(tally.values),
        unused=dict(tally.unused),
    )


@contextmanager
def values_file(store: Store, collector: Collector) -> Iterator[tuple[IO[bytes], int, str, int]]:
    """(temporary file of values, number of values, BLAKE2b-128, number of bytes)."""
    with store.new_file() as file:
        num_values = collector.write(file)
        digest, num_bytes = file_checksum(file)
        yield file, num_values, digest, num_bytes
