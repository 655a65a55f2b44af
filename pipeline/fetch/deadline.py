"""Provides a timeout whose clock can be paused: waiting for our own limits must not consume a URL's time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pairmill.pipeline.fetch.stall_monitor import StallMonitor


class Deadline:
    """Like `asyncio.timeout`, but its clock stops from `pause()` to `resume()`. For one event loop, not thread-safe.

    `stalls`: the loop's monitor; time during which the loop was stalled does not count either.
    """

    def __init__(self, timeout_s: float, stalls: StallMonitor | None = None) -> None:
        self._remaining_s = timeout_s
        self._stalls = stalls
        self._resumed_at: float | None = None
        self._stalled_before_s = 0.0
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel_timer()
        await self._timeout.__aexit__(kind, error, trace)  # turns the cancellation into TimeoutError

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline if the clock is not paused again."""
        if self._resumed_at is None:
            return self._remaining_s
        return self._remaining_s - (self._loop.time() - self._resumed_at) + self._stalled_s() - self._stalled_before_s

    @property
    def expired(self) -> bool:
        """True once the time is up and the `async with` block has been interrupted."""
        return self._timeout.expired()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock during the `with` block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def pause(self) -> None:
        """Stop the clock."""
        self._remaining_s, self._resumed_at = self.remaining_s, None
        self._cancel_timer()

    def resume(self) -> None:
        """Start the clock again."""
        self._resumed_at, self._stalled_before_s = self._loop.time(), self._stalled_s()
        self._set_timer()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(max(self.remaining_s, 0.0), self._check)

    def _check(self) -> None:
        if self.remaining_s > 0.001:  # the loop has stalled, or its clock is coarse
            self._set_timer()
        else:
            self._timeout.reschedule(self._loop.time())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stalled_s(self) -> float:
        return 0.0 if self._stalls is None else self._stalls.total_s
