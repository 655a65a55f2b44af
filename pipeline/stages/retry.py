"""Defines the stages that only `retry` uses: they read some rows of a shard and write its next generation."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.dataset.manifests import read_manifest, superseding
from pairmill.pipeline.dataset.previous_generation import failed_row_ids, read_previous
from pairmill.pipeline.purge.gate import Gate
from pairmill.pipeline.stages.build import Commit, OpenReader, ReadRows
from pairmill.pipeline.stages.stage import Stage
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest


@dataclass(frozen=True)
class ReadFailedRows(ReadRows):
    """Reads the rows of a committed shard whose status is in `statuses`, as they were before the download."""

    statuses: frozenset[str] = frozenset()

    def open(self, hooks: WorkerHooks) -> Stage:
        """Open the input file and the committed rejects."""
        return OpenFailedReader(self, self.open_all())


@dataclass(frozen=True)
class OpenFailedReader:
    """An opened ReadFailedRows."""

    spec: ReadFailedRows
    all_rows: OpenReader

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """The rows to fetch again. None if another retry has already committed the next generation."""
        rows = self.all_rows(batch)
        try:
            manifest = read_manifest(self.spec.store, batch.info.base_manifest)
            failed = failed_row_ids(self.spec.store, manifest, self.spec.statuses).combine_chunks()
        except FileNotFoundError:
            if _by_another_run(self.spec.store, batch) is None:
                raise
            failed = pa.array([], pa.string())
        return rows.with_table(rows.table.filter(pc.is_in(rows.table["row_id"], value_set=failed)))

    def close(self) -> None:
        """Close the input file."""
        self.all_rows.close()


@dataclass(frozen=True)
class CommitNextGeneration(Commit):
    """Commits the next generation of a shard: the rows that were fetched again, and all other rows unchanged."""

    def open(self, hooks: WorkerHooks) -> Stage:
        """Write with this job's fingerprint."""
        return OpenNextGeneration(self, self.writer(), self.gate(check_s=0))


@dataclass(frozen=True)
class OpenNextGeneration:
    """An opened CommitNextGeneration."""

    spec: CommitNextGeneration
    writer: ShardWriter
    gate: Gate

    def __call__(self, batch: ShardBatch) -> ShardManifest:
        """Write the data files, then the manifest. Returns the valid manifest: this run's, or a faster run's."""
        store = self.spec.store
        try:
            previous = read_previous(store, read_manifest(store, batch.info.base_manifest))
            return self.writer.commit(self.spec.scored(batch, self.gate), previous)
        except FileNotFoundError:
            if (newer := _by_another_run(store, batch)) is None:
                raise
            return newer

    def close(self) -> None:
        """Nothing is kept open between shards."""


def _by_another_run(store: Store, batch: ShardBatch) -> ShardManifest | None:
    """The manifest that has superseded the generation that this retry is based on, whose files may be gone."""
    return superseding(store, batch.info.shard.shard, batch.info.generation or 0)
