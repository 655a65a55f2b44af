"""Join a Ray cluster, or start a local Ray: the session that everything else in this room runs in."""

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import ray

from pairmill.jobs.cluster.pools import ACCELERATOR_LABEL, SPARE_CPUS, Node
from pairmill.schemas.jobs import RunConfig


@contextmanager
def ray_session(run: RunConfig, modules: Path | None = None, spare_cpus: int = SPARE_CPUS) -> Iterator[None]:
    """Join the cluster of `run.address`, or start a local Ray for the duration of the block.

    `modules`: a folder with the user's own rules, shipped to the workers. `spare_cpus`: logical ones beyond the
    machine's own, for a local Ray whose actors mostly wait.
    """
    if ray.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pairmill-") as empty, redirect_stdout(sys.stderr):
        try:  # stdout is for results, and Ray reports lost tasks there
            # Ray puts the directory that it starts in at the front of its workers' sys.path. There, a secrets.py or a
            # datasets/ of the user's would replace the real module, in workers alone. It does not where workers get a
            # working_dir, but an empty one for all would leave those that Ray prestarts unused: 2 s more.
            with nullcontext() if _has_working_dir() else chdir(empty):
                _init(run, modules, spare_cpus)
            yield
        finally:
            ray.shutdown()


def _init(run: RunConfig, modules: Path | None, spare_cpus: int) -> None:
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a dead worker's results are nobody's to read
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else notes on Ray's internals reach the user
    environment = {"working_dir": str(modules)} if modules and not _has_working_dir() else None
    local = {"include_dashboard": False, "num_cpus": (os.cpu_count() or 1) + spare_cpus} if not run.address else {}
    with _held_back_stderr(), _unchanged_sigterm():
        address = run.address or "local"  # by default, Ray would join whatever was started on this machine
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **local)


def _has_working_dir() -> bool:
    """Whether this is a submitted job, with which the modules came along: Ray takes no second folder."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return "working_dir" in submitted


@contextmanager
def _unchanged_sigterm() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM, if there is one: Ray replaces it with its own, which raises SystemExit."""
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


def cluster_nodes() -> list[Node]:
    """The machines of the Ray that this process is part of."""
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            accelerator=node.get("Labels", {}).get(ACCELERATOR_LABEL),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
