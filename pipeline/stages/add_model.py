"""Defines the stages that only `embed --add-model` uses: they read committed pairs and write added columns."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.pairs_reader import PairsReader
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.dataset.manifests import may_be_superseded, read_manifest
from pairmill.pipeline.stages.stage import JobStage, StageName
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.pairs import score_column_names


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
        with may_be_superseded(self.spec.store, batch.info.shard.shard, batch.info.generation or 0):
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
        with may_be_superseded(self.spec.store, batch.info.shard.shard, batch.info.generation or 0):
            manifest = read_manifest(self.spec.store, batch.info.base_manifest)
        (contract,) = batch.info.contracts
        columns = batch.table.select(["row_id", *score_column_names(contract.alias)])
        write_columns(
            self.spec.store,
            contract.alias,
            columns,
            manifest,
            {"models": [asdict(contract)]},
            self.spec.job_fingerprint,
            _left_out(batch.table, contract.alias),
        )
        return manifest

    def close(self) -> None:
        """Nothing is kept open between shards."""


def _left_out(table: pa.Table, alias: str) -> int:
    """The number of pairs that have a picture but no embedding of it."""
    lacking = table[f"image_embedding_{alias}"].is_null()
    return pc.sum(pc.and_(table["image_tar"].is_valid(), lacking)).as_py() or 0
