"""The main program of the process that starts workers on this machine.

    python -P -m pairmill.jobs.cluster.fork_server_program FD DRIVER

FD is its end of a `Channel`, DRIVER the process that started it. It imports the libraries of workers, then forks itself
for each of them. It has one thread, so that forks are safe. If a library or the user's `sitecustomize` has started
another one, and on macOS, whose libraries do not survive a fork, each worker starts as a new Python instead.
"""

import gc
import os
import selectors
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from pairmill.jobs.cluster import process_worker
from pairmill.jobs.cluster.channel import Channel
from pairmill.jobs.cluster.fork_server import Exited, Fork, Forked, Kill, NotForked

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)

_ALLOCATOR = "jemalloc_bg_thd"
"""A thread that libarrow starts when it is loaded, whose locks jemalloc takes for the time of a fork."""


def main() -> None:
    """Serve requests until the driver closes the connection or ends."""
    process_worker.end_with(int(sys.argv[2]), signal.SIGTERM)
    pa.array([])  # which imports pandas if there is one
    gc.collect()
    gc.freeze()  # the workers share this memory as long as nobody writes to it
    _Server(Channel(socket.socket(fileno=int(sys.argv[1])))).serve()
    os._exit(0)


class _Server:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._workers: set[int] = set()
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # by the driver's thread
        self._selector = selectors.PollSelector()
        self._selector.register(self._channel, selectors.EVENT_READ, self._obey)
        self._selector.register(self._signals, selectors.EVENT_READ, self._reap)

    def serve(self) -> None:
        """Fork and kill as the driver says, and tell it which workers have exited."""
        try:
            with suppress(EOFError, ConnectionError):
                while True:
                    for key, _ in self._selector.select():
                        key.data()
        finally:
            for pid in self._workers:
                _kill(pid)

    def _obey(self) -> None:
        request, files = self._channel.receive()
        match request:
            case Fork():
                self._start(request, files)
            case Kill(pid) if pid in self._workers:
                _kill(pid)

    def _reap(self) -> None:
        if signal.SIGTERM in self._signals.recv(4096):
            raise EOFError("the driver has ended")
        for pid in list(self._workers):
            exited, status = os.waitpid(pid, os.WNOHANG)
            if exited:
                self._workers.remove(pid)
                _kill_group(pid)  # what it has started
                self._channel.send(Exited(pid, os.waitstatus_to_exitcode(status)))

    def _start(self, request: Fork, files: Sequence[int]) -> None:
        try:
            pid = self._fork(request, *files) if _can_fork() else self._spawn(request, *files)
        except OSError as error:
            self._channel.send(NotForked(error.errno or 0))
        else:
            self._workers.add(pid)
            self._channel.send(Forked(pid))
        for file in files:
            os.close(file)

    def _fork(self, request: Fork, channel: int, output: int) -> int:
        server = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about the allocator's thread
            pid = os.fork()
        if not pid:
            self._become_worker(request, channel, output, server)
        return pid

    def _become_worker(self, request: Fork, channel: int, output: int, server: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
            for end in (self._channel, self._signals, self._wakeup):
                end.close()
            for standard in (1, 2):
                os.dup2(output, standard)
            os.close(output)
            os.environ.clear()
            os.environ.update(request.environment)
            _use_threads(request.environment)
            np.random.seed()  # otherwise a rule that draws from it would draw the same in all workers
            process_worker.work(channel, server, request.stage)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)

    def _spawn(self, request: Fork, channel: int, output: int) -> int:
        os.set_inheritable(channel, True)
        command = [sys.executable, "-P", "-m", process_worker.__name__, str(channel), str(os.getpid()), request.stage]
        outputs = [(os.POSIX_SPAWN_DUP2, output, standard) for standard in (1, 2)]
        return os.posix_spawn(
            sys.executable, command, request.environment, file_actions=outputs, setsigmask=self._blocked
        )


def _can_fork() -> bool:
    if sys.platform != "linux":
        return False
    try:
        threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    except OSError:  # one has just ended
        return False
    return len(threads) - threads.count(_ALLOCATOR) == 1


def _use_threads(environment: Mapping[str, str]) -> None:
    """Give numpy as many threads as the environment says, which it has read in the server."""
    threads = environment.get("OPENBLAS_NUM_THREADS") or environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 1:
        threadpool_limits(int(threads), "blas")


def _kill(pid: int) -> None:
    """Kill a worker and what it has started."""
    _kill_group(pid)
    with suppress(ProcessLookupError):  # in its first moments, a worker has no group of its own
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
