"""Defines the interface of a stage, which is built once per worker and called once per shard."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

from pairmill.pipeline import rules
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import AccountingError
from pairmill.pipeline.purge.gate import CHECK_S, Gate
from pairmill.pipeline.purge.picture_hashes import PictureHashes
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.status import Step

StageName = Literal["read", "download", "load", "encode", "commit"]


class Stage(Protocol):
    """One step of the work, with state that is kept between shards (a session, a model)."""

    def __call__(self, batch: ShardBatch) -> ShardBatch | ShardManifest:
        """Process a batch for the next stage. The last stage returns the manifest of the committed shard."""

    def close(self) -> None:
        """Release threads, files and connections."""


class StageSpec(Protocol):
    """A stage before it is opened: plain values that can be sent to workers."""

    @property
    def name(self) -> StageName:
        """The name of the stage's worker pool."""

    @property
    def isolated(self) -> bool:
        """Whether the stage decodes pictures and runs custom rules in a child process, so that a crash loses only one
        row."""

    @property
    def returns_changes(self) -> bool:
        """Whether the returned batch has only the columns that the stage set or added."""

    def isolate(self) -> "StageSpec":
        """The same stage, isolated and slower."""

    def open(self, hooks: WorkerHooks) -> Stage:
        """Build the stage in this process."""


@dataclass(frozen=True)
class JobStage:
    """The common base of a job's stages."""

    job: BuildJob
    mapping: ColumnMapping
    isolated: bool = False
    returns_changes: ClassVar[bool] = False

    @property
    def store(self) -> Store:
        """The output folder."""
        return Store(self.job.output, self.job.s3)

    def isolate(self) -> Self:
        """The same stage, working in a child process."""
        return replace(self, isolated=True)

    def gate(self, check_s: float = CHECK_S) -> Gate:
        """What keeps withdrawn rows out. `check_s`: how often it looks for new requests."""
        return Gate(self.store, PictureHashes(self.job.images, self.job.run.decode_threads), check_s)

    def apply_rules(self, batch: ShardBatch, step: Step) -> ShardBatch:
        """Apply the job's rules for one step, custom rules last."""
        bound = rules.SourceRules.of(self.job, self.mapping)
        return batch.with_table(rules.apply_rules(batch.table, step, bound, self.custom_rules()))

    def custom_rules(self) -> list[rules.CustomRule]:
        """The user's custom rules. Raises ValueError if one cannot be loaded."""
        load = rules.isolated if self.isolated else rules.load_custom_rule
        return [load(name, Path.cwd()) for name in self.job.rules.custom]


def run_stage(name: StageName, stage: Stage, batch: ShardBatch) -> ShardBatch | ShardManifest:
    """Call a stage, check that it lost or added no rows, and record its wall time."""
    started = time.perf_counter()
    result = stage(batch)
    if isinstance(result, ShardManifest):
        return result
    rows = result.table.num_rows
    if name != "read" and rows != batch.table.num_rows:
        raise AccountingError(f"stage {name} got {batch.table.num_rows} rows and returned {rows}")
    seconds = {**result.info.seconds, name: round(time.perf_counter() - started, 3)}
    return result.with_info(seconds=seconds, rows_in=rows if name == "read" else result.info.rows_in)
