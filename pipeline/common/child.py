"""Runs work in a child process if it has already killed a worker. If the child dies or hangs, only one row is lost."""

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
from pairmill.pipeline.common.text import message_of
from pairmill.schemas.errors import FailureKind, PairmillError

_PARENT_CHECK_S = 1.0


class ChildDied(PairmillError, RuntimeError):
    """The child died or timed out during this call. The next call starts a new child."""

    kind = FailureKind.SHARD


class Child:
    """Calls functions in a separate process, one at a time. Thread-safe."""

    def __init__(self, start: Callable[..., None], *arguments: Any) -> None:
        """Each new child runs `start(*arguments)` before its first call."""
        self._start = (start, *arguments)
        self._one_at_a_time = threading.Lock()  # so that the death of a child fails only one call
        self._pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """The function's result. Raises RuntimeError if the function raises, LocalFault if this machine is at fault,
        and ChildDied if the child dies or hangs."""
        with self._one_at_a_time:
            pool = self._pool = self._pool or self._open()
            try:
                result, error = pool.submit(_call_guarded, timeout_s, function, *arguments).result(timeout_s)
            except BrokenProcessPool:
                self._kill()
                raise ChildDied("its process died") from None
            except TimeoutError:
                self._kill()
                raise ChildDied(f"no result within {timeout_s:g} s") from None
        if error is not None:
            raise error
        return result

    def _open(self) -> ProcessPoolExecutor:
        """Start a child. This does not count toward the call's time limit."""
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(os.getpid(), *self._start))
        try:
            pool.submit(int).result()
        except (OSError, BrokenProcessPool) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise LocalFault(f"cannot start a child process: {error}") from error
        return pool

    def close(self) -> None:
        """Stop the child."""
        with self._one_at_a_time:
            self._kill()

    def _kill(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in (pool._processes or {}).values():
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


def _call_guarded(timeout_s: float, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Return (result, error), so that the function's errors cannot be mistaken for those of the pool.

    If a call hangs in C code and blocks all Python threads, the child exits some time after its parent gives up.
    """
    faulthandler.dump_traceback_later(2 * timeout_s, exit=True)
    try:
        return function(*arguments), None
    except BaseException as error:  # SystemExit too. Sent as text, because not every exception can be pickled.
        return None, local_fault(error) or RuntimeError(f"{type(error).__name__}: {message_of(error)}")
    finally:
        faulthandler.cancel_dump_traceback_later()


def _begin(parent: int, start: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    start(*arguments)


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent exits. A killed worker cannot stop its child, so the child watches its parent."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)
