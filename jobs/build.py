"""`pairmill build`: URLs and captions in, scored Parquet shards out.

Everything that can be wrong with a job is found before Ray starts. A run does the plan minus what is committed, so the
same command after a failure, or after Ctrl-C, goes on where the last one stopped.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import yaml

from pairmill.jobs.cluster.job_bundle import BLOCKLISTS, custom_modules
from pairmill.jobs.job_file import fingerprint, resolve
from pairmill.pipeline import rules
from pairmill.pipeline.common.files import Files, absolute
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import last_line
from pairmill.pipeline.dataset.manifests import committed, read_manifests
from pairmill.pipeline.dataset.output_folder import check_dataset_folder
from pairmill.pipeline.dataset.strays import StrayFiles
from pairmill.pipeline.source.describe import describe_plan
from pairmill.pipeline.source.plan import OtherJobError, load_plan, make_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.pipeline.stages.build import versions
from pairmill.pipeline.stages.pipelines import Pipeline, build_pipeline
from pairmill.schemas.errors import FailureKind, JobError
from pairmill.schemas.jobs import BuildJob, fingerprint_fields
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.record import JobRecord

MAX_FAILURES_READ = 100
"""Of an output folder, for its status."""


class ProgressListener(Protocol):
    """Is told how a run goes."""

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        """A plan exists; the rows count those of the input, and `rows_done` are from earlier runs."""

    def committed(self, manifest: ShardManifest) -> None:
        """One shard is done."""

    def failed(self, shard: int, error: str) -> None:
        """One shard is given up in this run; `error` is the last line of its traceback."""


@dataclass(frozen=True)
class BuildResult:
    """What an output folder holds after a run."""

    output: str
    shards: int
    shards_missing: list[int]
    input_rows: int
    """Rows of the input that are done."""
    rows_in: int
    """The same, with a row for each caption of a list."""
    pairs: int
    rejects: int
    kept: int
    statuses: dict[str, int]
    seconds: float
    failures: dict[int, str] = field(default_factory=dict)
    """Shard -> last line of its traceback; the whole of it is in `failures/`."""
    stopped: str | None = None
    """Why the run ended before all shards had their turn; None if it did not."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def build(job: BuildJob, listener: ProgressListener | None = None) -> BuildResult:
    """Run the job to its end; returns what the output holds then, and what failed. A bad job raises JobError first."""
    started = time.perf_counter()
    pipeline, plan = prepare(job)
    done = committed(pipeline.store)
    left = [index not in done for index in plan.shards["shard"].to_pylist()]
    shards = plan.shards.filter(left)
    failures: dict[int, str] = {}
    if listener:
        rows_left = sum(shards["num_rows"].to_pylist())
        listener.planned(
            "\n".join([describe_plan(plan, job), *_warnings(job)]),
            shards.num_rows,
            rows_left,
            plan.num_rows - rows_left,
        )
    stopped = run_shards_of(pipeline, shards, listener, failures) if shards.num_rows else None
    return replace(finish(pipeline.store, plan, failures, started), stopped=stopped)


def prepare(job: BuildJob) -> tuple[Pipeline, Plan]:
    """Check the job against the world and its output folder, and plan it. Nothing of Ray is touched."""
    check_buckets([job.output, *job.source.paths], job.s3)
    store = Store(job.output, job.s3)
    check_dataset_folder(store)
    job, job_fingerprint = check(job)
    try:
        plan = make_plan(JobRecord(job, job_fingerprint, versions()), store)
    except OtherJobError as other:
        raise JobError(difference(store, other.record.job, job)) from None
    if not store.exists("job.yaml"):
        store.create("job.yaml", yaml.safe_dump(plan.record.to_json(), sort_keys=False, allow_unicode=True).encode())
    return build_pipeline(job, plan.mapping, job_fingerprint), plan


