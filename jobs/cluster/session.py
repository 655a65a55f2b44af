"""Joins a Ray cluster or starts a local Ray instance: the session in which the rest of this folder runs."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from pairmill.jobs.cluster.few_processes import few_processes
from pairmill.jobs.cluster.own_process import held_back_stderr
from pairmill.jobs.cluster.pools import ACCELERATOR_LABEL, SPARE_CPUS, Node
from pairmill.jobs.cluster.ray_start import job_config, messages_on_stderr, without_uv
from pairmill.jobs.cluster.ray_token import SessionError, check_token_folder
from pairmill.pipeline.common.text import describe
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.run import RunConfig

_one_at_a_time = threading.RLock()
_threads: set[int] = set()
"""The thread that has started Ray, if one has."""
_processes: set[int] = set()
"""The process that has had a session. A fork inherits it."""


@contextmanager
def ray_session(run: RunConfig, modules: Path | None = None, spare_cpus: int = SPARE_CPUS) -> Iterator[None]:
    """Join the cluster at `run.address`, or start a local Ray instance for the duration of the block.

    `modules`: a folder with the user's rule modules, shipped to the workers. `spare_cpus`: extra logical CPUs for a
    local instance, whose actors mostly wait.

    If the process uses Ray already, the block runs there. Raises JobError if another thread has a session open, because
    the first that ends would stop Ray for both, or if this process is a fork of one that has had a session, because Ray
    would crash.
    """
    _refuse_fork()
    with _one_thread():
        if not ray.is_initialized():
            with _sigterm_restored(), messages_on_stderr():
                _threads.add(threading.get_ident())
                try:
                    _init(run, modules, spare_cpus)
                    yield
                finally:
                    ray.shutdown()
                    _threads.clear()
            return
    yield


def is_open_in_another_thread() -> bool:
    """Whether another thread of this process has started Ray for a job of ours."""
    return bool(_threads - {threading.get_ident()})


def _refuse_fork() -> None:
    if _processes and os.getpid() not in _processes:
        raise JobError(
            "this process was forked from one that has run a job on Ray, which does not survive a fork; start it with "
            "the multiprocessing method 'spawn' or 'forkserver' instead"
        )
    _processes.add(os.getpid())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let only one thread at a time, and its inner sessions, into the block. Raises JobError."""
    if not _one_at_a_time.acquire(timeout=1):  # s; if the process uses Ray already, others hold it for an instant
        raise JobError(
            "another thread of this process runs a job on Ray; wait until it ends, or run each job in a process of its "
            "own"
        )
    try:
        yield
    finally:
        _one_at_a_time.release()


def _init(run: RunConfig, modules: Path | None, spare_cpus: int) -> None:
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # nobody reads the results of a dead worker
    local = {"include_dashboard": False, "num_cpus": (os.cpu_count() or 1) + spare_cpus} if not run.address else {}
    address = run.address or "local"  # by default, Ray would join any cluster that was started on this machine

    def start() -> None:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **_own_modules(modules), **local)

    with held_back_stderr(), without_uv(), _unchanged_sigterm():
        if run.address:
            _join(start, run.address)
        else:
            check_token_folder()
            with few_processes():
                _twice(start)


def _join(start: Callable[[], object], address: str) -> None:
    """Join a cluster. Raises SessionError if it does not answer, or does not let this process in."""
    try:
        start()
    except (ConnectionError, AuthenticationError) as error:
        raise SessionError(
            f"cannot join the Ray cluster at {address}: {describe(error)}; is it running? If it requires a token, copy "
            "~/.ray/auth_token from its head node to the same file here, and set RAY_AUTH_MODE=token: otherwise, "
            "Ray sends it to no address"
        ) from error


def _twice(start: Callable[[], object]) -> None:
    """Start a local Ray instance. If that fails, try once more, because on a busy machine the start may time out with a
    plain Exception.

    If a file cannot be written, there is no second attempt. Raises SessionError.
    """
    try:
        try:
            start()
        except Exception as error:
            if _names_a_file(error):
                raise
            ray.shutdown()
            start()
    except Exception as error:
        ray.shutdown()
        if isinstance(error, OSError) and _names_a_file(error):
            cause = f"{error.filename}: {error.strerror}"
            raise SessionError(
                f"Ray did not start: {cause}; set RAY_TMPDIR to a folder that you can write to"
            ) from error
        raise SessionError(f"Ray failed to start twice: {describe(error)}; is the machine overloaded?") from error


def _names_a_file(error: Exception) -> bool:
    return isinstance(error, OSError) and error.filename is not None


def _own_modules(modules: Path | None) -> Mapping[str, Any]:
    """What to tell `ray.init` about modules. A submitted job brings its own, and Ray accepts only one working_dir."""
    if _has_working_dir():
        return {}
    return {"runtime_env": {"working_dir": str(modules)}} if modules else {"job_config": job_config()}


def _has_working_dir() -> bool:
    """Whether this is a submitted job, which brings its own modules."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return "working_dir" in submitted


@contextmanager
def _sigterm_restored() -> Iterator[None]:
    """Restore the caller's handler for SIGTERM after the block, even if it is Python's default."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _unchanged_sigterm() -> Iterator[None]:
    """Keep the caller's handler for SIGTERM, if there is one. Ray replaces it with its own, which raises SystemExit."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def cluster_nodes() -> list[Node]:
    """The machines of the Ray cluster that this process has joined."""
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            accelerator=node.get("Labels", {}).get(ACCELERATOR_LABEL),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
