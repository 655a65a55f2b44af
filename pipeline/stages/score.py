"""Defines the stages of `score` for scores that need pictures: read committed pairs, score them, write the columns."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.column_files import write_columns
from pairmill.pipeline.columns.commands import score_footer
from pairmill.pipeline.columns.score_card import ScoreCard, read_score_card
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.dataset.chunks import describe
from pairmill.pipeline.dataset.manifests import may_be_superseded, read_manifest
from pairmill.pipeline.score.isolated import IsolatedScore
from pairmill.pipeline.score.kind import LEFT_OUT, PICTURE, RowScore
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.score_shard import opened, score_rows
from pairmill.pipeline.stages.stage import JobStage, StageName
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest


@dataclass(frozen=True)
class ScorePictures(JobStage):
    """Computes the columns of a score for pairs with their pictures. Returns only these columns."""

    score_name: str = ""
    sources: tuple[str, ...] = ()
    """The models and scores in `columns/` whose columns the score reads."""
    name: ClassVar[StageName] = "encode"
    returns_changes: ClassVar[bool] = True

    def open(self, hooks: WorkerHooks) -> "OpenScorePictures":
        """Open the score."""
        card = read_score_card(self.store, self.score_name)
        run = self.job.run
        score = IsolatedScore(self.store, card, run) if self.isolated else opened(self.store, card, run)
        return OpenScorePictures(self, card, score, hooks)


@dataclass(frozen=True)
class OpenScorePictures:
    """An opened ScorePictures."""

    spec: ScorePictures
    card: ScoreCard
    score: RowScore
    hooks: WorkerHooks

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """The columns of the score, and LEFT_OUT."""
        needed = kind_of(self.card.name, self.card.score).needs.columns
        shard = batch.info.shard.shard, batch.info.generation or 0
        with may_be_superseded(self.spec.store, *shard):
            chunk = describe(self.spec.store, [shard], self.spec.sources)
            rows = chunk.read(chunk.shards[0], needed | {"row_id"}).append_column(PICTURE, batch.table[PICTURE])
        with self.hooks.progress.shard(batch.info.shard.num_rows) as progress:
            progress.expect(rows.num_rows)
            made = self._score(rows)
            progress.done(rows.num_rows, rows.num_rows - (pc.sum(made[LEFT_OUT]).as_py() or 0))
        return batch.with_table(made)

    def _score(self, rows: pa.Table) -> pa.Table:
        try:
            return score_rows(self.card, self.score, rows)
        except TimeoutError:  # a decoder hangs in C code, so only exiting the process stops it
            if self.hooks.on_hang is not None:
                self.hooks.on_hang()
            raise

    def close(self) -> None:
        """Stop the child process, if there is one."""
        if isinstance(self.score, IsolatedScore):
            self.score.close()


@dataclass(frozen=True)
class WriteScore(JobStage):
    """Writes the columns of a score. The shard's own files do not change."""

    score_name: str = ""
    name: ClassVar[StageName] = "commit"

    def open(self, hooks: WorkerHooks) -> "OpenWriteScore":
        """Write with the fingerprint of the score's card."""
        return OpenWriteScore(self, read_score_card(self.store, self.score_name))


@dataclass(frozen=True)
class OpenWriteScore:
    """An opened WriteScore."""

    spec: WriteScore
    card: ScoreCard

    def __call__(self, batch: ShardBatch) -> ShardManifest:
        """Write the columns, then their manifest. Returns the shard's manifest."""
        with may_be_superseded(self.spec.store, batch.info.shard.shard, batch.info.generation or 0):
            manifest = read_manifest(self.spec.store, batch.info.base_manifest)
        columns = batch.table.select(["row_id", *kind_of(self.card.name, self.card.score).schema.names])
        missing = pc.and_(batch.table["image_tar"].is_valid(), batch.table[PICTURE].is_null())
        left_out = pc.sum(pc.or_(missing, batch.table[LEFT_OUT])).as_py() or 0
        footer = score_footer(self.card.name, self.card.score)
        write_columns(self.spec.store, self.card.name, columns, manifest, footer, self.card.fingerprint, left_out)
        return manifest

    def close(self) -> None:
        """Nothing is kept open between shards."""
