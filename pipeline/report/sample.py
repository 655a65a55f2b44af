"""Chooses the shards that a report reads, and adds up the counts in the manifests of all shards."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.losses import StatusCounts
from pairmill.pipeline.dataset.shard_sample import sample_shards
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.status import Status

MAX_ROWS = 1_000_000
"""Maximum number of rows in the shards that `pairmill report` reads."""


@dataclass
class Totals(StatusCounts):
    """Exact counts of a dataset, from all manifests."""

    rows: int = 0
    """Number of input rows: one per caption."""
    pairs: int = 0
    kept: int = 0
    shards: int = 0
    bytes_fetched: int = 0
    versions: set[str] = field(default_factory=set)
    """Versions of pairmill that wrote the shards."""

    @property
    def stored(self) -> int:
        """The number of rows that can be read: all except the withdrawn ones."""
        return self.rows - self.statuses[Status.WITHDRAWN]

    def add(self, manifest: ShardManifest) -> None:
        """Add the counts of one shard."""
        super().add(manifest)
        self.shards += 1
        self.rows += manifest.rows_in
        self.pairs += manifest.pairs
        self.kept += manifest.kept
        self.bytes_fetched += manifest.bytes_fetched
        self.versions.update(filter(None, [manifest.versions.get("pairmill")]))


def sampled(manifests: Iterable[ShardManifest], max_rows: int, totals: Totals) -> list[int]:
    """Add the manifests, which are in shard order, to the totals. Returns the positions of the shards to read, in
    order."""

    def sizes() -> Iterator[tuple[int, int]]:
        for manifest in manifests:
            totals.add(manifest)
            yield manifest.shard, manifest.rows_in

    return sample_shards(sizes(), max_rows)


def sample_note(rows_read: int, totals: Totals) -> str:
    """`sampled 1,000 of 9,000 rows`; empty if all rows were read."""
    return f"sampled {rows_read:,} of {counted(totals.stored, 'row')}" if rows_read < totals.stored else ""
