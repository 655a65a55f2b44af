"""`pairmill export`: a subset as WebDataset tars, Parquet, or clip-retrieval's or DataComp's files."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairmill.jobs.select import Dataset, open_dataset, tasks_for
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset, read_tables
from pairmill.pipeline.export.formats import ClipRetrieval, DataComp, Format, ParquetFiles, WebDataset
from pairmill.pipeline.export.gather import Origin
from pairmill.pipeline.export.order import Member, grouped, stretches
from pairmill.pipeline.export.write import Exporter, is_written, manifest_name, write_stretch
from pairmill.pipeline.select.keys import identities
from pairmill.pipeline.source.mapping import ColumnMapping, NoPictures
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportedFile, ExportJob, ExportRecord
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.subset import Subset

ROWS_FOR_RAY = 20_000
"""Fewer are written in this process before a local Ray would be up."""

RECORD = "export/export.json"


@dataclass(frozen=True)
class ExportResult:
    """What the output folder holds."""

    output: str
    record: ExportRecord
    written: int
    """Files of this run; the others were there."""


def export(job: ExportJob) -> ExportResult:
    """Write the subset's rows to `output`. The same job again goes on after a stop. A bad one raises JobError first."""
    output = Store(job.output, job.s3)
    if not output.remote and Path(output.root).is_file():
        raise JobError(f"output: {output.root} is a file, not a folder")
    dataset = open_dataset(job.dataset, job.s3, partial=True)
    selection = read_subset(dataset.store, job.subset)
    plan = load_plan(dataset.store)
    built = plan.job
    form = _format(job, built, plan.mapping, dataset)
    seed = job.shuffle_seed if form.wants_pictures else None
    members = list(_members(dataset.store, selection))
    parts = list(stretches(grouped(members, seed), job.samples_per_file))
    columns = form.columns(dataset.schema)
    record = _record(job, selection, dataset, seed, len(parts), columns)
    _settle(output, record)
    exporter = Exporter(
        origin=Origin(dataset.store, built, plan.mapping, tuple(dataset.aliases)),
        output=output,
        format=form,
        seed=seed,
        columns=tuple(columns),
        digits=max(4 if job.format == "clip-retrieval" else 5, len(str(len(parts) - 1))),
    )
    left = [number for number in range(len(parts)) if not is_written(output, number)]
    with tasks_for(job, in_plain_loop=len(left) * job.samples_per_file < ROWS_FOR_RAY) as tasks:
        for _ in tasks.get(tasks.map(write_stretch, [(exporter, number, parts[number]) for number in left])):
            pass
    _finish(output, record, dataset.store, selection)
    output.remove_temporary()
    return ExportResult(output.root, record, len(left))


def _format(job: ExportJob, built: BuildJob, mapping: ColumnMapping, dataset: Dataset) -> Format:
    """Raises JobError where the dataset lacks what the format needs."""
    if isinstance(mapping.pictures, NoPictures):
        raise JobError(f"{job.dataset} holds captions alone, and {job.format} is made of pictures or their embeddings")
    if job.format in ("webdataset", "parquet"):
        if job.models is not None:
            raise JobError(f"models: {job.format} holds no embeddings; clip-retrieval, datacomp and the feed do")
        if built.images.store == "none" and not built.source.is_corpus:
            raise JobError(f"{job.dataset} stored no pictures (images.store: none), which {job.format} is made of")
        return WebDataset(mapping.has_captions) if job.format == "webdataset" else ParquetFiles()
    there = [name.removeprefix("image_embedding_") for name in dataset.schema.names if name.startswith("image_emb")]
    models = there if job.models is None else job.models
    if unknown := sorted(set(models) - set(there)):
        raise JobError(
            f"models: {job.dataset} has no embeddings of {unknown[0]!r}; it has: {', '.join(there) or 'none'}"
        )
    if not models:
        raise JobError(f"{job.dataset} has no embeddings, which {job.format} is made of; see embed --add-model")
    if job.format == "datacomp":
        short = [alias.removeprefix("clip_") for alias in models]
        if len(set(short)) < len(short):
            raise JobError(
                f"models: two of {', '.join(models)} would have the same arrays in DataComp's naming; name one"
            )
        return DataComp(tuple(models), mapping.has_captions)
    if len(models) > 1:
        raise JobError(f"models: clip-retrieval's layout holds one model; name one of {', '.join(models)}")
    return ClipRetrieval(models[0], mapping.has_captions)


def _record(
    job: ExportJob, selection: Subset, dataset: Dataset, seed: int | None, num_files: int, columns: list[str]
) -> ExportRecord:
    return ExportRecord(
        dataset=dataset.store.root,
        subset=job.subset,
        subset_attempt=selection.attempt,
        format=job.format,
        samples_per_file=job.samples_per_file,
        shuffle_seed=seed,
        columns=columns,
        rows=selection.rows_out,
        num_files=num_files,
    )


def _settle(output: Store, record: ExportRecord) -> None:
    """Whose export the folder holds. Raises JobError where it is another's, or holds anything else."""
    if not output.exists(RECORD) and (found := [*output.list(""), *output.folders("")]):
        raise JobError(f"{output.root} holds {found[0]!r} already; an export wants a folder of its own")
    if output.create(RECORD, record.model_dump_json(indent=1).encode()):
        return
    standing = ExportRecord.model_validate_json(output.read(RECORD))
    for name, value in record:
        if getattr(standing, name) != value:
            raise JobError(
                f"{output.root} holds another export ({name} {getattr(standing, name)!r}, not {value!r}); "
                "give another folder"
            )


def _members(store: Store, selection: Subset) -> Iterator[Member]:
    """Shards with chosen rows, in order."""
    for files, table in zip(selection.files, read_tables(store, selection, "shards"), strict=True):
        for shard in table.drop_columns(["fates"]).to_pylist():
            if shard["chosen"]:
                facts = (shard["shard"], shard["generation"], shard["pairs_blake2b"], shard["chosen"])
                yield Member(*facts, files["shards"].path)


def _finish(output: Store, record: ExportRecord, store: Store, selection: Subset) -> None:
    """What stands once for all files, written last."""
    if record.format == "webdataset":  # open_clip and DataComp's trainer take the number of samples from here
        sizes: dict[str, int] = {}
        for number in range(record.num_files):
            written = ExportedFile.model_validate_json(output.read(manifest_name(number)))
            sizes |= dict.fromkeys(written.files, written.rows)
        output.replace("sizes.json", json.dumps(sizes, indent=1).encode())
    if record.format == "datacomp":
        data = io.BytesIO()
        np.save(data, sorted_uids(store, selection))
        output.replace("subset.npy", data.getvalue())


def sorted_uids(store: Store, selection: Subset) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """(rows,) of two uint64, sorted: a subset as DataComp's `resharder.py` reads it. 16 bytes a row in memory.

    https://github.com/mlfoundations/datacomp: `np.array([(int(uid[:16], 16), int(uid[16:32], 16))], np.dtype("u8,u8"))`
    """
    parts = []
    for table in read_tables(store, selection, "rows"):
        part = np.empty(table.num_rows, np.dtype("u8,u8"))
        part["f0"], part["f1"] = identities(table["uid"], "uid")
        parts.append(part)
    uids = np.concatenate(parts)
    return uids[np.lexsort((uids["f1"], uids["f0"]))]
