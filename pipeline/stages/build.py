"""Defines the stages of `build` and `embed`: read, download or load, encode, commit."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pyarrow.compute as pc

from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.progress import WorkProgress
from pairmill.pipeline.dataset.commit import AccountingError, ShardWriter
from pairmill.pipeline.dataset.shard_duplicates import refuse_duplicates
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.purge.gate import Gate
from pairmill.pipeline.source.mapping import NoPictures
from pairmill.pipeline.source.rows import ShardReader
from pairmill.pipeline.stages.stage import JobStage, Stage, StageName
from pairmill.schemas.batch import ShardBatch
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.pairs import IMAGE_COLUMN, IS_PAIR_COLUMN, KEPT_STATUS, PICTURE, VERDICT, score_column_names
from pairmill.schemas.status import Step

if TYPE_CHECKING:
    from pairmill.pipeline.encode.encoder import Encoder
    from pairmill.pipeline.fetch.downloader import Downloader
    from pairmill.pipeline.fetch.img2dataset_engine import Img2datasetDownloader
    from pairmill.pipeline.source.corpus.load import Loader


@dataclass(frozen=True)
class ReadRows(JobStage):
    """Reads the rows of a planned shard, drops known rows, and applies caption and URL rules."""

    name: ClassVar[StageName] = "read"

    def open(self, hooks: WorkerHooks) -> Stage:
        """Open the reader, which needs neither a model nor the network."""
        return self.open_all()

    def open_all(self) -> "OpenReader":
        """Open a reader of whole shards."""
        return OpenReader(self, ShardReader(self.store, self.mapping), self.gate())


@dataclass(frozen=True)
class OpenReader:
    """An opened ReadRows."""

    spec: ReadRows
    reader: ShardReader
    gate: Gate

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """All rows of the shard."""
        batch = batch.with_table(self.gate(self.reader.read(batch.info.shard)))
        if self.spec.job.rules.known:
            batch = self.spec.apply_rules(batch, Step.INPUT)
        batch = self.spec.apply_rules(batch, Step.CAPTION)
        return batch if self.spec.job.source.is_corpus else self.spec.apply_rules(batch, Step.URL)

    def close(self) -> None:
        """Close the input file."""
        self.reader.close()


@dataclass(frozen=True)
class Download(JobStage):
    """Downloads pictures and applies image rules. Rows that pass are pairs."""

    name: ClassVar[StageName] = "download"

    def open(self, hooks: WorkerHooks) -> "OpenDownload":
        """Start the job's download engine."""
        sha256_column = self.mapping.output_name(self.mapping.sha256_column)
        if self.job.fetch.engine == "img2dataset":
            from pairmill.pipeline.fetch.img2dataset_engine import Img2datasetDownloader

            engine = Img2datasetDownloader(self.job, sha256_column)
            return OpenDownload(self, engine, hooks.progress, self.gate())
        from pairmill.pipeline.fetch.downloader import Downloader

        on_hang = None if self.isolated else hooks.on_hang
        downloader = Downloader(self.job, sha256_column, self.isolated, on_hang)
        hooks.progress.in_flight = downloader.in_flight
        return OpenDownload(self, downloader, hooks.progress, self.gate())


@dataclass(frozen=True)
class OpenDownload:
    """An opened Download."""

    spec: Download
    downloader: "Downloader | Img2datasetDownloader"
    progress: WorkProgress
    gate: Gate

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """Fetch and decode the rows that are still `ok`."""
        self.spec.custom_rules()  # before any download, so that a broken rule wastes no requests
        with self.progress.shard(batch.info.shard.num_rows) as progress:
            table = self.gate(self.downloader(batch.table, progress))
        return _with_pairs(self.spec, self.spec.apply_rules(batch.with_table(table), Step.IMAGE))

    def close(self) -> None:
        """Stop downloads in progress."""
        self.downloader.close()


@dataclass(frozen=True)
class Load(JobStage):
    """Reads the pictures of a corpus from the input and applies image rules that need no pixels."""

    name: ClassVar[StageName] = "load"

    def open(self, hooks: WorkerHooks) -> "OpenLoad":
        """Start the reading threads."""
        from pairmill.pipeline.source.corpus.load import Loader

        loader = Loader(self.job, self.store.files, self.isolated)
        return OpenLoad(self, loader, hooks.progress, self.gate())


@dataclass(frozen=True)
class OpenLoad:
    """An opened Load."""

    spec: Load
    loader: "Loader"
    progress: WorkProgress
    gate: Gate

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """Read the pictures of the rows that are still `ok`."""
        self.spec.custom_rules()
        has_pictures = not isinstance(self.spec.mapping.pictures, NoPictures)
        with self.progress.shard(batch.info.shard.num_rows) as progress:
            batch = batch.with_table(self.gate(self.loader(batch.table, has_pictures, progress)))
        if self.spec.job.rules.known:
            batch = self.spec.apply_rules(batch, Step.INPUT)  # applied again, for uids that depend on the picture
        return _with_pairs(self.spec, self.spec.apply_rules(batch, Step.IMAGE))

    def close(self) -> None:
        """Stop the reading threads."""
        self.loader.close()


