"""The only place that imports ray for work: stages become pools of Ray actors, shards stream through them.

Ray Data gives streaming, back-pressure and restarts; shard boundaries, accounting and resume are ours. A stage that
raises fails its shard and nothing else: the actor returns an error row. Shards that were lost with their actor are
tried again; what is lost then too is run alone, every picture decoded in a child process, so that a picture that kills
its decoder costs one row.
"""

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayTaskError

from jobs.cell import failed, pack, unpack
from pipeline import storage
from pipeline.inputs.cursor import ReadError
from pipeline.stages import Context, Stage, StageName, build_stages, run_stage
from pipeline.text import last_line, trace_of
from schemas.jobs import RunConfig
from schemas.manifest import ShardManifest
from schemas.s3 import S3Config

STORED_PICTURE_BYTES = 40_000
"""A picture of 512 px at quality 95, as it crosses between actors; sizes the object store's share."""

SHARDS_PER_ROUND = 2_048
"""Shards per Ray Data execution: eight million rows by default, against which restarting the pools is nothing."""

SLACK_S = 3_600
"""Beyond the slowest shard that a job allows: then the run is stuck, and says so instead of waiting for ever."""

_THREADS_TIMEOUT_S = 60.0

_FIRST_FAILURES = 3
"""Shards that a rule or a model of the job's may fail before any shard succeeds: it will fail the others too."""

DOWNLOAD_CPUS = 2
"""One download actor keeps two cores busy: its event loop and its decoding threads."""

DOWNLOAD_CALLS = 4
"""Shards at once in a download actor: nearly every shard of the web has a row that takes all of its time, so with fewer
the cores would wait for the slowest rows of each."""

SMALL_CPUS = 0.2
"""Logical CPUs of an actor that places no demand on where it runs. CPUs only place actors; threads do not heed them."""

log = logging.getLogger(__name__)


class EngineError(RuntimeError):
    """The run cannot start or go on; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: a manifest, or the traceback of what failed."""

    shard: int
    manifest: ShardManifest | None
    error: str | None


@dataclass(frozen=True)
class _Pool:
    """Size of one stage's pool, logical CPUs and GPUs per actor, and calls that run at once in each."""

    actors: int
    cpus: float
    gpus: float = 0.0
    calls: int = 1


class _StageActor:
    """Runs one stage on a worker. Never raises for what a shard holds: that is the shard's border."""

    def __init__(self, name: StageName, build: Callable[[Context], Stage], context: Context) -> None:
        warnings.filterwarnings("ignore", module="ray")
        storage.configure(context.job.s3)
        self.name = name
        self.broken: str | None = None
        try:
            self.stage = build(context)
        except Exception as error:  # no weights here, no GPU: each shard says so, where Ray would take 200 lines
            self.broken = trace_of(error)

    def __call__(self, cell: pa.Table) -> pa.Table:
        if "error" in cell.column_names and cell["error"][0].is_valid:
            return cell
        shard = cell["shard"][0].as_py()
        if self.broken:
            return failed(shard, self.broken)
        try:
            table = cell if self.name == "read" else unpack(cell)
            return pack(shard, run_stage(self.name, self.stage, table))
        except Exception as error:  # the border of a shard: it fails alone, with its traceback
            return failed(shard, trace_of(error))


@contextmanager
def ray_session(run: RunConfig, modules: Path | None = None, spare_cpus: int = 2) -> Iterator[None]:
    """Join the cluster of `run.address`, or start a local Ray for the time of the block.

    `modules`: a folder with the user's own rules, shipped to the workers. `spare_cpus`: logical ones beyond the
    machine's own, for a local Ray whose actors mostly wait. The driver moves to an empty directory
    before Ray starts, because the workers import from the driver's current directory before anything else, and a
    user's own `pipeline/` folder must not shadow ours.
    """
    if ray.is_initialized():
        yield
        return
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="pairmill-") as empty:
        os.chdir(empty)
        with redirect_stdout(sys.stderr):  # Ray reports lost tasks on stdout, which is for results
            try:
                _init(run, modules, spare_cpus)
                yield
            finally:
                wait_for_ray_data(_THREADS_TIMEOUT_S)
                ray.shutdown()
                os.chdir(here)


def wait_for_ray_data(timeout_s: float) -> None:
    """Until the threads of Ray Data's executors have ended. Ray Data gives them two seconds, and a thread that still
    speaks to Ray after `ray.shutdown` ends the whole process: with status 1, without a word, before the results."""
    for thread in threading.enumerate():
        if thread.name.startswith(("StreamingExecutor-", "ray-data-metadata-prefetch")):
            thread.join(timeout_s)


