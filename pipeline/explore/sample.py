"""Decides which shards to show: all of them, or a sample of whole shards if there are too many rows."""

from dataclasses import dataclass, replace

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.shard_sample import sample_shards
from pairmill.pipeline.reader.snapshot import Snapshot

MAX_ROWS = 2_000_000
"""If there are more input rows than this, only a sample of shards is shown."""


@dataclass(frozen=True)
class Sampled:
    """A snapshot of all or some of a dataset's shards."""

    snapshot: Snapshot
    shards: int
    """Number of finished shards in the dataset."""
    input_rows: int
    """Number of input rows of the finished shards."""
    shown_input_rows: int
    """Number of input rows of the shards that are shown."""

    @property
    def is_sample(self) -> bool:
        """Whether shards are left out."""
        return len(self.snapshot.generations) < self.shards

    @property
    def notice(self) -> str | None:
        """The notice on every page if a sample is shown."""
        if not self.is_sample:
            return None
        return (
            f"Counts are from a sample: {len(self.snapshot.generations):,} of {counted(self.shards, 'shard')}, "
            f"{self.shown_input_rows:,} of {self.input_rows:,} input rows."
        )


def sample(snapshot: Snapshot, max_rows: int = MAX_ROWS) -> Sampled:
    """The whole snapshot, or always the same sample of shards with up to `max_rows` input rows."""
    planned = dict(
        zip(snapshot.plan.shards["shard"].to_pylist(), snapshot.plan.shards["num_rows"].to_pylist(), strict=True)
    )
    sizes = [(shard, planned[shard]) for shard, _ in snapshot.generations]
    total = sum(rows for _, rows in sizes)
    if total <= max_rows:
        return Sampled(snapshot, len(sizes), total, total)
    chosen = sample_shards(sizes, max_rows)
    some = replace(snapshot, generations=[snapshot.generations[position] for position in chosen])
    return Sampled(some, len(sizes), total, sum(sizes[position][1] for position in chosen))
