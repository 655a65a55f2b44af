"""`pairmill explore`: serves the pages of `pipeline/explore`, and runs the select jobs that they request."""

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import yaml

from pairmill.jobs.select import ROWS_FOR_RAY, select
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.explore.app import app
from pairmill.pipeline.explore.columns import cache_home
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.labels import Labels, session_name
from pairmill.pipeline.explore.sample import MAX_ROWS
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import SelectJob, Subset

DEFAULT_PORT = 7800
_END_S = 3


@dataclass(frozen=True)
class ExploreOptions:
    """Where to serve, and where to write labels."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: any free port."""
    labels: str | None = None
    """Name of the labels file. None: the current time."""
    max_rows: int = MAX_ROWS


def explore(
    store: Store, options: ExploreOptions, on_ready: Callable[[Guard, Explorer], None], on_step: OnStep = ignore_step
) -> None:
    """Serve an output folder until Ctrl-C. Raises JobError if the port is taken, PlanError if the folder is
    not the output of a job."""
    store.check_access()
    listener = _listen(options.host, options.port)
    with contextlib.closing(listener), _cache() as home:
        guard = Guard.of(options.host, listener.getsockname()[1])
        labels = Labels(store, options.labels or session_name())
        explorer = Explorer(store, run_select, labels, home, options.max_rows, on_step)
        with contextlib.closing(explorer):
            _serve(explorer, guard, listener, lambda: on_ready(guard, explorer))


def run_select(job: SelectJob, dry_run: bool) -> Subset:
    """Run a select job or, with `dry_run`, only count. A large job runs in another process, because it starts Ray."""
    store = Store(job.dataset, job.s3)
    if load_plan(store).num_rows < ROWS_FOR_RAY:
        return select(job, dry_run)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True), file)
        file.flush()
        command = [
            sys.executable,
            "-P",
            "-m",
            "pairmill",
            "select",
            job.dataset,
            job.name,
            "--job",
            file.name,
            "--json",
        ]
        done = subprocess.run([*command, *(["--dry-run"] if dry_run else [])], capture_output=True, text=True)
    if done.returncode:
        raise JobError((done.stderr.strip().splitlines() or ["select failed"])[-1].removeprefix("pairmill: "))
    return Subset.model_validate({**json.loads(done.stdout.splitlines()[-1]), "files": []})


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Raises JobError."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)  # without the protocol, asyncio keeps Nagle's delay on
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        if listener:
            listener.close()
        is_taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = "choose another port with --port, or a free one with --port 0" if is_taken else "check --host"
        # For an unknown host name, errno is negative.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise JobError(f"cannot serve on {host}:{port} ({reason}); {remedy}") from None
    return listener


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """The cache folder: the user's, or a temporary one if the user cannot write to it, or if other users can. Arrow
    files of other users must not be read, because they are mapped into memory unchecked."""
    try:
        home = cache_home()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(home):
            raise PermissionError(f"{home} belongs to another user, or other users can write to it")
        with tempfile.TemporaryFile(dir=home):
            pass
    except (OSError, RuntimeError):
        with tempfile.TemporaryDirectory(prefix="pairmill-explore-") as folder:
            yield Path(folder)
        return
    yield home


def _is_private(folder: Path) -> bool:
    """Whether only this user can add files to the folder or replace it."""
    found, above = folder.stat(), folder.parent.stat()
    is_own = all(each.st_uid in (os.geteuid(), 0) for each in (found, above))
    # The folder above may be writable by the group, because the umask may be 002.
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or above.st_mode & stat.S_IWOTH
    return is_own and not shared


def _serve(explorer: Explorer, guard: Guard, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve until KeyboardInterrupt, which is raised again once all requests have ended."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app(explorer, guard),
        access_log=False,  # addresses may contain the token
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_END_S,
        ws="none",
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        on_ready()
        while thread.is_alive():
            thread.join(0.2)
    finally:
        server.should_exit = True
        thread.join(_END_S + 2)
        sys.stderr.flush()


class _Server(uvicorn.Server):
    """A server that leaves signals to the command, so that Ctrl-C ends all commands in the same way."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
