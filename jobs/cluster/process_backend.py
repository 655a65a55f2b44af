"""Workers on this machine, without Ray: each worker is a process, and each payload is memory that they share."""

import errno
import os
import selectors
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeAlias

from pairmill.jobs.cluster.fork_server import ForkServer, WorkerProcess
from pairmill.jobs.cluster.live import INTERVAL_S, LiveWorkers
from pairmill.jobs.cluster.pools import Pool
from pairmill.jobs.cluster.process_messages import Count, Counted, Ended, Open, Ready, Run
from pairmill.jobs.cluster.shared_bytes import SharedBytes
from pairmill.jobs.cluster.worker_backend import Report, WorkerDied
from pairmill.pipeline.common.faults import LocalFault
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.stages.pipelines import Pipeline
from pairmill.pipeline.stages.stage import StageName

_EXIT_S = 5.0
"""Time that a process has to disappear after it closed its connection or was killed."""

_LAST_WORDS_BYTES, _LISTEN_BYTES = 4_096, 1 << 16

_START = 0
"""The call that stands for a worker's start."""


@dataclass(eq=False)
class _Result:
    """What a call will return. The start of a worker, which returns no data, counts as a call."""

    data: SharedBytes | None = None


@dataclass(eq=False)
class _Process:
    process: WorkerProcess
    gpus: Mapping[str, float]
    """Visible GPUs, and the share of each that the worker takes."""
    results: dict[int, _Result] = field(default_factory=dict)
    """Call -> its result, for all calls in progress."""
    asked: "list[Future[WorkCounts]]" = field(default_factory=list)
    died: WorkerDied | None = None
    last_words: bytes = b""
    """The end of what it has written to stdout and stderr."""


_Token: TypeAlias = tuple[_Process, int]
"""A worker and its call."""


