"""One child process that may die or hang, for work that killed a worker: what it dies of costs one row."""

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pairmill.pipeline.common.faults import LocalFault, local_fault
from pairmill.schemas.errors import FailureKind, PairmillError

_PARENT_CHECK_S = 1.0


class ChildDied(PairmillError, RuntimeError):
    """The child died, or gave no answer in time, on this call; the next call has a new child."""

    kind = FailureKind.SHARD


class Child:
    """Calls functions in a process of its own, one at a time. Safe in threads."""

    def __init__(self, start: Callable[..., None], *arguments: Any) -> None:
        """`start(*arguments)` runs in each new child before its first call."""
        self._start = (start, *arguments)
        self._one_at_a_time = threading.Lock()  # a death would take a neighbor's call along
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """The function's result. Raises RuntimeError with what it raised; ChildDied; LocalFault, also its own."""
        with self._one_at_a_time:
            pool = self._pool = self._pool or self._open()
            try:
                result, error = pool.submit(_guarded, timeout_s, function, *arguments).result(timeout_s)
            except BrokenProcessPool:
                self._kill()
                raise ChildDied("its process died") from None
            except TimeoutError:
                self._kill()
                raise ChildDied(f"no answer within {timeout_s:g} s") from None
        if error is not None:
            raise error
        return result

    def _open(self) -> ProcessPoolExecutor:
        """Start a child; its start is not held against the call."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(), *self._start))
        try:
            pool.submit(int).result()
        except (OSError, BrokenProcessPool) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise LocalFault(f"no child process can be started: {error}") from error
        return pool

    def close(self) -> None:
        """End the child."""
        with self._one_at_a_time:
            self._kill()

    def _kill(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in (pool._processes or {}).values():
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _guarded(timeout_s: float, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """(result, error): an error of the function must not look like one of the child's.

    A call that hangs in C code, where no thread of Python runs, ends the child some time after its parent gave it up.
    """
    faulthandler.dump_traceback_later(2 * timeout_s, exit=True)
    try:
        return function(*arguments), None
    except BaseException as error:  # SystemExit too; by its words, as not every exception travels
        return None, local_fault(error) or RuntimeError(f"{type(error).__name__}: {error}")
    finally:
        faulthandler.cancel_dump_traceback_later()


def _begin(parent: int, start: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    start(*arguments)


def _end_with(parent: int) -> None:
    """A worker that is killed cannot close its child: the child looks after that itself."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)
