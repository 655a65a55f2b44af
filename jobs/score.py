"""`pairmill score`: adds scores to a finished dataset, as columns beside its pairs.

Existing files do not change. Run the same command again after an interruption, after a retry, or when there are new
shards; it processes only what is new.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pairmill.jobs.build import run_shards_of
from pairmill.jobs.progress import ColumnsProgress, ProgressListener
from pairmill.jobs.select import ROWS_FOR_RAY, open_tasks
from pairmill.pipeline.columns.added_columns import columns_done
from pairmill.pipeline.columns.added_model import pictures_left_out
from pairmill.pipeline.columns.column_files import count_nulls
from pairmill.pipeline.columns.score_card import ScoreCard
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kinds import kind_of
from pairmill.pipeline.score.prepare import notes, planned_needs, prepared, sources, withdraw
from pairmill.pipeline.score.score_shard import ScoreTask, score_shard
from pairmill.pipeline.select.tasks import Tasks
from pairmill.pipeline.stages.pipelines import score_pipeline
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.scores import ScoreJob


@dataclass(frozen=True)
class ScoreResult:
    """The result of adding a score to a dataset."""

    output: str
    name: str
    columns: Sequence[str]
    shards: int
    """Finished shards of the dataset."""
    shards_scored: int
    """Shards that this run added the score to."""
    rows_scored: int
    shards_missing: list[int]
    """Finished shards that lack the score."""
    failures: dict[int, str] = field(default_factory=dict)
    """Shard -> why it lacks the score."""
    pictures_left_out: dict[str, int] = field(default_factory=dict)
    """Name of a manifest in `columns/NAME/manifests` -> number of pictures that could not be scored, because they are
    missing, have changed since the dataset was made, or do not decode. Omits manifests without such pictures."""
    rows_without: dict[str, int] = field(default_factory=dict)
    """Column -> rows without a value, of those that this run scored. Omits columns without such rows."""
    seconds: float = 0.0
    unfinished_shards: int = 0
    """Planned shards that the dataset does not have yet."""
    notes: list[str] = field(default_factory=list)
    """What the user must know about how the score was prepared, such as what was left out; one sentence each."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return asdict(self)


def score(job: ScoreJob, on_step: OnStep = ignore_step, listener: ProgressListener | None = None) -> ScoreResult:
    """Add the score to all finished shards that lack it.

    Raises JobError, ScoreError and DatasetError if the score cannot be computed with these settings. Shards that fail
    are in `failures`.
    """
    started, steps = time.perf_counter(), Steps(on_step, "reading manifests")
    store = Store(job.dataset, job.s3)
    store.check_access()
    refuse_unfinished_purge(store)
    snapshot = Snapshot.of(store)
    needs = planned_needs(snapshot, job.name, job.score)
    with open_tasks(job.run, snapshot.plan.num_rows < ROWS_FOR_RAY, steps, needs.gpu) as tasks:
        steps.name = f"preparing {job.name}"
        card = prepared(snapshot, job.name, job.score, tasks, job.run, job.partial)
        done = columns_done(store, card.name)
        left = [(shard, generation) for shard, generation in snapshot.generations if done.get(shard) != generation]
        rows = {each.shard: each.num_rows for each in snapshot.chunk.shards}  # now, before a retry may replace them
        steps.name = f"scoring {card.name}"
        failures = {} if needs.pictures else _score(snapshot, card, left, tasks, job)
    if needs.pictures and left:
        failures = _score_pictures(snapshot, card, left, job, listener)
    store.remove_temporary()
    done, now = columns_done(store, card.name), committed(store)  # a retry may have made new generations meanwhile
    missing = [shard for shard, _ in snapshot.generations if done.get(shard) != now.get(shard)]
    scored = {shard for shard, generation in left if done.get(shard) == generation} - set(missing)
    said = notes(snapshot, card)
    was_replaced = any(now.get(shard) != generation for shard, generation in left)
    if failures and not done and not needs.pictures and not was_replaced:
        withdraw(store, card)
        said.append("no shard could be scored, so the score was not added")
    return ScoreResult(
        output=store.root,
        name=card.name,
        columns=[column.name for column in card.columns],
        shards=len(snapshot.generations),
        shards_scored=len(scored),
        rows_scored=sum(rows[shard] for shard in scored),
        shards_missing=missing,
        failures=failures,
        pictures_left_out=pictures_left_out(store, card.name) if needs.pictures else {},
        rows_without=count_nulls(store, card.name, [each for each in left if each[0] in scored]),
        seconds=round(time.perf_counter() - started, 1),
        unfinished_shards=snapshot.unfinished_shards,
        notes=said,
    )


def _score_pictures(
    snapshot: Snapshot,
    card: ScoreCard,
    shards: Sequence[tuple[int, int]],
    job: ScoreJob,
    listener: ProgressListener | None,
) -> dict[int, str]:
    """Add a score to these shards (shard, generation) on Ray, for scores computed from pictures. Returns failures."""
    plan, generations, failures = snapshot.plan, dict(shards), dict[int, str]()
    values = {**plan.job.model_dump(exclude_unset=True), "output": snapshot.store.root, "run": job.run, "s3": job.s3}
    needed = sources(snapshot, kind_of(card.name, card.score))
    pipeline = score_pipeline(BuildJob.model_validate(values), plan.mapping, card.name, needed)
    column = pa.array([generations.get(shard) for shard in plan.shards["shard"].to_pylist()], pa.int64())
    table = plan.shards.append_column("generation", column).filter(column.is_valid())
    if listener:
        num_rows = sum(table["num_rows"].to_pylist())
        listener.planned(f"{card.name} for {counted(table.num_rows, 'shard')}", table.num_rows, num_rows, 0)
    stopped = run_shards_of(pipeline, table, ColumnsProgress(listener) if listener else None, failures)
    return failures if stopped is None else {**failures, min(generations): stopped}


def _score(
    snapshot: Snapshot, card: ScoreCard, shards: Sequence[tuple[int, int]], tasks: Tasks, job: ScoreJob
) -> dict[int, str]:
    """Add the score to these shards (shard, generation). Returns failures."""
    task = ScoreTask(snapshot.store, card.name, sources(snapshot, kind_of(card.name, card.score)), job.run)
    results = tasks.get(tasks.map(score_shard, [(task, *shard) for shard in shards]))
    return {failure.shard: failure.message for failure in results if failure is not None}
