"""`pairmill select MIX --mix ..`: mixes several datasets, which export and the feed then read as one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from pairmill.jobs.select import ROWS_FOR_RAY, SelectInput, chunks_of, open_input, open_tasks
from pairmill.pipeline.common.files import absolute
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.mixture import SOURCES, is_mixture, publish_mixture, read_mixture
from pairmill.pipeline.dataset.output_folder import check_mixture_folder
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.subset import (
    NOT_DROPPED,
    DropStep,
    current_generations,
    generations_digest,
    read_subset,
    subset_names,
)
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.select.filters import IsKept
from pairmill.pipeline.select.mixing import (
    SameWeight,
    count_steps,
    drop_duplicates_across,
    drop_outside,
    most_samples,
    samples_of,
    write_source_chunk,
)
from pairmill.pipeline.select.outputs import NoOutput
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.steps.dedup import DedupStep
from pairmill.pipeline.select.steps.top import TopStep
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.errors import JobError
from pairmill.schemas.mixture import MixJob, MixSource, Mixture, MixtureSource, source_names
from pairmill.schemas.select_steps import Dedup, Sample
from pairmill.schemas.subset import StepReport, Subset, SubsetFiles


@dataclass
class _Source:
    """A dataset, and what has happened to its rows so far."""

    given: MixSource
    name: str
    input: SelectInput
    subset: Subset | None
    chunks: list[Chunk] = field(default_factory=list)
    drop_step: list[Handle[DropStep] | None] = field(default_factory=list)
    """One per chunk."""
    counts: Counter[int] = field(default_factory=Counter)
    """Step, or NOT_DROPPED -> number of rows."""

    @property
    def rows_left(self) -> int:
        """Number of rows that no step has dropped."""
        return self.counts[NOT_DROPPED]

    @property
    def first_step(self) -> str:
        """Name of the step that takes the rows of the source."""
        return "rows: kept" if self.subset is None else f"rows: subset {self.subset.name}"


@dataclass(frozen=True)
class _Target:
    """Where to write the files."""

    store: Store
    attempt: str
    dry_run: bool


def mix(job: MixJob, dry_run: bool = False, overwrite: bool = False, on_step: OnStep = ignore_step) -> Mixture:
    """Mix the sources and write the mixture to `output`; with `dry_run`, only count.

    Raises JobError, without writing anything, if the job cannot run as written, or if a source has no rows or too few.
    """
    check_buckets([job.output, *(source.dataset for source in job.sources)], job.s3)
    store = Store(job.output, job.s3)
    check_mixture_folder(store)
    exists = is_mixture(store)
    if exists and not (dry_run or overwrite):
        raise JobError(f"{job.output} already contains a mixture; choose another folder, or add --overwrite")
    replaced = read_mixture(store) if exists else None
    sources, target = list(_open(job)), _Target(store, uuid4().hex, dry_run)
    progress = Steps(on_step, "reading manifests")
    local = sum(source.input.num_rows for source in sources) < ROWS_FOR_RAY
    with open_tasks(job.run, local, progress) as tasks:
        _describe(tasks, sources)
        progress.name = "removing duplicates"
        _drop_duplicates(tasks, sources, job.dedup)
        progress.name = "drawing samples"
        samples = _samples(job, sources)
        for source, wanted in zip(sources, samples, strict=True):
            _draw(tasks, source, Sample(count=min(wanted, source.rows_left), seed=job.seed), len(job.dedup) + 2)
        progress.name = "writing"
        weighers = _weighers(sources, samples)
        parts = [
            _record(job, source, wanted, weigher, _write(tasks, target, number, source, weigher))
            for number, (source, wanted, weigher) in enumerate(zip(sources, samples, weighers, strict=True))
        ]
    mixture = Mixture(
        attempt=target.attempt,
        count=job.count,
        repeat=job.repeat,
        dedup=job.dedup,
        partial=job.partial,
        seed=job.seed,
        sources=parts,
        versions=versions(),
    )
    if not dry_run:
        if not publish_mixture(store, mixture, replaced):
            raise JobError(f"another run has just finished a mixture in {job.output}; choose another folder")
        store.remove_temporary()
    return mixture


def fields_of(store: Store) -> dict[str, object]:
    """The settings of a mixture, as fields of the MixJob that mixes it again. Raises SubsetError, and
    JobError if the folder is that of a dataset."""
    if not is_mixture(store) and (subsets := subset_names(store)):
        raise JobError(f"{store.root} is not a mixture; name the subset to select again: {', '.join(subsets)}")
    mixture = read_mixture(store)
    names = ("count", "repeat", "dedup", "partial", "seed")
    fields = ("dataset", "subset", "share")
    sources = [{name: getattr(source, name) for name in fields} for source in mixture.sources]
    return {"sources": sources, **{name: getattr(mixture, name) for name in names}}


def _open(job: MixJob) -> Iterator[_Source]:
    for source, name in zip(job.sources, source_names(job.sources), strict=True):
        store = Store(source.dataset, job.s3)
        if is_mixture(store):
            raise JobError(f"{source.dataset} is itself a mixture; name its datasets")
        opened = open_input(source.dataset, job.s3, job.partial or source.subset is not None)
        subset = None if source.subset is None else read_subset(store, source.subset)
        if subset is not None and subset.weight_sum is not None:
            raise JobError(
                f"{source} has weights, but a mixture itself sets how often rows are shown: use a subset without a "
                "repeat step"
            )
        if subset is not None:
            current_generations(store, subset)  # raises SubsetError if it is outdated
        given = source.model_copy(update={"dataset": absolute(source.dataset)})
        yield _Source(given, name, opened, subset)


def _describe(tasks: Tasks, sources: Sequence[_Source]) -> None:
    """Find the chunks of all sources, and which of their rows are in the source's subset."""
    row_index = 0
    for source in sources:
        source.chunks = chunks_of(source.input, tasks, row_index)
        row_index += sum(chunk.num_rows for chunk in source.chunks)
        if source.subset is None:
            selector = Selector.start(tasks, source.chunks)
            selector.filters.append(IsKept(0))
            selector.scan(NoOutput())
            source.drop_step = selector.drop_step
        else:
            calls = [(chunk, part, 0) for chunk, part in _with_files(source.chunks, source.subset)]
            source.drop_step = list(tasks.map(drop_outside, calls))


