"""`pairmill build`: turns URLs and captions into scored Parquet shards.

Every mistake in a job is found before workers start. A run processes the planned shards that are not committed yet, so
after a failure or Ctrl-C, the same command continues where the last run stopped.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from pairmill.jobs.check import check, difference, open_output, warnings_of
from pairmill.jobs.cluster.job_bundle import custom_modules
from pairmill.jobs.progress import ProgressListener
from pairmill.jobs.results import BuildResult, failure_name, finish
from pairmill.jobs.yaml_loader import dump_yaml
from pairmill.pipeline import rules
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.common.text import last_line
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.dataset.withdrawn import refuse_unfinished_purge
from pairmill.pipeline.known.prepare import describe_known, read_known
from pairmill.pipeline.purge.inputs import blank_withdrawn
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.plan import OtherJobError, make_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.stages.pipelines import Pipeline, build_pipeline
from pairmill.schemas.errors import FailureKind, JobError, PairmillError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.record import JobRecord


def build(job: BuildJob, listener: ProgressListener | None = None) -> BuildResult:
    """Run the job. Returns what the output then contains, and what failed. Raises JobError if the job is invalid."""
    started = time.perf_counter()
    pipeline, plan = prepare(job)
    done = committed(pipeline.store)
    left = [index not in done for index in plan.shards["shard"].to_pylist()]
    shards = plan.shards.filter(left)
    failures: dict[int, str] = {}
    if listener:
        rows_left = sum(shards["num_rows"].to_pylist())
        listener.planned(described(pipeline, plan), shards.num_rows, rows_left, plan.num_rows - rows_left)
    stopped = run_shards_of(pipeline, shards, listener, failures) if shards.num_rows else None
    blank_withdrawn(pipeline.store, plan)  # rows that were recognized as withdrawn only by their pictures
    return replace(finish(pipeline.store, plan, failures, started), stopped=stopped)


def described(pipeline: Pipeline, plan: Plan) -> str:
    """What the job will do, and warnings about it. The pipeline's job says what it really computes with."""
    return "\n".join([describe_plan(plan, pipeline.job), *_described_lists(pipeline), *warnings_of(pipeline.job)])


def _described_lists(pipeline: Pipeline) -> list[str]:
    """What was read from the blocklists, and the known rows that the filters of `rules.known` were made from."""
    record = read_known(pipeline.store) if pipeline.job.rules.known else None
    return [
        *rules.describe_blocklists(rules.SourceRules.of(pipeline.job)),
        *([] if record is None else [describe_known(record)]),
    ]


def prepare(job: BuildJob) -> tuple[Pipeline, Plan]:
    """Check the job, its inputs and its output folder, and plan it. Starts no workers."""
    store = open_output(job)
    refuse_unfinished_purge(store)
    job, job_fingerprint = check(job)
    try:
        plan = make_plan(JobRecord(job, job_fingerprint, versions()), store)
    except OtherJobError as other:
        raise JobError(difference(store, other.record.job, job)) from None
    blank_withdrawn(store, plan)  # in lists that were added after the purge
    if not store.exists("job.yaml"):
        store.create("job.yaml", dump_yaml(plan.record.to_json()).encode())
    recorded = plan.record.job  # an output keeps the defaults of the version that started it
    job = job.model_copy(update={"images": recorded.images, "scores": recorded.scores})
    return build_pipeline(job, plan.mapping, job_fingerprint), plan


def run_shards_of(
    pipeline: Pipeline, shards: pa.Table, listener: ProgressListener | None, failures: dict[int, str]
) -> str | None:
    """Run some of the plan's shards, and record failures. Returns why the run stopped early, or None.

    Raises LocalFault if this machine, which would run the workers, lets them open too few files.
    """
    from pairmill.jobs.cluster.lost_shards import EngineError, Outcome
    from pairmill.jobs.cluster.run_shards import run_shards
    from pairmill.pipeline.fetch.file_limit import check_file_limit

    fetch, on_this_machine = pipeline.job.fetch, pipeline.job.run.address is None
    if "download" in pipeline.names and fetch.engine == "aiohttp" and on_this_machine:
        check_file_limit(fetch.concurrency)

    def on_outcome(outcome: Outcome) -> None:
        result = outcome.result
        if isinstance(result, ShardManifest):
            failures.pop(outcome.shard, None)
            if listener:
                listener.committed(result)
            return
        failures[outcome.shard] = last_line(result.traceback)
        if result.kind is FailureKind.STORAGE:
            where = "" if pipeline.store.root in result.message else f"{pipeline.store.root}: "
            raise EngineError(f"{where}{result.message}; fix this and rerun the command")
        try:
            pipeline.store.replace(failure_name(outcome.shard), result.traceback.encode())
        except (OSError, PairmillError) as error:
            raise EngineError(f"{pipeline.store.root}: a failed shard could not be recorded: {error}") from error
        if listener:
            listener.failed(outcome.shard, failures[outcome.shard])

    def on_work(work: Mapping[str, WorkCounts]) -> None:
        if listener:
            listener.working(work)

    try:
        with custom_modules(pipeline.job.rules.custom) as modules:
            run_shards(shards, pipeline, on_outcome, on_work, modules)
    except EngineError as error:
        return str(error)
    return None
