"""`pairmill export MIX`: writes a mixture as WebDataset tars or as Parquet."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pairmill.jobs.export import ExportResult, export, write_parts
from pairmill.jobs.export_claim import begun_export, newer_columns, without_columns
from pairmill.jobs.select import SelectInput, open_input
from pairmill.pipeline.columns.added_model import fingerprints
from pairmill.pipeline.columns.caption_choice import ORIGINAL
from pairmill.pipeline.columns.common_columns import (
    DATASET,
    CommonColumns,
    NamedColumns,
    common_columns,
    meanings,
)
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import describe
from pairmill.pipeline.dataset.exports import note_export
from pairmill.pipeline.dataset.mixture import is_mixture, outdated_error, read_mixture
from pairmill.pipeline.dataset.output_folder import check_export_folder, records_folder
from pairmill.pipeline.dataset.purge_watch import PurgeWatch
from pairmill.pipeline.dataset.subset import WEIGHT, newest_generations, read_shards
from pairmill.pipeline.export.formats import Format, ParquetFiles, WebDataset
from pairmill.pipeline.export.index_files import write_index
from pairmill.pipeline.export.mixture import MixtureSources
from pairmill.pipeline.export.order import (
    GroupSlice,
    ShardGroup,
    SubsetShard,
    cut_into_parts,
    cut_mixture,
    group_shards,
)
from pairmill.pipeline.export.reader import ExportSource
from pairmill.pipeline.export.repetition import Repetition
from pairmill.pipeline.export.write import PartWriter
from pairmill.pipeline.source.mapping import NoPictures
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import LAYOUT, ExportJob, ExportRecord
from pairmill.schemas.mixture import Mixture
from pairmill.schemas.pairs import is_embedding
from pairmill.schemas.purge import ExportNote


@dataclass(frozen=True)
class _Source:
    """A dataset of the mixture."""

    name: str
    input: SelectInput
    source: ExportSource
    shards: list[SubsetShard]

    @property
    def aliases(self) -> list[str]:
        """All models of the dataset."""
        return [*(model.alias for model in self.source.job.models), *self.input.added.models]

    def columns(self) -> NamedColumns:
        """The columns, and what they mean."""
        chunk = describe(self.input.store, self.input.shards[:1], self.input.added.names)
        first = self.aliases[0] if self.aliases else None
        return NamedColumns(self.name, self.input.schema, meanings(chunk, self.input.added, first))

    def fingerprints(self, columns: Sequence[str]) -> Iterator[tuple[str, str]]:
        """The added models and scores that have any of these columns, and their fingerprints."""
        added = self.input.added
        for name, value in fingerprints(added, added.with_columns(columns)).items():
            yield f"{self.name}: {name}", value


def export_any(job: ExportJob, on_step: OnStep = ignore_step) -> ExportResult:
    """Export a subset, or a mixture if `dataset` is one. Raises JobError."""
    check_buckets([job.dataset, job.output], job.s3)
    store = Store(job.dataset, job.s3)
    return _export(job, store, on_step) if is_mixture(store) else export(job, on_step)


def _export(job: ExportJob, store: Store, on_step: OnStep) -> ExportResult:
    check_export_folder(Store(job.output, job.s3))
    _check(job)
    watches = tuple(PurgeWatch.start(Store(source.dataset, job.s3)) for source in read_mixture(store).sources)
    with ExitStack() as explained:
        for watch in watches:
            explained.enter_context(watch.explained())
        return _export_sources(job, store, watches, on_step)


def _export_sources(job: ExportJob, store: Store, watches: tuple[PurgeWatch, ...], on_step: OnStep) -> ExportResult:
    mixture, output = read_mixture(store), Store(job.output, job.s3)
    repetition = Repetition.of(job, mixture.sources[0].rows)  # either all datasets have weights, or none has
    sources = list(_open(job, store, mixture, repetition))
    common = common_columns([source.columns() for source in sources])
    form = _format(job, sources, common, repetition)
    schema = _with_weight(common.schema) if repetition.has_column else common.schema
    parts = _parts(job, sources)
    newer = newer_columns(begun_export(output), form.columns(schema), [source.input.added for source in sources], ())
    schema = without_columns(schema, newer)
    columns = form.columns(schema)
    reader = MixtureSources(
        tuple(source.name for source in sources), tuple(source.source for source in sources), schema
    )
    digits, records = max(5, len(str(len(parts) - 1))), records_folder(output)
    writer = PartWriter(
        reader, output, form, job.shuffle_seed, tuple(columns), digits, records, None, repetition.copies_rows, watches
    )
    record = ExportRecord(
        dataset=store.root,
        subset="",
        subset_attempt=mixture.attempt,
        format=job.format,
        samples_per_file=job.samples_per_file,
        shuffle_seed=job.shuffle_seed,
        columns=columns,
        rows=sum(shard.num_rows for source in sources for shard in source.shards),
        num_files=len(parts),
        layout=LAYOUT,
        repeat=repetition.mode,
        added={name: value for source in sources for name, value in source.fingerprints(writer.read_columns)},
    )
    note = ExportNote(output=output.root, subset="", format=job.format)
    noted = [note_export(each.input.store, note) for each in sources]  # so that a purge of any of them finds it
    written = write_parts(job, writer, record, parts, on_step)
    updated = write_index(writer, record, schema)
    output.remove_temporary()
    left_out = {name: why for name, why in common.left_out.items() if _is_written(job, sources, name)}
    return ExportResult(
        output.root,
        record,
        written,
        is_noted=all(noted),
        columns_left_out=left_out,
        newer_columns=newer,
        updated=() if written else updated,
    )


def _check(job: ExportJob) -> None:
    """Raise JobError if a mixture cannot be exported with these settings."""
    if job.subset is not None:
        raise JobError(f"subset: {job.dataset} is a mixture, which has no subsets; pass only the mixture and an output")
    if job.format not in ("webdataset", "parquet"):
        raise JobError(
            f"format: a mixture can be exported as webdataset or parquet, not as {job.format}; export its datasets one "
            "by one, or read it with PairDataset"
        )
    if job.models is not None:
        raise JobError(f"models: {job.format} stores no embeddings; use PairDataset")
    if job.caption != ORIGINAL:
        raise JobError(
            "caption: a mixture is exported with its original captions; to use others, read it with PairDataset"
        )


def _open(job: ExportJob, store: Store, mixture: Mixture, repetition: Repetition) -> Iterator[_Source]:
    """Raises SubsetError if a dataset has changed since it was mixed, and JobError if it has no pictures."""
    for number, source in enumerate(mixture.sources):
        opened = open_input(source.dataset, job.s3, partial=True)
        plan, repeated = load_plan(opened.store), repetition.shard_rows(store, source.rows)

        outdated = partial(outdated_error, store, mixture, number)
        newest = newest_generations(opened.store, read_shards(store, source.rows), outdated)
        shards = []
        for shard in read_shards(store, source.rows):
            rows = shard.num_selected if repeated is None else repeated.get(shard.shard, 0)
            if rows:
                generation = newest[shard.shard]
                shards.append(SubsetShard(shard.shard, generation, shard.pairs_blake2b, rows, shard.path))
        opened = opened.of_shards({shard.shard: shard.generation for shard in shards})
        if isinstance(plan.mapping.pictures, NoPictures):
            raise JobError(f"{source.dataset} has only captions, but {job.format} needs pictures")
        if plan.job.images.store == "none" and not plan.job.source.is_corpus:
            raise JobError(f"{source.dataset} stored no pictures (images.store: none), which {job.format} needs")
        exported = ExportSource(opened.store, plan.job, plan.mapping, opened.added, store)
        yield _Source(source.name, opened, exported, shards)


def _with_weight(schema: pa.Schema) -> pa.Schema:
    if WEIGHT in schema.names:
        raise JobError(f"the datasets have a column {WEIGHT!r}, and so does the mixture; export with repeat=copies")
    return schema.append(pa.field(WEIGHT, pa.float32()))


def _format(job: ExportJob, sources: Sequence[_Source], common: CommonColumns, repetition: Repetition) -> Format:
    models = list(dict.fromkeys(alias for source in sources for alias in source.aliases))
    if job.format == "parquet":
        return ParquetFiles(models)
    carried = [name for name in _carried(job, sources) if name not in common.left_out]
    weight = [WEIGHT] if repetition.has_column else []
    has_captions = all(source.source.mapping.has_captions for source in sources)
    return WebDataset(models, has_captions, [*carried, DATASET, *weight])


def _carried(job: ExportJob, sources: Sequence[_Source]) -> list[str]:
    """The input columns of all datasets that go into the `.json`. Raises JobError if a dataset lacks a column that the
    job names."""
    found: dict[str, None] = {}
    for source in sources:
        try:
            carry = source.source.job.images.carry if job.carry is None else job.carry
            found |= dict.fromkeys(source.source.mapping.carried(carry))
        except ValueError as error:
            raise JobError(f"{source.name}: {error}".replace("images.carry", "carry")) from None
    return list(found)


def _parts(job: ExportJob, sources: Sequence[_Source]) -> list[list[GroupSlice]]:
    """The parts. Each has its share of every dataset; without a shuffle, the datasets follow one another."""
    if job.shuffle_seed is not None:
        groups = [group_shards(source.shards, job.shuffle_seed, 0, number) for number, source in enumerate(sources)]
        return list(cut_mixture(groups, job.samples_per_file))
    one_by_one: list[ShardGroup] = []
    for number, source in enumerate(sources):
        start = one_by_one[-1].end if one_by_one else 0
        one_by_one += group_shards(source.shards, None, start, number)
    return list(cut_into_parts(one_by_one, job.samples_per_file))


def _is_written(job: ExportJob, sources: Sequence[_Source], name: str) -> bool:
    """Whether an export would have a column if all datasets had it."""
    fields = [source.input.schema.field(name) for source in sources if name in source.input.schema.names]
    if any(is_embedding(field) for field in fields):
        return False
    return job.format == "parquet" or name.startswith("similarity_") or name in _carried(job, sources)
