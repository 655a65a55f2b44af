"""`pairmill retry`: retries rows that failed because of the network, and commits new generations of their shards.

Only rows with the given statuses change; all other rows stay as they are. If nothing is recovered in a shard, its new
pairs file equals the old one byte for byte.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from pairmill.jobs.build import run_shards_of
from pairmill.jobs.check import check
from pairmill.jobs.job_file import resolve, s3_of
from pairmill.jobs.progress import ProgressListener
from pairmill.jobs.results import BuildResult, finish
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.manifests import drop_superseded, read_manifests
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge
from pairmill.pipeline.purge.inputs import blank_withdrawn
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.source.unchanged import check_lists
from pairmill.pipeline.stages.pipelines import Pipeline, retry_pipeline
from pairmill.schemas.errors import JobError
from pairmill.schemas.status import Status, Step, retryable


@dataclass(frozen=True)
class RetryResult:
    """What an output folder contains after a retry, and what the retry recovered."""

    build: BuildResult
    retried: int
    """Rows that were fetched again."""
    recovered: int
    """How many of the retried rows have a new status: they became pairs, or were rejected for a permanent reason."""
    withdrawn: int = 0
    """How many of the retried rows were recognized as withdrawn; they are not stored."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        counts = {"retried": self.retried, "recovered": self.recovered, "retried_withdrawn": self.withdrawn}
        return {**self.build.as_dict(), **counts}


def retry(
    output: str,
    statuses: Collection[str] = (),
    settings: Mapping[str, object] | None = None,
    listener: ProgressListener | None = None,
) -> RetryResult:
    """Retry rows that have one of `statuses` (by default, all that a retry might fix).

    `settings`: parts of the job that may change between runs, such as {"fetch": {"timeout_s": 60}}. Raises JobError,
    and PlanError for a list that has changed since it was planned.
    """
    started = time.perf_counter()
    wanted = _check_statuses(statuses)
    store = Store(output, s3_of(settings or {}))
    store.check_access()
    refuse_unfinished_purge(store)
    plan = load_plan(store)
    if plan.job.source.is_corpus:
        raise JobError(f"{store.root} was made from a corpus: there is nothing to download again")
    pipeline = _pipeline(store, plan, settings or {}, wanted)
    before, withdrawn_before, generations = _lost(store, wanted)
    column = pa.array([generations.get(shard) for shard in plan.shards["shard"].to_pylist()], pa.int64())
    shards = plan.shards.append_column("generation", column).filter(column.is_valid())
    check_lists(plan, set(shards["uri"].to_pylist()), store)
    failures: dict[int, str] = {}
    if listener:
        rows_left = sum(shards["num_rows"].to_pylist())
        description = f"{counted(before, 'row')} to fetch again in {counted(shards.num_rows, 'shard')}"
        listener.planned(description, shards.num_rows, rows_left, 0)
    stopped = run_shards_of(pipeline, shards, listener, failures) if shards.num_rows else None
    drop_superseded(store)
    blank_withdrawn(store, plan)  # rows that were recognized as withdrawn only by their pictures
    after, withdrawn, _ = _lost(store, wanted)
    withdrawn -= withdrawn_before
    result = replace(finish(store, plan, failures, started), stopped=stopped)
    return RetryResult(result, before, before - after - withdrawn, withdrawn)


def _check_statuses(statuses: Collection[str]) -> set[str]:
    possible = {status.value for status in Status if status.step in (Step.FETCH, Step.IMAGE)}
    if unknown := sorted(set(statuses) - possible):
        raise JobError(f"--status {', '.join(unknown)}: retry accepts only {', '.join(sorted(possible))}")
    return set(statuses) or {status.value for status in retryable()}


def _pipeline(store: Store, plan: Plan, settings: Mapping[str, object], statuses: Collection[str]) -> Pipeline:
    """The job that planned the output, updated with `settings`, which may not change the output."""
    known = plan.job.model_dump(mode="json")
    for part, values in settings.items():
        known[part] = {**known.get(part, {}), **values} if isinstance(values, dict) else values
    job, fingerprint = check(resolve({**known, "output": store.root}))
    if fingerprint != plan.record.fingerprint:
        raise JobError(
            f"{store.root} was made with other settings, rules or weights; a retry may change only how the job runs: "
            "run.*, fetch.timeout_s, fetch.retries, fetch.concurrency and the like"
        )
    return retry_pipeline(job, plan.mapping, fingerprint, statuses)


def _lost(store: Store, statuses: Collection[str]) -> tuple[int, int, dict[int, int]]:
    """(number of rows with these statuses, number of withdrawn rows, shard -> generation for the shards with rows of
    these statuses)."""
    rows, withdrawn, generations = 0, 0, {}
    for manifest in read_manifests(store):
        lost = sum(manifest.statuses.get(status, 0) for status in statuses)
        withdrawn += manifest.withdrawn
        if lost:
            rows += lost
            generations[manifest.shard] = manifest.generation
    return rows, withdrawn, generations