def _with_files(chunks: Sequence[Chunk], subset: Subset) -> Iterator[tuple[Chunk, Subset]]:
    """Each chunk, with the subset reduced to the files that contain shards of this chunk."""
    shards = [
        set(read_table(chunks[0].store, files.shards.path, ["shard"])["shard"].to_pylist()) for files in subset.files
    ]
    for chunk in chunks:
        numbers = {shard.shard for shard in chunk.shards}
        files = [each for each, found in zip(subset.files, shards, strict=True) if found & numbers]
        yield chunk, subset.model_copy(update={"files": files})


def _drop_duplicates(tasks: Tasks, sources: Sequence[_Source], columns: Sequence[str]) -> None:
    """Drop all rows but one of each uid, then rows whose value in a column is also in an earlier source."""
    chunks = [chunk for source in sources for chunk in source.chunks]
    selector = Selector.start(tasks, chunks)
    selector.drop_step = [each for source in sources for each in source.drop_step]
    DedupStep(Dedup(by="uid")).run(selector, 1)
    starts = [source.chunks[0].first_row_index for source in sources]
    for number, by in enumerate(columns, 2):
        drop_duplicates_across(selector, number, by, starts)
    selector.scan(NoOutput())
    left = iter(selector.drop_step)
    for source in sources:
        source.drop_step = [next(left) for _ in source.chunks]
        source.counts = _counts(tasks, source)


def _counts(tasks: Tasks, source: _Source) -> Counter[int]:
    handles = tasks.map(count_steps, [(drop_step,) for drop_step in source.drop_step])
    return sum(tasks.get(handles), Counter())


