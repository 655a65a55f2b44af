"""`pairmill select`: a subset of a finished dataset, by steps that read narrow columns alone."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa

from pairmill.jobs.cluster import engine
from pairmill.pipeline.columns.added_model import complete_models
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.dataset.chunks import CHUNK_ROWS, MAX_CHUNKS, Chunk, describe
from pairmill.pipeline.dataset.shards import committed
from pairmill.pipeline.dataset.subset import generations_of, publish, read_subset, subsets, write_chunk
from pairmill.pipeline.select.choose import Chooser
from pairmill.pipeline.select.expressions import Expression, ExpressionError
from pairmill.pipeline.select.keys import is_key
from pairmill.pipeline.select.scan import MAX_STEPS
from pairmill.pipeline.select.tasks import LocalTasks, Tasks
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.stages.build import versions
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.subset import SelectJob, StepReport, Subset

ROWS_FOR_RAY = 2_000_000
"""Fewer are chosen from in this process before a local Ray would be up."""


@dataclass(frozen=True)
class Dataset:
    """A finished dataset, as far as a choice needs it."""

    store: Store
    shards: list[tuple[int, int]]
    """(shard, generation)"""
    num_rows: int
    aliases: list[str]
    """Models that were added to every shard."""
    unfinished: list[str]
    """Models that were added to some."""
    schema: pa.Schema
    """All columns that a step may name."""


def select(job: SelectJob, dry_run: bool = False, overwrite: bool = False) -> Subset:
    """Make the choice and write it to `subsets/NAME/`; with `dry_run` only count. A bad job raises JobError first."""
    dataset = open_dataset(job.dataset, job.s3, job.partial)
    _check_steps(job, dataset)
    if job.name in subsets(dataset.store) and not (dry_run or overwrite):
        raise JobError(f"{job.dataset} has a subset {job.name!r} already; give another name, or --overwrite it")
    replaced = read_subset(dataset.store, job.name) if job.name in subsets(dataset.store) else None
    with tasks_for(job, in_plain_loop=dataset.num_rows < ROWS_FOR_RAY) as tasks:
        chunks = _chunks(dataset, tasks)
        chooser = Chooser.of(tasks, chunks)
        chooser.run(job.rows == "kept", job.steps)
        reports = list(_reports(job, chooser))
        if not reports[-1].rows_out and not dry_run:
            raise JobError(_empty(reports))
        attempt = uuid4().hex
        files = [] if dry_run else _write(tasks, chunks, chooser, job.name, attempt)
    selection = Subset(
        name=job.name,
        attempt=attempt,
        rows=job.rows,
        steps=job.steps,
        shards=len(dataset.shards),
        rows_in=reports[0].rows_in,
        rows_out=reports[-1].rows_out,
        reports=reports,
        generations_blake2b=generations_of(chunks),
        files=files,
        versions=versions(),
    )
    if not dry_run:
        if not publish(dataset.store, selection, replaced):
            raise JobError(f"another run finished a subset {job.name!r} meanwhile; give another name")
        dataset.store.remove_temporary()
    return selection


def _empty(reports: Sequence[StepReport]) -> str:
    last = next(report for report in reports if not report.rows_out)
    return f"nothing is left: {last.step!r} dropped all of {counted(last.rows_in, 'row')}; nothing was written"


def open_dataset(path: str, s3: S3Config, partial: bool) -> Dataset:
    """Raises JobError for what is not finished, unless a part of it will do."""
    store = Store(path, s3)
    plan, done = load_plan(store), committed(store)
    missing = plan.num_shards - len(done)
    if missing and not partial:
        raise JobError(
            f"{path} is not finished: {missing:,} of {counted(missing + len(done), 'shard')} missing; run the "
            "command that made it again, or choose from what is there with --set partial=true"
        )
    if not done:
        raise JobError(f"{path} has no finished shard yet")
    aliases = complete_models(store, done)
    unfinished = sorted(set(store.folders("columns")) - set(aliases))
    first = min(done)
    schema = describe(store, [(first, done[first])], aliases).schema()
    return Dataset(store, sorted(done.items()), plan.num_rows, aliases, unfinished, schema)


def _check_steps(job: SelectJob, dataset: Dataset) -> None:
    """Every column and type, on no rows. Raises JobError that names the step."""
    if len(job.steps) > MAX_STEPS:
        raise JobError(f"steps: {len(job.steps)} of them; {MAX_STEPS} are the most")
    for number, step in enumerate(job.steps):
        try:
            if step.where is not None:
                Expression(step.where).check(dataset.schema, wants_truth=True)
            for score in (step.top.by if step.top else None, step.dedup.best if step.dedup else None):
                if score is not None:
                    Expression(score).check(dataset.schema, wants_truth=False)
            if step.dedup and step.dedup.by not in dataset.schema.names:
                raise ExpressionError(f"there is no column {step.dedup.by!r}")
            if step.dedup and not is_key(kind := dataset.schema.field(step.dedup.by).type):
                raise ExpressionError(f"column {step.dedup.by!r} is {kind}, which is not compared value by value")
        except ExpressionError as error:
            lacking = [alias for alias in dataset.unfinished if f"_{alias}" in str(error)]
            if lacking:
                raise JobError(
                    f"steps.{number}: the model {lacking[0]!r} lacks shards: run embed --add-model again"
                ) from None
            raise JobError(f"steps.{number}: {error}") from None


def _chunks(dataset: Dataset, tasks: Tasks) -> list[Chunk]:
    """All shards, in order. Their number does not depend on the workers'."""
    wanted = min(MAX_CHUNKS, len(dataset.shards), math.ceil(dataset.num_rows / CHUNK_ROWS))
    cuts = [round(n * len(dataset.shards) / wanted) for n in range(wanted + 1)]
    calls = [(dataset.store, dataset.shards[start:end], dataset.aliases) for start, end in pairwise(cuts)]
    chunks, place = [], 0
    for chunk in tasks.get(tasks.map(describe, calls)):
        chunks.append(replace(chunk, first_place=place))
        place += chunk.num_rows
    return chunks


