"""Defines the stages that only `embed --add-model` has: they read committed pairs and write added columns."""

from dataclasses import dataclass
from typing import ClassVar

from pairmill.pipeline.columns.added_model import PairsReader, write_columns
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.dataset.manifests import read_manifest
from pairmill.pipeline.stages.stage import JobStage, StageName
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest


@dataclass(frozen=True)
class ReadPairs(JobStage):
    """Reads the pairs of a committed shard, with their pictures."""

    name: ClassVar[StageName] = "read"

    def open(self, hooks: WorkerHooks) -> "OpenPairsReader":
        """Start the reading threads."""
        return OpenPairsReader(self, PairsReader(self.store, self.mapping, self.job))


@dataclass(frozen=True)
class OpenPairsReader:
    """An opened ReadPairs."""

    spec: ReadPairs
    reader: PairsReader

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """The rows of the pairs file, in its order."""
        manifest = read_manifest(self.spec.store, batch.info.base_manifest)
        return batch.with_table(self.reader.read(batch.info.shard, manifest))

    def close(self) -> None:
        """Stop the reading threads."""
        self.reader.close()


@dataclass(frozen=True)
class WriteColumns(JobStage):
    """Writes the columns of the job's only model. The shard's own files do not change."""

    job_fingerprint: str = ""
    name: ClassVar[StageName] = "commit"

    def open(self, hooks: WorkerHooks) -> "OpenColumnsWriter":
        """Write with this job's fingerprint."""
        return OpenColumnsWriter(self)


@dataclass(frozen=True)
class OpenColumnsWriter:
    """An opened WriteColumns."""

    spec: WriteColumns

    def __call__(self, batch: ShardBatch) -> ShardManifest:
        """Write the columns, then their manifest. Returns the shard's manifest."""
        manifest = read_manifest(self.spec.store, batch.info.base_manifest)
        write_columns(self.spec.store, batch, manifest, self.spec.job_fingerprint)
        return manifest

    def close(self) -> None:
        """Nothing is kept open between shards."""
