"""Starts workers on this machine quickly: a process that has imported their libraries forks itself for each of them.

Otherwise each worker would import them for almost a second of CPU time, which is longer than it works for a small job.
multiprocessing has such a server too, but its workers would run the user's main module, and its list of imports belongs
to the whole process, so to the user.
"""

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from pairmill.jobs.cluster.channel import Channel
from pairmill.jobs.cluster.memory_file import new_memory_file
from pairmill.jobs.cluster.ray_use import uses_ray
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.text import last_line

_PROGRAM = "pairmill.jobs.cluster.fork_server_program"

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process with threads must not fork."""

_STDERR = 2

_EXIT_S = 5.0
"""Time that the server has to kill its workers and exit."""


@dataclass(frozen=True)
class Fork:
    """To the server: start a worker, whose channel and output come with the message as files. It answers with Forked or
    NotForked."""

    stage: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Kill:
    """To the server: kill a worker and what it has started."""

    pid: int


@dataclass(frozen=True)
class Forked:
    """From the server: a worker has started."""

    pid: int


@dataclass(frozen=True)
class NotForked:
    """From the server: the system starts no more processes."""

    errno: int


@dataclass(frozen=True)
class Exited:
    """From the server: a worker has exited, and what it had started was killed. A negative status is a signal."""

    pid: int
    status: int


@dataclass(eq=False)
class WorkerProcess:
    """A worker, started by a server."""

    server: "ForkServer"
    pid: int
    channel: Channel
    output: IO[bytes]
    """What it writes to stdout and stderr."""
    status: int | None = None
    """Its exit status, once that is known; a negative one is a signal."""

    def poll(self) -> int | None:
        """Its exit status, or None if it is still running."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> int | None:
        """Like `poll`, but waits for its end."""
        deadline = time.monotonic() + timeout_s
        while self.status is None and self.server.receive(deadline - time.monotonic()):
            pass
        return self.status

    def kill(self) -> None:
        """Kill it and what it has started, without waiting for the end."""
        if self.poll() is None:
            self.server.send(Kill(self.pid))

    def close(self) -> None:
        """Close the connection, so that it exits once it has noticed."""
        self.channel.close()
        self.output.close()


@dataclass(eq=False)
class ForkServer:
    """The driver's side. For one thread: Linux ends the server, and its workers, with the thread that started it."""

    _process: "subprocess.Popen[bytes] | None" = None
    _channel: Channel | None = None
    _output: int | None = None
    _workers: dict[int, WorkerProcess] = field(default_factory=dict)
    """Those that have not exited, by their pid."""
    _answer: Forked | NotForked | None = None

    def start(self) -> None:
        """Start the server, which takes some time until it answers. Does nothing if it is running.

        Raises OSError if this machine cannot start a process.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._output = new_memory_file()
        self._channel, theirs = _connection()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **_ONE_THREAD},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,  # so that Ctrl-C reaches only the driver, which then stops its workers
            )

    def fork(self, stage: str, environment: Mapping[str, str]) -> WorkerProcess:
        """Start a worker, which waits for its Open on the channel. Starts the server if necessary.

        Raises OSError if this machine cannot start a process, and LocalFault if the server dies.
        """
        self.start()
        with ExitStack() as ours, ExitStack() as theirs:
            channel, its_end = _connection()
            ours.callback(channel.close)
            theirs.callback(its_end.close)
            read, write = os.pipe()
            output = ours.enter_context(open(read, "rb", buffering=0))
            theirs.callback(os.close, write)
            os.set_blocking(read, False)
            named = {name: value for name, value in environment.items() if name}  # no other process accepts the others
            self.send(Fork(stage, named), [its_end.fileno(), write])
            worker = WorkerProcess(self, self._forked(), channel, output)
            ours.pop_all()
        self._workers[worker.pid] = worker
        return worker

    def _forked(self) -> int:
        self._answer = None
        try:
            while self._answer is None:
                if not self.receive(None):
                    raise LocalFault(f"the process that starts workers has died: {self._last_words()}")
        except KeyboardInterrupt:
            self.close()  # otherwise, the next request would take the answer for its own
            raise
        if isinstance(self._answer, NotForked):
            raise OSError(self._answer.errno, os.strerror(self._answer.errno))
        return self._answer.pid

    def send(self, message: object, files: Sequence[int] = ()) -> None:
        """Send the server a message. If it is dead, `receive` will notice."""
        if self._channel is not None:
            with suppress(ConnectionError):
                self._channel.send(message, files)

    def receive(self, timeout_s: float | None) -> bool:
        """Wait for the server's next message and handle it. Returns False if there was none, or the server is dead."""
        if self._channel is None:
            return False
        wait_ms = None if timeout_s is None else max(0.0, timeout_s) * 1000
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(wait_ms):
            return False
        try:
            message, _ = self._channel.receive()
        except EOFError:
            self._died()
            return False
        if isinstance(message, Exited):
            self._workers.pop(message.pid).status = message.status
        else:
            self._answer = message
        return True

    def _died(self) -> None:
        """On Linux, workers die with their server. What they have started does not, and neither do they elsewhere."""
        for pid in self._workers:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._forget()

    def _forget(self) -> None:
        for worker in self._workers.values():
            worker.status = -signal.SIGKILL
        self._workers.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _last_words(self) -> str:
        if self._output is None:
            return ""
        written = os.pread(self._output, 1 << 16, max(0, os.fstat(self._output).st_size - (1 << 16)))
        return last_line(written.decode(errors="replace"))

    def close(self) -> None:
        """End the server, which kills its workers and what they have started."""
        if self._process is not None:
            if self._workers:
                self._process.terminate()
            else:  # it has nothing to do, and may still be importing
                self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_S)
            self._process.kill()
            if self._process.wait() != 0:
                self._died()
            self._process = None
        self._forget()
        if self._output is not None:
            os.close(self._output)
            self._output = None


def _connection() -> tuple[Channel, socket.socket]:
    """Our end, and an end to pass to a process, which is none of its standard streams."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # the default is the user's
    if theirs.fileno() <= _STDERR:  # as in a daemon, whose own are closed
        with theirs:
            theirs = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1))
    return Channel(ours), theirs


class _Ahead(threading.local):
    server: ForkServer | None = None
    pid: int | None = None


_ahead = _Ahead()
"""The server that this thread has started ahead. A fork of the process must not use it."""


@contextmanager
def started_ahead(unless: bool = False) -> Iterator[None]:
    """Let the libraries of workers be imported while this process is still busy with planning a job. For a block that
    then opens machines in the same thread. Does nothing if the workers may be Ray's, or `unless` is true."""
    if unless or uses_ray() or not sys.executable or _server_ahead() is not None:
        yield
        return
    with closing(ForkServer()) as server:
        with suppress(OSError):  # the error comes again when a worker has to start
            server.start()
        _ahead.server, _ahead.pid = server, os.getpid()
        try:
            yield
        finally:
            _ahead.server = None


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """The server that was started ahead, or else one that starts with its first worker."""
    server = _server_ahead()
    if server is not None:
        yield server
        return
    with closing(ForkServer()) as server:
        yield server


def end_server_ahead() -> None:
    """End the server that was started ahead, because the workers are Ray's."""
    server = _server_ahead()
    if server is not None:
        server.close()


def _server_ahead() -> ForkServer | None:
    return _ahead.server if _ahead.pid == os.getpid() else None
