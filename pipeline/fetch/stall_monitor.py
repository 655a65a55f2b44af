"""Detects stalls of the event loop: a stopped or starved process, or a paused machine.

Deadlines that pass during a stall say nothing about a server, whose bytes may have been waiting in the socket.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_BEAT_S = 0.25
_STALL_S = 1.0


class StallMonitor:
    """Measures stalls with a timer on the running event loop. Its methods notice a stall even before the timer does."""

    def __init__(self) -> None:
        self._last_beat = self._last_stall_end = time.monotonic()
        self._total_s = 0.0
        self._task = asyncio.create_task(self._beat())

    def stalled_since(self, started: float) -> bool:
        """Whether the loop has stalled for more than a second at any time after `started` (time.monotonic())."""
        self._notice()
        return self._last_stall_end > started

    @property
    def total_s(self) -> float:
        """Total seconds of all stalls."""
        self._notice()
        return self._total_s

    @property
    def last_stall_end(self) -> float:
        """End of the last stall, on the clock of time.monotonic(); the monitor's creation if there was none."""
        self._notice()
        return self._last_stall_end

    async def repeat_if_stalled(self, attempt: Callable[[], Awaitable[T]], failures: type[Exception]) -> T:
        """The result of `attempt()`. A failed attempt is repeated if the loop stalled during it."""
        while True:
            started = time.monotonic()
            try:
                return await attempt()
            except failures:
                if not self.stalled_since(started):
                    raise

    def close(self) -> None:
        """Stop the timer."""
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self._notice()

    def _notice(self) -> None:
        now = time.monotonic()
        if now - self._last_beat > _BEAT_S + _STALL_S:
            self._last_stall_end = now
            self._total_s += now - self._last_beat
        self._last_beat = now
