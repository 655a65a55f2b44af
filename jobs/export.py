"""`pairmill export`: writes a subset as WebDataset tars, as Parquet, or in the layout of clip-retrieval or DataComp."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from pairmill.jobs.export_claim import begun_export, claim_output, claimed_output, newer_columns, without_columns
from pairmill.jobs.select import SelectInput, open_input, open_tasks
from pairmill.pipeline.columns.added_model import fingerprints, read_card
from pairmill.pipeline.columns.caption_choice import ORIGINAL, caption_choice
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.exports import note_export
from pairmill.pipeline.dataset.output_folder import check_export_folder, records_folder
from pairmill.pipeline.dataset.purge_watch import PurgeWatch
from pairmill.pipeline.dataset.subset import (
    WEIGHT,
    current_generations,
    read_shards,
    read_subset,
    subset_names,
)
from pairmill.pipeline.export.arrays import ClipRetrieval, DataComp, array_prefix, datacomp_names
from pairmill.pipeline.export.formats import Format, ParquetFiles, WebDataset
from pairmill.pipeline.export.index_files import write_index
from pairmill.pipeline.export.order import GroupSlice, SubsetShard, cut_into_parts, group_shards
from pairmill.pipeline.export.reader import ExportSource
from pairmill.pipeline.export.repetition import Repetition
from pairmill.pipeline.export.uid_array import sorted_uids
from pairmill.pipeline.export.write import PartWriter, is_written, write_part
from pairmill.pipeline.reader.weights import with_weight
from pairmill.pipeline.source.mapping import IndexedPictures, NoPictures
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import LAYOUT, ExportFormat, ExportJob, ExportRecord
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.pairs import score_column_names
from pairmill.schemas.purge import ExportNote
from pairmill.schemas.subset import Subset

ROWS_FOR_RAY = 20_000
"""With fewer rows to write, this process alone finishes before a local Ray instance would have started."""
_READERS = 8


@dataclass(frozen=True)
class ExportResult:
    """The state of the output folder after an export."""

    output: str
    record: ExportRecord
    written: int
    """Number of parts that this run wrote; earlier runs wrote the others."""
    models_left_out: tuple[str, ...] = ()
    """Added models that were not written, because some shards of the subset lack them."""
    is_noted: bool = True
    """Whether the dataset has a record of this export, for a later purge. False if the dataset cannot be written to."""
    columns_left_out: Mapping[str, str] = field(default_factory=dict)
    """For a mixture: column that only some of its datasets have -> why it was not written."""
    num_uids: int | None = None
    """For `datacomp`: the number of uids in `subset.npy`, including copies."""
    newer_columns: tuple[str, ...] = ()
    """Columns that the dataset got after this export began, and that its files therefore lack."""
    updated: tuple[str, ...] = ()
    """Files about the whole export that this run wrote although all parts were finished: they were missing or
    different."""


def export(job: ExportJob, on_step: OnStep = ignore_step) -> ExportResult:
    """Write the subset's rows to `output`. If interrupted, run the same job again to resume.

    Raises JobError, before anything is written, if the job cannot run as written.
    """
    check_buckets([job.dataset, job.output], job.s3)
    check_export_folder(Store(job.output, job.s3))
    watch = PurgeWatch.start(Store(job.dataset, job.s3))
    with watch.explained():
        return _export(job, watch, on_step)


def _export(job: ExportJob, watch: PurgeWatch, on_step: OnStep) -> ExportResult:
    dataset, output = open_input(job.dataset, job.s3, partial=True), Store(job.output, job.s3)
    if job.subset is None:
        raise JobError(_without_subset(job, subset_names(dataset.store)))
    subset = read_subset(dataset.store, job.subset)
    if not subset.rows_out:
        raise JobError(f"the subset {job.subset!r} has no rows left: select again, with --refresh or other steps")
    repetition = Repetition.of(job, subset)
    plan, shards = load_plan(dataset.store), list(_shards(dataset.store, subset, repetition))
    if dataset.added.incomplete:  # columns may be missing only from shards that the subset does not use
        dataset = dataset.of_shards({shard.shard: shard.generation for shard in shards})
    source = ExportSource(dataset.store, plan.job, plan.mapping, dataset.added)
    aliases = [*(model.alias for model in plan.job.models), *dataset.added.models]
    begun = begun_export(output)
    begun_with = begun.captions if begun else ()
    choice = caption_choice(dataset.store, dataset.added, job.caption, aliases, begun_with)
    if repetition.has_column:
        dataset = replace(dataset, schema=_with_weights(dataset.schema, job.format))
    output_format = _format(job, source, dataset, repetition)
    newer = newer_columns(begun, output_format.columns(dataset.schema), [dataset.added], job.models or ())
    if newer:
        dataset = replace(dataset, schema=without_columns(dataset.schema, newer))
        output_format = _format(job, source, dataset, repetition)
    seed = job.shuffle_seed if output_format.needs_pictures else None
    parts = list(cut_into_parts(group_shards(shards, seed), job.samples_per_file))
    columns = output_format.columns(dataset.schema)
    shape = sum(shard.num_rows for shard in shards), len(parts)
    digits = max(4 if job.format == "clip-retrieval" else 5, len(str(len(parts) - 1)))
    records = records_folder(output)
    writer = PartWriter(
        source, output, output_format, seed, tuple(columns), digits, records, choice, repetition.copies_rows, (watch,)
    )
    record = _record(job, subset, dataset, shape, writer, repetition)
    note = ExportNote(output=output.root, subset=job.subset, format=job.format)
    is_noted = note_export(dataset.store, note)  # first, so that a purge finds what an interrupted export has written
    written = write_parts(job, writer, record, parts, on_step)
    uids = sorted_uids(dataset.store, subset, record.repeat == "copies") if record.format == "datacomp" else None
    writer.withdraw_if_purged([])  # the purge may have written the same files
    updated = write_index(writer, record, dataset.schema, uids)
    writer.withdraw_if_purged([name for name in updated if name == "subset.npy"])
    output.remove_temporary()
    return ExportResult(
        output.root,
        record,
        written,
        models_left_out=tuple(each.name for each in dataset.added.incomplete),
        is_noted=is_noted,
        num_uids=None if uids is None else len(uids),
        newer_columns=tuple(dict.fromkeys([*newer, *(choice.ignored if choice else ())])),
        updated=() if written else updated,
    )


def _without_subset(job: ExportJob, names: Sequence[str]) -> str:
    """The message for an export of a dataset that names no subset: the only path after the dataset is the output."""
    if not names:
        make = pairmill_command("select", job.dataset, "NAME")
        return f"subset: {job.dataset} has none yet; make one: {make}, with steps"
    if (name := job.output.rpartition("/")[2]) in names:
        example = pairmill_command("export", job.dataset, name, "train")
        return f"output: give a new folder for the files after the subset, as in: {example}"
    example = pairmill_command("export", job.dataset, names[0], job.output)
    return f"subset: choose one of {', '.join(names)}, as in: {example}"


def write_parts(
    job: ExportJob, writer: PartWriter, record: ExportRecord, parts: Sequence[Sequence[GroupSlice]], on_step: OnStep
) -> int:
    """Claim the output and write the parts that are missing or damaged. Returns how many were written. Raises
    JobError."""
    output, records = writer.output, writer.records
    with claimed_output(writer, record) as claimed:
        left = _unwritten(output, records, len(parts), on_step)
        if left and claimed.layout != record.layout:
            raise JobError(
                f"{output.root} contains an export in the layout of an earlier version; choose another folder"
            )
        local, steps = len(left) * job.samples_per_file < ROWS_FOR_RAY, Steps(on_step, f"writing {job.format}")
        with open_tasks(job.run, local, steps) as tasks:
            for _ in tasks.get(tasks.map(write_part, [(writer, number, parts[number]) for number in left])):
                pass
    claim_output(output, records, record)  # again: another run of this export may have failed and released the folder
    return len(left)


def _unwritten(output: Store, records: str, num_parts: int, on_step: OnStep) -> list[int]:
    """The parts that are missing or damaged. Hashing and requests release the GIL, so threads help."""
    left = []
    with ThreadPoolExecutor(_READERS) as pool:
        numbers = range(num_parts)
        for number, done in enumerate(pool.map(lambda number: is_written(output, records, number), numbers)):
            left += [] if done else [number]
            if len(left) <= number:  # there was an earlier run
                on_step("checking files of earlier runs", number, num_parts)
    return left


def _with_weights(schema: pa.Schema, form: ExportFormat) -> pa.Schema:
    """The dataset's columns and the weights of a subset. Raises JobError if the format writes all columns, and the
    dataset has a column of that name itself."""
    if WEIGHT in schema.names and form in ("parquet", "clip-retrieval"):
        raise JobError(f"the dataset has a column {WEIGHT!r}, and so does the subset; export with --set repeat=copies")
    return with_weight(schema)


def _format(job: ExportJob, source: ExportSource, dataset: SelectInput, repetition: Repetition) -> Format:
    """Choose the format. Raises JobError if the dataset lacks something that the format needs."""
    mapping, built = source.mapping, source.job
    if isinstance(mapping.pictures, NoPictures):
        raise JobError(f"{job.dataset} has only captions, but {job.format} needs pictures or their embeddings")
    models = [*(model.alias for model in built.models), *source.added.models]
    if job.format in ("webdataset", "parquet"):
        if job.models is not None:
            raise JobError(f"models: {job.format} stores no embeddings; use clip-retrieval, datacomp or PairDataset")
        if built.images.store == "none" and not built.source.is_corpus:
            raise JobError(f"{job.dataset} stored no pictures (images.store: none), which {job.format} needs")
        return ParquetFiles(models) if job.format == "parquet" else _webdataset(job, source, models, repetition)
    chosen = _embedding_models(job, models, dataset)
    has_text_arrays = mapping.has_captions and job.caption == ORIGINAL  # embeddings of other captions are not stored
    if job.format == "datacomp":
        names = datacomp_names([_model(source, alias) for alias in chosen])
        if len({array_prefix(name) for name in names}) < len(names):
            raise JobError(f"models: two of {', '.join(chosen)} would share a name in DataComp's layout; choose one")
        return DataComp(chosen, names, has_text_arrays, repetition.has_column)
    if len(chosen) > 1:
        raise JobError(f"models: clip-retrieval's layout has room for one model; choose one of {', '.join(chosen)}")
    return ClipRetrieval(chosen[0], models, has_text_arrays, _image_path(source))


def _webdataset(job: ExportJob, source: ExportSource, models: Sequence[str], repetition: Repetition) -> WebDataset:
    try:
        carried = source.mapping.carried(source.job.images.carry if job.carry is None else job.carry)
    except ValueError as error:
        raise JobError(str(error).replace("images.carry", "carry")) from None
    weight = [WEIGHT] if repetition.has_column else []
    if both := [name for name in weight if name in carried]:
        raise JobError(f"carry: the dataset has a column {both[0]!r}, and so does the subset; leave it out of carry")
    return WebDataset(models, source.mapping.has_captions, [*carried, *weight])


def _image_path(source: ExportSource) -> Literal["file", "key", "uid"]:
    """The column that identifies a picture outside the dataset."""
    if not isinstance(source.mapping.pictures, IndexedPictures):
        return "uid"  # also the key of its sample in the tars of a build
    is_tar = any(planned.source.lower().endswith(".tar") for planned in load_plan(source.store).inputs)
    return "key" if is_tar else "file"


def _model(source: ExportSource, alias: str) -> ModelConfig:
    """The model with this alias, from the job or added later."""
    for model in source.job.models:
        if model.alias == alias:
            return model
    return read_card(source.store, alias)


def _embedding_models(job: ExportJob, models: Sequence[str], dataset: SelectInput) -> list[str]:
    """The models whose embeddings are written: by default all, in the order of their columns."""
    aliases = {score_column_names(alias).image_embedding: alias for alias in models}
    available = [aliases[name] for name in dataset.schema.names if name in aliases]
    chosen = available if job.models is None else job.models
    if unknown := sorted(set(chosen) - set(available)):
        if problem := dataset.added.missing(score_column_names(unknown[0]).image_embedding):
            raise JobError(f"models: {problem}")
        raise JobError(
            f"models: {job.dataset} has no embeddings of {unknown[0]!r}; it has: {', '.join(available) or 'none'}"
        )
    if not chosen:
        raise JobError(f"{job.dataset} has no embeddings, which {job.format} needs; add them with embed --add-model")
    return chosen


def _record(
    job: ExportJob,
    subset: Subset,
    dataset: SelectInput,
    shape: tuple[int, int],
    writer: PartWriter,
    repetition: Repetition,
) -> ExportRecord:
    """The record of the export. `shape`: the number of rows and the number of files."""
    choice, added = writer.choice, dataset.added
    return ExportRecord(
        dataset=dataset.store.root,
        subset=subset.name,
        subset_attempt=subset.attempt,
        format=job.format,
        samples_per_file=job.samples_per_file,
        shuffle_seed=writer.seed,
        columns=list(writer.columns),
        rows=shape[0],
        num_files=shape[1],
        layout=LAYOUT,
        caption=job.caption,
        repeat=repetition.mode,
        captions=[each.column for each in choice.written] if choice is not None and choice.is_best else [],
        added=fingerprints(added, added.with_columns(writer.read_columns)),
    )


def _shards(store: Store, subset: Subset, repetition: Repetition) -> Iterator[SubsetShard]:
    """The shards with rows to write, in order. Raises SubsetError if one was rebuilt after the subset was selected."""
    generations, repeated = current_generations(store, subset), repetition.shard_rows(store, subset)
    for shard in read_shards(store, subset):
        rows = shard.num_selected if repeated is None else repeated.get(shard.shard, 0)
        if rows:
            identity = (shard.shard, generations[shard.shard], shard.pairs_blake2b)
            yield SubsetShard(*identity, num_rows=rows, path=shard.path)