def _samples(job: MixJob, sources: Sequence[_Source]) -> list[int]:
    """The samples per epoch of each source. Raises JobError if a source has too few rows."""
    for source in sources:
        if not source.rows_left:
            raise JobError(_nothing_left(source))
    rows, shares = [source.rows_left for source in sources], [source.given.share for source in sources]
    most = most_samples(rows, shares)
    total = most if job.count is None else job.count
    samples = samples_of(total, shares)
    if not all(samples):
        raise JobError(
            f"the share of {sources[samples.index(0)].given} of {counted(total, 'sample')} is less than one sample"
        )
    if total > most and not job.repeat:
        short = min(sources, key=lambda source: source.rows_left / source.given.share)
        raise JobError(
            f"count: {short.given} has {counted(short.rows_left, 'row')} left, too few for its share; use at most "
            f"{most:,}, or repeat rows with --set repeat=true"
        )
    return samples


def _nothing_left(source: _Source) -> str:
    if source.counts.total() == source.counts[0]:
        return f"{source.given} has no rows: leave it out"
    return f"all rows of {source.given} are also in the datasets before it: leave it out"


def _draw(tasks: Tasks, source: _Source, sample: Sample, step: int) -> None:
    """Drop all but a sample of the rows."""
    if sample.count != source.rows_left:
        selector = Selector.start(tasks, source.chunks)
        selector.drop_step = source.drop_step
        TopStep.of(sample).run(selector, step)
        selector.scan(NoOutput())
        source.drop_step = selector.drop_step
        source.counts = _counts(tasks, source)


def _weighers(sources: Sequence[_Source], samples: Sequence[int]) -> list[SameWeight | None]:
    """How often the rows of each source are shown. None if no row is repeated at all."""
    weights = [wanted / source.rows_left for source, wanted in zip(sources, samples, strict=True)]
    if max(weights) <= 1:
        return [None] * len(weights)
    return [SameWeight(weight) for weight in weights]


def _write(
    tasks: Tasks, target: _Target, number: int, source: _Source, weigher: SameWeight | None
) -> list[SubsetFiles]:
    """Write the files of one source."""
    calls = [
        (target.store, chunk, drop_step, (f"{SOURCES}/{number:03d}", f"{index:05d}.{target.attempt}"), weigher)
        for index, (chunk, drop_step) in enumerate(zip(source.chunks, source.drop_step, strict=True))
    ]
    return [] if target.dry_run else list(tasks.get(tasks.map(write_source_chunk, calls)))


def _record(
    job: MixJob, source: _Source, samples: int, weigher: SameWeight | None, files: list[SubsetFiles]
) -> MixtureSource:
    given, subset = source.given, source.subset
    steps = [source.first_step, "dedup: by uid", *(f"dedup: by {name} across datasets" for name in job.dedup), "share"]
    reports = list(_reports(steps, source.counts))
    rows = Subset(
        name=given.subset or "kept",
        attempt=uuid4().hex,
        rows="kept" if subset is None else subset.rows,
        steps=[] if subset is None else subset.steps,
        shards=len(source.input.shards),
        rows_in=reports[0].rows_in,
        rows_out=reports[-1].rows_out,
        weight_sum=None if weigher is None else float(samples),
        reports=reports,
        generations_blake2b=generations_digest(source.chunks),
        files=files,
        versions=versions(),
    )
    return MixtureSource(
        name=source.name,
        dataset=given.dataset,
        subset=given.subset,
        share=given.share,
        subset_attempt=None if subset is None else subset.attempt,
        samples=samples,
        rows=rows,
    )


def _reports(steps: Sequence[str], counts: Counter[int]) -> Iterator[StepReport]:
    remaining = counts.total()
    for number, step in enumerate(steps):
        rows_in, remaining = remaining, remaining - counts[number]
        yield StepReport(step=step, rows_in=rows_in, rows_out=remaining)
