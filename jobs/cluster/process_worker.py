"""The main program of a worker process on this machine.

    python -P -m pairmill.jobs.cluster.process_worker FD SERVER STAGE

FD is its end of a `Channel`, SERVER the process that started it. STAGE is only there for people who list processes.
Usually, `fork_server_program` calls `work` in a fork of itself instead.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pairmill.jobs.cluster.channel import Channel
from pairmill.jobs.cluster.metrics import NoMetrics, StageMetrics
from pairmill.jobs.cluster.process_messages import Count, Counted, Ended, Open, Ready, Run
from pairmill.jobs.cluster.shared_bytes import SharedBytes
from pairmill.jobs.cluster.stage_worker import StageWorker
from pairmill.jobs.cluster.worker_backend import Report
from pairmill.pipeline.common.faults import Failure

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_LEAST_OOM_SCORE = 500
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def main() -> None:
    """Work with what the command line says."""
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])


def work(channel: int, server: int, stage: str) -> NoReturn:
    """Serve requests until the driver closes the connection, or the server ends. `channel`: a descriptor."""
    os.setsid()  # a process group, so that what a rule starts can be killed with the worker
    end_with(server, signal.SIGKILL)
    _name(stage)
    _end_before_the_driver()
    with suppress(EOFError):
        _serve(Channel(socket.socket(fileno=channel)))
    os._exit(0)  # without waiting for shards that nobody is interested in anymore


def end_with(parent: int, number: signal.Signals) -> None:
    """Have Linux send this process a signal when the parent's thread ends, even if a fork of the driver keeps the
    connection open. SIGKILL ends this process even if it is busy in C code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(0)


def _name(stage: str) -> None:
    """Call this process what it does, for people who list processes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, stage.encode())


def _end_before_the_driver() -> None:
    """If memory runs out, have Linux kill workers rather than the driver."""
    with suppress(OSError, ValueError):
        _OOM_SCORE.write_text(str(max(_LEAST_OOM_SCORE, int(_OOM_SCORE.read_text()))))


def _serve(channel: Channel) -> None:
    opening, _ = channel.receive()
    assert isinstance(opening, Open)
    if opening.modules:
        os.chdir(opening.modules)
        sys.path.append(str(opening.modules))  # last, so that it shadows nothing
    else:
        _hide_wandb()
    worker = StageWorker(opening.spec, "here", StageMetrics(NoMetrics, opening.spec.name))
    channel.send(Ready(worker.ready()))
    threads = ThreadPoolExecutor(opening.calls)
    while True:
        request, files = channel.receive()
        match request:
            case Run(call):
                threads.submit(_run, worker, channel, call, files)
            case Count():
                channel.send(Counted(worker.counts()))


def _hide_wandb() -> None:
    """Make `import wandb` fail. timm, which open_clip needs, imports it if it is installed. That takes up to two
    seconds, and its temporary folders remain when this process ends. Custom rules may need it."""
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]


def _run(worker: StageWorker, channel: Channel, call: int, files: Sequence[int]) -> None:
    try:
        report, result = worker.run(*[SharedBytes(file).mapped() for file in files])
        shared = None if result is None else SharedBytes.of(result)
    except BaseException as error:  # such as a panic of Rust code: without an answer, the driver would wait forever
        report, shared = Report(failure=Failure.of(error)), None
    try:
        channel.send(Ended(call, report), [] if shared is None else [shared.file])
    except BaseException:
        os._exit(1)


if __name__ == "__main__":
    main()