def _write(
    tasks: Tasks, chunks: Sequence[Chunk], chooser: Chooser, name: str, attempt: str
) -> list[dict[Literal["rows", "shards"], DataFile]]:
    calls = [
        (chunk, fates, f"subsets/{name}", f"{number:05d}.{attempt}")
        for number, (chunk, fates) in enumerate(zip(chunks, chooser.fates, strict=True))
    ]
    return list(tasks.get(tasks.map(write_chunk, calls)))


def _reports(job: SelectJob, chooser: Chooser) -> Iterator[StepReport]:
    """One per step, the two that come by themselves first."""
    left = sum(chunk.num_rows for chunk in chooser.chunks)
    names = ["rows: kept" if job.rows == "kept" else "rows: pairs", "dedup: by uid", *map(str, job.steps)]
    for number, name in enumerate(names):
        rows_in, left = left, left - chooser.counts[number]
        yield StepReport(
            step=name,
            rows_in=rows_in,
            rows_out=left,
            threshold=chooser.thresholds.get(number),
            largest_clusters=_named(chooser, chooser.clusters.get(number, ())),
        )


def _named(chooser: Chooser, groups: Iterable[Any]) -> list[dict[str, Any]]:
    """Who the kept row of each cluster is."""
    starts = [chunk.first_place for chunk in chooser.chunks]
    found = []
    for place, rows in groups:
        chunk = chooser.chunks[bisect_right(starts, place) - 1]
        row = chunk.read_row(place, frozenset({"row_id", "url"}))
        found.append({"rows": int(rows), "row_id": row["row_id"], "url": clean_text(row["url"])})
    return found


@contextmanager
def tasks_for(job: SelectJob | ExportJob, in_plain_loop: bool) -> Iterator[Tasks]:
    """Ray's, for the time of the block, or where the work is little and no cluster is named, this process."""
    if in_plain_loop and not job.run.address:
        yield LocalTasks()
        return
    with engine.ray_session(job.run, spare_cpus=0):
        yield engine.RayTasks()
