"""Defines the ordered list of stages of each command, and `process_shard()`, the plain loop over them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

from pairmill.pipeline.common.hooks import NO_HOOKS
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.stages.add_model import ReadPairs, WriteColumns
from pairmill.pipeline.stages.build import Commit, Download, Encode, Load, ReadRows
from pairmill.pipeline.stages.retry import CommitNextGeneration, ReadFailedRows
from pairmill.pipeline.stages.score import ScorePictures, WriteScore
from pairmill.pipeline.stages.stage import Stage, StageName, StageSpec, run_stage
from pairmill.schemas.batch import BatchInfo, ShardBatch
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import Shard, ShardManifest


@dataclass(frozen=True)
class Pipeline:
    """The stages that a command runs on each shard."""

    job: BuildJob
    stages: tuple[StageSpec, ...]

    @property
    def store(self) -> Store:
        """The output folder."""
        return Store(self.job.output, self.job.s3)

    @property
    def names(self) -> list[StageName]:
        """The names of the stages, in order."""
        return [spec.name for spec in self.stages]

    @property
    def is_isolated(self) -> bool:
        """Whether any stage works in a child process, one shard at a time."""
        return any(spec.isolated for spec in self.stages)

    def isolated(self) -> Self:
        """The same pipeline for shards that killed a worker: a child process that dies loses only one row."""
        return replace(self, stages=tuple(stage.isolate() for stage in self.stages))


def build_pipeline(job: BuildJob, mapping: ColumnMapping, job_fingerprint: str) -> Pipeline:
    """The pipeline of `build`, or of `embed` if the source is a corpus."""
    commit = Commit(job, mapping, job_fingerprint=job_fingerprint)
    if job.source.is_corpus:
        return Pipeline(job, (ReadRows(job, mapping), Load(job, mapping), Encode(job, mapping), commit))
    return Pipeline(job, (ReadRows(job, mapping), *_download_and_encode(job, mapping), commit))


def retry_pipeline(job: BuildJob, mapping: ColumnMapping, job_fingerprint: str, statuses: Iterable[str]) -> Pipeline:
    """The pipeline of `retry`: fetch again the rows of committed shards whose status is in `statuses`."""
    read = ReadFailedRows(job, mapping, statuses=frozenset(statuses))
    commit = CommitNextGeneration(job, mapping, job_fingerprint=job_fingerprint)
    return Pipeline(job, (read, *_download_and_encode(job, mapping), commit))


def add_model_pipeline(job: BuildJob, mapping: ColumnMapping, job_fingerprint: str) -> Pipeline:
    """The pipeline of `embed --add-model`: run the job's only model on the pairs of committed shards."""
    write = WriteColumns(job, mapping, job_fingerprint=job_fingerprint)
    return Pipeline(job, (ReadPairs(job, mapping), Encode(job, mapping), write))


def score_pipeline(job: BuildJob, mapping: ColumnMapping, score_name: str, sources: tuple[str, ...]) -> Pipeline:
    """The pipeline of `score` for scores that need pictures: score the pairs of committed shards."""
    score = ScorePictures(job, mapping, score_name=score_name, sources=sources)
    return Pipeline(job, (ReadPairs(job, mapping), score, WriteScore(job, mapping, score_name=score_name)))


def _download_and_encode(job: BuildJob, mapping: ColumnMapping) -> tuple[StageSpec, ...]:
    """The stages from URLs to scores. Without models, there is nothing to encode."""
    download = Download(job, mapping)
    return (download, Encode(job, mapping)) if job.models else (download,)


def process_shard(shard: Shard, stages: Sequence[tuple[StageSpec, Stage]]) -> ShardManifest:
    """Process one shard from plan to commit, in this process. `stages`: the result of `open_stages`."""
    return process_batch(ShardBatch(BatchInfo(shard), pa.table({})), stages)


def process_batch(batch: ShardBatch, stages: Sequence[tuple[StageSpec, Stage]]) -> ShardManifest:
    """Like `process_shard`, but starts from what `planned_batches` yields for the shard."""
    for spec, stage in stages:
        result = run_stage(spec.name, stage, batch)
        if isinstance(result, ShardManifest):
            return result
        batch = batch.updated(result) if spec.returns_changes else result
    raise ValueError("the last stage of a pipeline must commit")


def open_stages(pipeline: Pipeline) -> list[tuple[StageSpec, Stage]]:
    """Open every stage in this process. The caller closes them."""
    return [(spec, spec.open(NO_HOOKS)) for spec in pipeline.stages]