def check(job: BuildJob) -> tuple[BuildJob, str]:
    """The job with its preset expanded and absolute paths, and its fingerprint. Raises JobError."""
    job = _with_absolute_paths(resolve(job.model_dump(exclude_unset=True)))  # a preset may have come from Python
    try:
        rules.check_rules(rules.SourceRules.of(job), Path.cwd())
    except (OSError, ValueError) as error:
        raise JobError(str(error)) from None
    weights = _check_models(job)
    job = _with_dtypes(job)
    return job, fingerprint(job, [*weights, *_own_contents(job)])


def finish(store: Store, plan: Plan, failures: dict[int, str], started: float) -> BuildResult:
    """Count what the manifests say, and clean up after a run on the way."""
    strays, done = StrayFiles(store), committed(store)
    for name in store.list("failures"):
        shard = name.removesuffix(".txt")
        if shard.isdigit() and int(shard) in done and int(shard) not in failures:
            store.delete(f"failures/{name}")
    totals = Totals()
    for manifest in read_manifests(store):
        strays.remove(manifest)
        totals.add(manifest)
    store.remove_temporary()
    return totals.result(store, plan, failures, time.perf_counter() - started)


def current(store: Store) -> BuildResult:
    """What an output folder holds now, while a run is under way or after it. Raises PlanError where there is none."""
    store.check_access()
    plan, totals = load_plan(store), Totals()
    for manifest in read_manifests(store):
        totals.add(manifest)
    numbers = [int(name.removesuffix(".txt")) for name in store.list("failures") if name.removesuffix(".txt").isdigit()]
    failed = [shard for shard in numbers if shard not in totals.shards][:MAX_FAILURES_READ]
    failures = {shard: last_line(store.read(_failure_name(shard)).decode(errors="replace")) for shard in failed}
    return totals.result(store, plan, failures, 0.0)


@dataclass
class Totals:
    """Sums over manifests, added one by one: memory does not grow with what they hold."""

    shards: set[int] = field(default_factory=set)
    rows: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, manifest: ShardManifest) -> None:
        """Count one shard in."""
        self.shards.add(manifest.shard)
        self.statuses.update(manifest.statuses)
        for name in ("num_rows", "rows_in", "pairs", "rejects", "kept"):
            self.rows[name] += getattr(manifest, name)

    def result(self, store: Store, plan: Plan, failures: dict[int, str], seconds: float) -> BuildResult:
        """All of it, beside what the plan asks for."""
        return BuildResult(
            output=store.root,
            shards=plan.num_shards,
            shards_missing=[shard for shard in plan.shards["shard"].to_pylist() if shard not in self.shards],
            input_rows=self.rows["num_rows"],
            rows_in=self.rows["rows_in"],
            pairs=self.rows["pairs"],
            rejects=self.rows["rejects"],
            kept=self.rows["kept"],
            statuses=dict(self.statuses.most_common()),
            seconds=round(seconds, 1),
            failures=failures,
        )


def run_shards_of(
    pipeline: Pipeline, shards: pa.Table, listener: ProgressListener | None, failures: dict[int, str]
) -> str | None:
    """Run some of the plan's shards on Ray, noting those that fail; returns why the run stopped early, if it did."""
    from pairmill.jobs.cluster import engine  # ray takes a second to import: only a run that has work pays

    def on_outcome(outcome: engine.Outcome) -> None:
        result = outcome.result
        if isinstance(result, ShardManifest):
            failures.pop(outcome.shard, None)
            if listener:
                listener.committed(result)
            return
        failures[outcome.shard] = last_line(result.traceback)
        if result.kind is FailureKind.STORAGE:
            where = "" if pipeline.store.root in result.message else f"{pipeline.store.root}: "
            raise engine.EngineError(f"{where}{result.message}; put that right and run it again")
        pipeline.store.replace(_failure_name(outcome.shard), result.traceback.encode())
        if listener:
            listener.failed(outcome.shard, failures[outcome.shard])

    try:
        with custom_modules(pipeline.job.rules.custom) as modules:
            engine.run_shards(shards, pipeline, on_outcome, modules)
    except engine.EngineError as error:
        return str(error)
    return None


