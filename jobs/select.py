"""`pairmill select`: selects a subset of a finished dataset, in steps that read only a few narrow columns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from uuid import uuid4

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import AddedColumns, added_columns
from pairmill.pipeline.common.files import Files, absolute
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.dataset.chunks import CHUNK_ROWS, MAX_CHUNKS, Chunk, describe
from pairmill.pipeline.dataset.purge_watch import PurgeWatch
from pairmill.pipeline.dataset.subset import (
    SubsetError,
    delete_files,
    generations_digest,
    publish,
    read_subset,
    subset_names,
    write_chunk,
    write_overlap,
)
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.dataset.withdrawn import readable_shards
from pairmill.pipeline.known.keys import PDQ, PDQ_QUALITY, columns_of
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.leak.step import LeakStep
from pairmill.pipeline.select.expression_errors import ExpressionError
from pairmill.pipeline.select.scan import MAX_STEPS
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.steps.dedup import DedupStep
from pairmill.pipeline.select.steps.kept import KeptStep
from pairmill.pipeline.select.steps.open_step import open_step
from pairmill.pipeline.select.steps.run_steps import run_steps
from pairmill.pipeline.select.steps.step import Step
from pairmill.pipeline.select.tasks import LocalTasks, Tasks
from pairmill.pipeline.select.weights import Weighting, WeightSums, sum_of_ticks
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError, PairmillError
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.manifest import DataFile
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.select_steps import Dedup, SelectStep
from pairmill.schemas.subset import SelectJob, StepReport, Subset, SubsetFiles

ROWS_FOR_RAY = 2_000_000
"""With fewer rows, this process alone finishes before a local Ray instance would have started."""


@dataclass(frozen=True)
class SelectInput:
    """The finished shards of a dataset, and the columns that steps can use."""

    store: Store
    shards: list[tuple[int, int]]
    """(shard, generation) of each shard, in order."""
    num_rows: int
    added: AddedColumns
    schema: pa.Schema
    has_md5: bool

    def of_shards(self, shards: Mapping[int, int]) -> "SelectInput":
        """The input with only these shards (shard -> generation), which may have models and scores that other
        shards lack."""
        added, chosen = added_columns(self.store, shards), sorted(shards.items())
        schema = describe(self.store, chosen[:1], added.names).schema()
        return replace(self, shards=chosen, added=added, schema=schema)


def select(job: SelectJob, dry_run: bool = False, overwrite: bool = False, on_step: OnStep = ignore_step) -> Subset:
    """Select the rows and write the subset to `subsets/NAME/`; with `dry_run`, only count.

    Raises JobError before any work if the job cannot run as written, or afterwards if no row is left.
    """
    watch = PurgeWatch.start(Store(job.dataset, job.s3))
    source = open_input(job.dataset, job.s3, job.partial)
    job = _with_absolute_paths(job)
    steps = _open_steps(job, source)
    exists = job.name in subset_names(source.store)
    if exists and not (dry_run or overwrite):
        raise JobError(f"{job.dataset} already has a subset {job.name!r}; choose another name, or add --overwrite")
    replaced = read_subset(source.store, job.name) if exists else None
    attempt = uuid4().hex
    names, progress = step_names(job), Steps(on_step, "reading manifests")

    def begin(number: int) -> None:
        progress.name = names[number]

    with watch.explained(), open_tasks(job.run, source.num_rows < ROWS_FOR_RAY, progress) as tasks:
        chunks = chunks_of(source, tasks)
        selector = Selector.start(tasks, chunks, begin)
        try:
            run_steps(selector, steps)
        except (StepError, KnownError) as error:
            raise JobError(f"{progress.name}: {error}") from None
        progress.name = "writing"
        reports = list(_reports(job, steps, selector, replaced))
        if not reports[-1].rows_out and not dry_run:
            raise JobError(_nothing_left(job, reports))
        weight_sum = None if selector.weighting is None else _weight_sum(selector, selector.weighting)
        files = [] if dry_run else _write(tasks, selector, job.name, attempt)
        overlaps = [] if dry_run else _write_overlaps(source.store, steps, job.name, attempt)
    subset = Subset(
        name=job.name,
        attempt=attempt,
        rows=job.rows,
        partial=job.partial,
        steps=job.steps,
        shards=len(source.shards),
        rows_in=reports[0].rows_in,
        rows_out=reports[-1].rows_out,
        weight_sum=weight_sum,
        reports=reports,
        generations_blake2b=generations_digest(chunks),
        files=files,
        overlaps=overlaps,
        versions=versions(),
    )
    if not dry_run:
        _publish(source.store, subset, replaced, watch)
    return subset


def _publish(store: Store, subset: Subset, replaced: Subset | None, watch: PurgeWatch) -> None:
    """Write the record of a subset. A purge that begins later finds it. Raises JobError if a purge began earlier,
    which is checked before and after writing."""
    try:
        watch.check()
        if not publish(store, subset, replaced):
            watch.check()  # a purge deletes files that are in no subset yet
            advice = "choose another name" if replaced is None else "run the same command again"
            raise JobError(f"another run has just finished a subset {subset.name!r}; {advice}")
        try:
            watch.check()
        except JobError:
            # Otherwise, the purge has rewritten or deleted it. If it does so between these two lines, the subset is
            # lost, and has to be selected again.
            if _is_published(store, subset):
                store.delete(f"subsets/{subset.name}/selection.json")
            raise
    except PairmillError:
        delete_files(store, subset)
        raise
    store.remove_temporary()


def _is_published(store: Store, subset: Subset) -> bool:
    try:
        return read_subset(store, subset.name).attempt == subset.attempt
    except SubsetError:
        return False


def refresh(job: SelectJob, dry_run: bool = False, on_step: OnStep = ignore_step) -> Subset:
    """Select the subset `job.name` again, with its own steps, from the dataset as it is now.

    Ignores `job.rows` and `job.steps`, and uses those of the subset. A partial subset stays partial. Raises
    SubsetError if there is no such subset, and whatever `select` raises.
    """
    store = Store(job.dataset, job.s3)
    store.check_access()
    subset = read_subset(store, job.name)
    settings = {"rows": subset.rows, "steps": subset.steps, "partial": job.partial or subset.partial}
    return select(job.model_copy(update=settings), dry_run, True, on_step)


def open_input(path: str, s3: S3Config, partial: bool) -> SelectInput:
    """Open a dataset. Raises JobError if it is unfinished or, with `partial`, if it has no finished shard."""
    store = Store(path, s3)
    store.check_access()
    plan, done = load_plan(store), readable_shards(store)
    missing = plan.num_shards - len(done)
    if missing and not partial:
        raise JobError(
            f"{path} is not finished: {missing:,} of {counted(missing + len(done), 'shard')} missing; rerun the "
            "command that made it, or select from the finished shards with --set partial=true"
        )
    if not done:
        raise JobError(f"{path} has no finished shard yet")
    added, shards = added_columns(store, done), sorted(done.items())
    schema = describe(store, shards[:1], added.names).schema()
    return SelectInput(store, shards, plan.num_rows, added, schema, plan.record.job.computes_md5)


def _open_steps(job: SelectJob, source: SelectInput) -> list[Step]:
    """The two steps that every job begins with, followed by its own steps. Checks everything that can be
    checked before any work. Raises JobError, which names the step."""
    if len(job.steps) > MAX_STEPS:
        raise JobError(f"steps: {len(job.steps)} steps, but at most {MAX_STEPS} are allowed")
    steps: list[Step] = [KeptStep(job.rows == "kept"), DedupStep(Dedup(by="uid"))]
    for number, each in enumerate(job.steps, 1):
        try:
            steps.append(step := _open_step(each, Files(job.s3)))
            _check_columns(step, source)
            step.check(source.schema)
        except (ExpressionError, StepError) as error:
            raise JobError(f"step {number}, {each.kind}: {error}") from None
    return steps


def _open_step(step: SelectStep, files: Files) -> Step:
    return open_step(step, files) if step.leak is None else LeakStep.open(files, step.leak)


def _check_columns(step: Step, source: SelectInput) -> None:
    """Raise ExpressionError, which explains why, if columns of the step have no values."""
    for problem in map(source.added.missing, sorted(step.columns)):
        if problem is not None:
            raise ExpressionError(problem)
    for column in sorted(columns_of("pdq") & step.columns - {*source.schema.names}):
        if column == PDQ_QUALITY and PDQ in source.schema.names:
            raise ExpressionError(
                f"there is no column {column!r} (0 to 100) beside the dataset's own column {PDQ!r}; without it, hashes "
                "can only be compared without a distance"
            )
        add = pairmill_command("score", source.store.root, "hash", "--score", "pictures: pdq")
        raise ExpressionError(f"there is no column {column!r}; add it: {add}")
    if "md5" in step.columns and not source.has_md5:
        raise ExpressionError("md5 is null in all rows, because the dataset was made without images.md5; use sha256")


def _with_absolute_paths(job: SelectJob) -> SelectJob:
    """The job with absolute paths of what its steps read, so that it can be repeated from another folder."""
    return job.model_copy(update={"steps": [_with_absolute_path(step) for step in job.steps]})


def _with_absolute_path(step: SelectStep) -> SelectStep:
    if step.uids is not None:
        return SelectStep(uids=absolute(step.uids))
    if step.balance is not None and step.balance.entries is not None:
        entries = absolute(step.balance.entries)
        return SelectStep(balance=step.balance.model_copy(update={"entries": entries}))
    if step.known is not None:
        return SelectStep(known=step.known.model_copy(update={"path": absolute(step.known.path)}))
    if step.leak is not None:
        return SelectStep(leak=step.leak.model_copy(update={"against": absolute(step.leak.against)}))
    return step


def chunks_of(source: SelectInput, tasks: Tasks, first_row_index: int = 0) -> list[Chunk]:
    """The chunks of all shards, in order. Their number does not depend on the number of workers."""
    num_chunks = min(MAX_CHUNKS, len(source.shards), math.ceil(source.num_rows / CHUNK_ROWS))
    cuts = [round(n * len(source.shards) / num_chunks) for n in range(num_chunks + 1)]
    calls = [(source.store, source.shards[start:end], source.added.names) for start, end in pairwise(cuts)]
    chunks, row_index = [], first_row_index
    for chunk in tasks.get(tasks.map(describe, calls)):
        chunks.append(replace(chunk, first_row_index=row_index))
        row_index += chunk.num_rows
    return chunks


def _weight_sum(selector: Selector, weighting: Weighting) -> float:
    """The sum of the weights of the rows that are left."""
    return sum_of_ticks(selector.scan_sorted(WeightSums(weighting))[0])


def _write(tasks: Tasks, selector: Selector, name: str, attempt: str) -> list[SubsetFiles]:
    calls = [
        (chunk, drop_step, f"subsets/{name}", f"{number:05d}.{attempt}", selector.weighting)
        for number, (chunk, drop_step) in enumerate(zip(selector.chunks, selector.drop_step, strict=True))
    ]
    return list(tasks.get(tasks.map(write_chunk, calls)))


def _write_overlaps(store: Store, steps: Sequence[Step], name: str, attempt: str) -> list[DataFile]:
    found = [step.overlap for step in steps if isinstance(step, LeakStep)]
    return [write_overlap(store, table, name, f"{number:05d}.{attempt}") for number, table in enumerate(found)]


def step_names(job: SelectJob) -> list[str]:
    """Names of the steps in reports and progress. The first two steps are the same in every job."""
    return ["rows: kept" if job.rows == "kept" else "rows: pairs", "dedup: by uid", *map(str, job.steps)]


def _reports(
    job: SelectJob, steps: Sequence[Step], selector: Selector, replaced: Subset | None
) -> Iterator[StepReport]:
    """Yield one report per step."""
    earlier = replaced.reports if replaced is not None and replaced.steps == job.steps else []
    remaining = selector.num_rows
    for number, (name, step) in enumerate(zip(step_names(job), steps, strict=True)):
        rows_in, remaining = remaining, remaining - selector.counts[number]
        report = StepReport(step=name, rows_in=rows_in, rows_out=remaining)
        yield step.report(selector, report, earlier[number] if earlier else None)


def _nothing_left(job: SelectJob, reports: Sequence[StepReport]) -> str:
    last = next(report for report in reports if not report.rows_out)
    if not last.rows_in:
        return f"{job.dataset} has no pairs: all of its rows were rejected or withdrawn; nothing was written"
    return f"nothing is left: {last.step!r} dropped all {counted(last.rows_in, 'row')}; nothing was written"


@contextmanager
def open_tasks(run: RunConfig, local: bool, steps: Steps, on_gpu: bool = False) -> Iterator[Tasks]:
    """Tasks on Ray or, with `local` and unless the job names a cluster, in this process. `on_gpu`: if there is a GPU,
    each call takes one, or the share of one that the job sets."""
    if local and not run.address:
        yield LocalTasks(steps.part)
        return
    from pairmill.jobs.cluster.ray_tasks import RayTasks  # importing ray takes a second
    from pairmill.jobs.cluster.session import ray_session

    with ray_session(run, spare_cpus=0):
        yield RayTasks(steps.part, run.gpus_per_encoder if on_gpu and run.device != "cpu" else 0.0)