class ProcessBackend:
    """A `WorkerBackend` whose workers are processes on this machine, none of which outlives the driver."""

    def __init__(
        self, pipeline: Pipeline, live: LiveWorkers, server: ForkServer, modules: Path | None, gpus: Sequence[str]
    ) -> None:
        """`server`: starts the processes. `modules`: a folder with the user's rule modules. `gpus`: the values of
        CUDA_VISIBLE_DEVICES to share out."""
        self._specs = {spec.name: spec for spec in pipeline.stages}
        self._live, self._server, self._modules = live, server, modules
        self._gpus = dict.fromkeys(gpus, 0.0)
        self._selector = selectors.PollSelector()  # which has no file of its own to close
        self._done: dict[_Token, Report | WorkerDied] = {}
        self._new: list[_Token] = []
        self._calls = count(_START + 1)
        self._workers: list[_Process] = []

    def start(self, name: StageName, pool: Pool) -> tuple[_Process, _Token]:
        """Start a process for a stage. Returns it, and a token that is done once the stage is built."""
        gpus = self._free_gpus(pool.gpus)
        threads = str(max(1, int(pool.cpus)))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with _needing_resources():
            worker = _Process(self._server.fork(name, environment), gpus)
        self._workers.append(worker)
        for gpu, share in gpus.items():
            self._gpus[gpu] += share
        self._selector.register(worker.process.channel, selectors.EVENT_READ, (worker, self._receive))
        self._selector.register(worker.process.output, selectors.EVENT_READ, (worker, self._listen))
        self._live.add(worker, name, lambda: self._ask(worker))
        self._send(worker, _START, Open(self._specs[name], pool.calls, self._modules))
        return worker, (worker, _START)

    def _free_gpus(self, share: float) -> dict[str, float]:
        """The least used GPUs, and the share of each to take: part of one, or one or more as a whole."""
        least_used = sorted(self._gpus, key=self._gpus.__getitem__)
        return dict.fromkeys(least_used[: max(1, round(share))], min(share, 1.0)) if share else {}

    def call(self, worker: _Process, payloads: Sequence[object]) -> tuple[_Token, _Result]:
        """Send a shard's payloads: buffers, or results of earlier calls. Returns a token and the future result."""
        call = next(self._calls)
        with _needing_resources():
            shared = [payload.data if isinstance(payload, _Result) else SharedBytes.of(payload) for payload in payloads]
        result = self._send(worker, call, Run(call), [data.file for data in shared if data is not None])
        return (worker, call), result

    def _send(self, worker: _Process, call: int, message: object, files: Sequence[int] = ()) -> _Result:
        result = worker.results[call] = _Result()
        if worker.died is not None:  # while it was idle, so nobody knows yet
            self._finish(worker, call, worker.died)
            return result
        with _needing_resources(), suppress(ConnectionError):  # it has just died: `wait` finds its connection closed
            worker.process.channel.send(message, files)
        return result

    def _ask(self, worker: _Process) -> "Future[WorkCounts]":
        future: Future[WorkCounts] = Future()
        worker.asked.append(future)
        with _needing_resources(), suppress(ConnectionError):
            worker.process.channel.send(Count())
        return future

    def wait(self, timeout_s: float) -> list[_Token]:
        """The tokens that are done. Waits for the first one up to `timeout_s`, but never more than a second."""
        self._live.tick()
        if not self._new:
            # Those that end from now on may still have sent a message.
            dead = [worker for worker in self._workers if worker.process.poll() is not None]
            events = [key for key, _ in self._selector.select(0 if dead else min(timeout_s, INTERVAL_S))]
            for key in events:
                worker, handle = key.data
                if worker.died is None:
                    handle(worker)
            for worker in dead:
                # Its forks can keep the connection open.
                if all(key.fileobj is not worker.process.channel for key in events):
                    self._end(worker, WorkerDied(_how_it_ended(worker)))
        new, self._new = self._new, []
        return new

    def _receive(self, worker: _Process) -> None:
        try:
            with _needing_resources():
                message, files = worker.process.channel.receive()
        except EOFError:
            self._end(worker, WorkerDied(_how_it_ended(worker)))
            return
        match message:
            case Ready(report):
                self._finish(worker, _START, report)
            case Ended(call, report):
                worker.results[call].data = SharedBytes(files[0]) if files else None
                self._finish(worker, call, report)
            case Counted(counts):
                worker.asked.pop(0).set_result(counts)

    def _listen(self, worker: _Process) -> None:
        """Keep the end of what a worker writes. The rest is lost: libraries complain about strangers' pictures."""
        written = worker.process.output.read(_LISTEN_BYTES)
        if written == b"":  # closed
            self._selector.unregister(worker.process.output)
        worker.last_words = (worker.last_words + (written or b""))[-_LAST_WORDS_BYTES:]

    def _finish(self, worker: _Process, call: int, outcome: Report | WorkerDied) -> None:
        del worker.results[call]
        self._done[worker, call] = outcome
        self._new.append((worker, call))

    def _end(self, worker: _Process, died: WorkerDied) -> None:
        """Kill what is left of a worker, and forget it. Its calls are done: with this error."""
        if worker.died is not None:
            return
        worker.died = died
        self._workers.remove(worker)
        worker.process.kill()
        for end in (worker.process.channel, worker.process.output):
            with suppress(KeyError):  # the output may be closed already
                self._selector.unregister(end)
        worker.process.close()
        self._live.remove(worker)
        for gpu, share in worker.gpus.items():
            self._gpus[gpu] -= share
        for call in list(worker.results):
            self._finish(worker, call, died)

    def result(self, token: _Token) -> Report:
        """The report of a call. Raises WorkerDied if the worker died before it had one."""
        outcome = self._done.pop(token)
        if isinstance(outcome, WorkerDied):
            raise outcome
        return outcome

    def stop(self, worker: _Process) -> None:
        """Kill a worker, and the processes that it started, immediately."""
        self._end(worker, WorkerDied("stopped"))
        worker.process.wait(_EXIT_S)

    def close(self) -> None:
        """Kill all workers, and the processes that they started."""
        workers = list(self._workers)
        for worker in workers:
            self._end(worker, WorkerDied("stopped"))
        deadline = time.monotonic() + _EXIT_S
        for worker in workers:
            worker.process.wait(deadline - time.monotonic())


@contextmanager
def _needing_resources() -> Iterator[None]:
    """Raise LocalFault if this machine cannot do what the block does, for example for lack of memory or files."""
    try:
        yield
    except OSError as error:
        hint = "; see `ulimit -n`" if error.errno == errno.EMFILE else ""
        raise LocalFault(f"this machine cannot start another worker or move another shard: {error}{hint}") from error


def _how_it_ended(worker: _Process) -> str:
    status = worker.process.wait(_EXIT_S)
    if status is None:
        return "closed its connection"
    lines = (
        (worker.last_words + (worker.process.output.read(_LISTEN_BYTES) or b"")).decode(errors="replace").split("\n")
    )
    words = next(filter(None, map(clean_text, reversed(lines))), None)
    return f"{_describe(status)}{f'; it last wrote: {words}' if words else ''}"


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    return f"killed by {name}{': is there enough memory?' if status == -signal.SIGKILL else ''}"