def _failure_name(shard: int) -> str:
    return f"failures/{shard:09d}.txt"


def _with_absolute_paths(job: BuildJob) -> BuildJob:
    """Workers run elsewhere: every path of the job must mean the same there."""
    lists = {name: getattr(job.rules, name) for name in BLOCKLISTS}
    found = {name: absolute(path) for name, path in lists.items() if path}
    weights = [
        model.model_copy(
            update={
                "pretrained": absolute(model.pretrained)
                if model.pretrained and Path(model.pretrained).is_file()
                else model.pretrained,
                "name": absolute(model.name) if Path(model.name, "open_clip_config.json").is_file() else model.name,
            }
        )
        for model in job.models
    ]
    return job.model_copy(
        update={
            "output": absolute(job.output),
            "source": job.source.model_copy(update={"paths": [absolute(path) for path in job.source.paths]}),
            "rules": job.rules.model_copy(update=found),
            "models": weights,
        }
    )


def _with_dtypes(job: BuildJob) -> BuildJob:
    """What `auto` comes to here: it changes the output, so a run that goes on elsewhere must compute in the same.
    On a cluster only the workers know; there it stays `auto`."""
    if job.run.address is not None or all(model.dtype != "auto" for model in job.models):
        return job
    from pairmill.pipeline.encode.device import resolved_dtype

    models = [model.model_copy(update={"dtype": resolved_dtype(model, job.run)}) for model in job.models]
    return job.model_copy(update={"models": models})


def _check_models(job: BuildJob) -> list[str]:
    """SHA-256 of the weights of each model."""
    if not job.models:
        return []
    from pairmill.pipeline.encode.device import check_device
    from pairmill.pipeline.encode.weights import ModelError, resolve_weights

    try:
        if job.run.address is None:
            check_device(job.run)
        return resolve_weights(job.models)
    except ModelError as error:
        raise JobError(str(error)) from None


def _own_contents(job: BuildJob) -> list[str]:
    """Checksums of the user's rules and blocklists: their content changes the output as any setting does."""
    lists = {name: path for name in BLOCKLISTS if (path := getattr(job.rules, name))}
    tops = {name.partition(":")[0].partition(".")[0] for name in job.rules.custom}
    modules = [str(path) for top in tops for path in (Path(f"{top}.py"), *Path(top).rglob("*.py")) if path.is_file()]
    files = Files(job.s3)
    return [
        *(f"{name}:{files.checksum(path)[0]}" for name, path in lists.items()),
        *(files.checksum(path)[0] for path in sorted(modules)),
    ]


def _warnings(job: BuildJob) -> list[str]:
    """What is allowed and seldom meant."""
    from pairmill.pipeline.encode.weights import input_side

    lines = []
    if any(model.name == "tiny" for model in job.models):
        lines.append("warning: `tiny` knows drawn shapes only; its scores mean nothing on photographs")
    for model in job.models:
        if (
            not job.source.is_corpus
            and job.images.resize_mode != "no"
            and (side := input_side(model)) > job.images.size
        ):
            lines.append(f"warning: images.size is {job.images.size} px, but {model.name} looks at {side} px")
    return lines


def difference(store: Store, planned: BuildJob, job: BuildJob) -> str:
    """What to say of an output folder of another job: the fields that differ."""
    before, now = fingerprint_fields(planned), fingerprint_fields(job)
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    diff = [f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names]
    advice = "Give another output folder, or the settings of that job."
    if not committed(store):
        advice = "Nothing is committed there yet: delete its plan/, input/ and job.yaml, or give another output folder."
    return "\n".join(
        [
            f"{store.root} holds the output of another job. What differs:",
            *(diff or ["  the content of a custom rule, a blocklist or a model's weights"]),
            advice,
        ]
    )