def _init(run: RunConfig, modules: Path | None, spare_cpus: int) -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else notes on Ray Data's internals reach the user
    environment = {"working_dir": str(modules)} if modules else None
    local = {"include_dashboard": False, "num_cpus": (os.cpu_count() or 1) + spare_cpus} if not run.address else {}
    with _held_back_stderr():
        ray.init(address=run.address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **local)


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Ray's C++ core greets on stderr while it starts; that is shown only where the start fails."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(real, aside.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


class RayTasks:
    """`pipeline.select.tasks.Tasks` on Ray: results stay in the object store until they are wanted.

    Ray runs a call again whose worker died: the functions are pure.
    """

    def __init__(self, s3: S3Config) -> None:
        self.s3 = s3
        self.memory_bytes = int(ray.cluster_resources()["object_store_memory"] // 3)

    def map(self, function: Callable[..., Any], calls: Iterable[Sequence[Any]], outputs: int = 1) -> list[Any]:
        """References; see Tasks."""
        remote = ray.remote(num_cpus=1, num_returns=outputs)(_call)
        return [remote.remote(self.s3, function, *call) for call in calls]

    def get(self, handles: Sequence[Any]) -> Iterator[Any]:
        """Raises what the call raised."""
        for handle in handles:
            try:
                yield ray.get(handle)
            except RayTaskError as error:
                raise error.cause from None


def _call(s3: S3Config, function: Callable[..., Any], *arguments: Any) -> Any:
    storage.configure(s3)
    return function(*arguments)


def run_shards(
    shards: pa.Table, context: Context, on_outcome: Callable[[Outcome], None], modules: Path | None = None
) -> None:
    """Run every shard of the table (PLAN_SCHEMA) through the job's stages; calls back once per shard that ended.

    Shards that were lost with their worker are tried again, then once more, each alone and carefully. Raises
    EngineError after `run.max_failed_shards_in_a_row` failures (fewer before the first shard that succeeds), where the
    cluster has too few CPUs or GPUs, and where nothing moves any more.
    """
    left, limit = set(shards["shard"].to_pylist()), context.job.run.max_failed_shards_in_a_row
    in_a_row, any_good = 0, False
    for careful in (False, False, True):
        with closing(_rounds(shards, replace(context, careful=careful, may_exit=True), modules)) as outcomes:
            for outcome in outcomes:
                left.discard(outcome.shard)
                on_outcome(outcome)
                if outcome.error is None:
                    in_a_row, any_good = 0, True
                    continue
                in_a_row += not _is_of_the_input(outcome.error)
                if in_a_row >= (limit if any_good or not _is_of_the_job(outcome.error) else _FIRST_FAILURES):
                    raise EngineError(
                        f"{in_a_row} shards in a row failed, the last one with: {last_line(outcome.error)}"
                    )
        if not left:
            return
        shards = shards.filter(pc.is_in(shards["shard"], value_set=pa.array(sorted(left))))
        log.warning("%d shards were lost with their worker; trying them again", len(left))


def _is_of_the_input(error: str) -> bool:
    """Files are damaged by themselves: however many there are, the others' shards have their turn."""
    return last_line(error).startswith(f"{ReadError.__module__}.{ReadError.__name__}")


def _is_of_the_job(error: str) -> bool:
    kinds = ("pipeline.rules.custom.CustomRuleError", "pipeline.encode.ModelError")
    return last_line(error).startswith(kinds)


def _rounds(shards: pa.Table, context: Context, modules: Path | None) -> Generator[Outcome, None, None]:
    """All shards, some thousands at a time: Ray Data keeps about 25 kB on the driver for every block it ever made.

    In the careful pass one at a time, because a worker that dies takes its neighbors' shards along. Every round has a
    Ray session of its own: an actor that Ray restarted after its death would keep its CPUs from the next round.
    """
    at_once = 1 if context.careful else SHARDS_PER_ROUND
    for start in range(0, shards.num_rows, at_once):
        some, any_came = shards.slice(start, at_once), False
        with ray_session(context.job.run, modules):
            for outcome in _stream(some, context):
                any_came = True
                yield outcome
        if any_came:
            continue
        if context.careful:
            yield Outcome(some["shard"][0].as_py(), None, "its worker process died, three times")
        elif some.num_rows > context.job.run.max_failed_shards_in_a_row:
            raise EngineError(f"all of {some.num_rows:,} shards died with their workers: is there enough memory?")


def _stream(shards: pa.Table, context: Context) -> Iterator[Outcome]:
    """Outcomes as shards come out of the last stage, in no order. Shards lost with a worker do not come out."""
    stages = build_stages(context)
    pools = _pools(context, [name for name, _ in stages], shards.num_rows)
    _configure(context, pools)
    # Ray 2.64 drops extra arguments such as max_task_retries; pyproject.toml keeps to versions that have them.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    dataset = ray.data.from_arrow(shards).repartition(target_num_rows_per_block=1)
    for name, build in stages:
        pool = pools[name]
        dataset = dataset.map_batches(
            _StageActor,
            fn_constructor_args=(name, build, context),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            compute=ActorPoolStrategy(
                size=pool.actors,
                max_concurrent_calls_per_actor=pool.calls,
                enable_true_multi_threading=pool.calls > 1,
            ),
            max_task_retries=0,  # what dies with its actor is for the careful pass; Ray would try it for ever
        )
    try:
        for cell in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            yield _outcome(cell)
    except ExecutionTimeoutError as error:
        raise EngineError(f"no shard has ended for too long, so something hangs: {last_line(str(error))}") from error


def _outcome(cell: pa.Table) -> Outcome:
    shard, error = cell["shard"][0].as_py(), cell["error"][0].as_py()
    if error:
        return Outcome(shard, None, error)
    return Outcome(shard, ShardManifest.model_validate_json(unpack(cell)["manifest"][0].as_py()), None)


def _pools(context: Context, names: Sequence[StageName], num_shards: int) -> dict[StageName, _Pool]:
    """Pool sizes from the job, else from what Ray has. Together they leave one CPU free: Ray Data's own tasks need it,
    and without it the run would wait for ever without a word."""
    run, total = context.job.run, ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0) - 1, int(total.get("GPU", 0))
    on_gpu = run.device != "cpu" and gpus > 0
    download = run.download_actors or max(1, int(cpus - 1) // DOWNLOAD_CPUS)
    encode = run.encode_actors or (gpus if on_gpu else 1)
    small = {
        "read": _Pool(1, SMALL_CPUS),
        "load": _Pool(1, SMALL_CPUS),
        "encode": _Pool(encode, SMALL_CPUS, gpus=1.0 if on_gpu else 0.0),
        "commit": _Pool(-(-download // 8), SMALL_CPUS),
    }
    if run.device == "cuda" and not gpus and "encode" in names:
        raise EngineError("run.device is cuda, but Ray has no GPU; use run.device=cpu, or a cluster with GPUs")
    if on_gpu and encode > gpus:
        raise EngineError(f"run.encode_actors is {encode}, but Ray has {gpus} GPUs, and each encoder takes one")
    left = cpus - sum(pool.actors * pool.cpus for name, pool in small.items() if name in names)
    if left < download * SMALL_CPUS:
        raise EngineError(
            f"Ray has {cpus + 1:g} CPUs, too few for {download} download and {encode} encode actors beside its own "
            "tasks: lower run.download_actors or run.encode_actors, or give Ray two CPUs or more"
        )
    largest_node = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    per_download = min(float(DOWNLOAD_CPUS), int(10 * left / download) / 10, largest_node)
    pools = {**small, "download": _Pool(download, per_download, calls=1 if context.careful else DOWNLOAD_CALLS)}
    return {name: replace(pools[name], actors=min(pools[name].actors, num_shards)) for name in names}


def _configure(context: Context, pools: dict[StageName, _Pool]) -> None:
    """Bound what is in flight, survive a process that dies, and never wait in silence."""
    data = DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.enable_progress_bars = False
    data.print_on_execution_start = False
    data.max_errored_blocks = -1  # only deaths of processes get here: stages return error rows
    fetch = context.job.fetch  # the slowest shard: all rows from one host that never answers
    slowest_s = context.job.shard_rows / fetch.per_host_concurrency * fetch.timeout_s * (fetch.retries + 1)
    data.execution_no_progress_timeout_s = int(SLACK_S + slowest_s)
    source = pools.get("download") or pools.get("load") or pools["read"]
    in_flight = context.job.run.shards_in_flight or 2 * source.actors * source.calls + 4
    options = data.execution_options
    options.preserve_order = False
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=in_flight * context.job.shard_rows * STORED_PICTURE_BYTES
    )