def _with_pairs(spec: JobStage, batch: ShardBatch) -> ShardBatch:
    """Mark the rows that passed all rules so far as pairs.

    The commit refuses all but one of the pairs with the same uid. They are refused here, before they are encoded, if
    all of them would get the same scores and verdicts.
    """
    is_pair = pc.equal(batch.table["status"], KEPT_STATUS)
    index = batch.table.schema.get_field_index(IS_PAIR_COLUMN.name)
    table = batch.table.set_column(index, IS_PAIR_COLUMN, is_pair)
    if spec.mapping.uid_column or any(rule.step is Step.SCORE for rule in spec.custom_rules()):
        return batch.with_table(table)  # rows with the same uid can get different scores or verdicts
    distinct = refuse_duplicates(table)
    if distinct is not table:  # a shard could consist of copies of one large picture
        pictures = pc.if_else(distinct[IS_PAIR_COLUMN.name], distinct[IMAGE_COLUMN.name], None)
        distinct = distinct.set_column(distinct.schema.get_field_index(IMAGE_COLUMN.name), IMAGE_COLUMN, pictures)
    return batch.with_table(distinct)


@dataclass(frozen=True)
class Encode(JobStage):
    """Adds the embeddings and similarities of every model to pairs.

    Returns only the columns that it sets, without pictures: the committer joins them to the stage's input, row by row.
    """

    name: ClassVar[StageName] = "encode"
    returns_changes: ClassVar[bool] = True

    def open(self, hooks: WorkerHooks) -> "OpenEncode":
        """Load the models. Raises ModelError."""
        from pairmill.pipeline.encode.encoder import Encoder  # loads torch, which only this stage needs

        scores = self.job.picture_scores if self.job.source.is_corpus else {}  # for other sources, see Download
        encoder = Encoder(self.job.models, self.job.run, self.job.images, hooks, scores)
        return OpenEncode(self, encoder, hooks.progress)


_COLUMNS_OF_DECODING = (*VERDICT.names, IS_PAIR_COLUMN.name, *PICTURE.names, "original_width", "original_height")
"""Columns that an encoder can set, because it is the first to decode the pictures of a corpus."""


@dataclass(frozen=True)
class OpenEncode:
    """An opened Encode."""

    spec: Encode
    encoder: "Encoder"
    progress: WorkProgress

    def __call__(self, batch: ShardBatch) -> ShardBatch:
        """The score columns of every model and, for a corpus, the columns that need pixels."""
        pixels = "the original picture, upright, in sRGB" if self.spec.job.source.is_corpus else "stored picture"
        contracts = tuple(replace(model.contract, pixels=pixels) for model in self.encoder.models)
        scores = [name for model in self.encoder.models for name in score_column_names(model.alias)]
        with self.progress.shard(batch.info.shard.num_rows) as progress:
            table = self.encoder(batch.table, progress)
        decoded = [
            name for name in _COLUMNS_OF_DECODING if name in batch.table.column_names
        ]  # committed pairs have only some of these columns
        measured = [name for name in self.spec.job.score_columns.names if name in table.column_names]
        return batch.with_table(table.select([*decoded, *measured, *scores])).with_info(contracts=contracts)

    def close(self) -> None:
        """Stop the decoding threads."""
        self.encoder.close()


@dataclass(frozen=True)
class Commit(JobStage):
    """Applies score rules, writes the shard and returns its manifest."""

    job_fingerprint: str = ""
    name: ClassVar[StageName] = "commit"

    def open(self, hooks: WorkerHooks) -> Stage:
        """Write with this job's fingerprint."""
        return OpenCommit(self, self.writer(), self.gate(check_s=0))

    def writer(self) -> ShardWriter:
        """The writer of this job's shards."""
        return ShardWriter(
            store=self.store,
            extra=self.mapping.extra,
            aliases=[model.alias for model in self.job.models],
            scores=self.job.score_columns,
            images=None if self.job.source.is_corpus else self.job.images,
            job_fingerprint=self.job_fingerprint,
            versions=versions(),
            rule_steps={rule.name: rule.step for rule in self.custom_rules()},
            carried=self.mapping.carried(self.job.images.carry),
            has_checksums=self.mapping.has_checksums,
        )

    def scored(self, batch: ShardBatch, gate: Gate) -> ShardBatch:
        """Apply the score rules, and check once more for withdrawn rows. Raises AccountingError if the batch has lost
        rows."""
        if batch.info.rows_in != batch.table.num_rows:
            raise AccountingError(f"{batch.info.rows_in} rows read, {batch.table.num_rows} to commit")
        batch = self.apply_rules(batch, Step.SCORE)
        return batch.with_table(gate(batch.table))


@dataclass(frozen=True)
class OpenCommit:
    """An opened Commit."""

    spec: Commit
    writer: ShardWriter
    gate: Gate

    def __call__(self, batch: ShardBatch) -> ShardManifest:
        """Write the data files, then the manifest."""
        return self.writer.commit(self.spec.scored(batch, self.gate))

    def close(self) -> None:
        """Nothing is kept open between shards."""
