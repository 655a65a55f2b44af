"""Turns and limits inside one event loop: slots per host, a clock that can be stopped, a budget of bytes.

None of these is safe to use from a second thread.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class HostSlots:
    """At most `per_host` holders per host and `total` over all. Hosts that nobody uses take no memory."""

    def __init__(self, per_host: int, total: int) -> None:
        self._per_host = per_host
        self._total = asyncio.Semaphore(total)
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def would_wait(self, host: str) -> bool:
        """True if `hold` could not enter at once."""
        known = self._hosts.get(host)
        return self._total.locked() or (known is not None and known[0].locked())

    @asynccontextmanager
    async def hold(self, host: str) -> AsyncIterator[None]:
        """Wait for a slot of the host, then for one of all: a slow host's queue never fills the total.

        Both are always taken in this order and given back together, so no two holders wait for each other.
        """
        semaphore, users = self._hosts.get(host) or (asyncio.Semaphore(self._per_host), 0)
        self._hosts[host] = semaphore, users + 1
        try:
            async with semaphore, self._total:
                yield
        finally:
            semaphore, users = self._hosts[host]
            if users == 1:
                del self._hosts[host]
            else:
                self._hosts[host] = semaphore, users - 1


class Deadline:
    """Like `asyncio.timeout`, but the clock stands still outside `running` stretches: `pause()`, `resume()`."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._resumed_at: float | None = None
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)  # turns the cancellation into TimeoutError

    @property
    def left(self) -> float:
        """Seconds until the deadline if the clock ran on."""
        running = 0.0 if self._resumed_at is None else self._loop.time() - self._resumed_at
        return self._left - running

    @property
    def expired(self) -> bool:
        """True once the time was used up and the block was interrupted for it."""
        return self._timeout.expired()

    def pause(self) -> None:
        """Stop the clock."""
        self._left, self._resumed_at = self.left, None
        self._timeout.reschedule(None)

    def resume(self) -> None:
        """Let the clock run on."""
        self._resumed_at = self._loop.time()
        self._timeout.reschedule(self._resumed_at + max(self._left, 0.0))


class ByteBudget:
    """Bytes in memory that wait for somebody: who starts new work waits until there is room again.

    A soft limit: work in progress may still add to it, so the overshoot is what was started before it was full.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_full(self) -> bool:
        """True while `wait_for_room` would wait."""
        return not self._room.is_set()

    async def wait_for_room(self) -> None:
        """Return as soon as fewer bytes than the limit are held."""
        await self._room.wait()

    def take(self, num_bytes: int) -> None:
        """Count bytes in. Never waits."""
        self._held += num_bytes
        if self._held >= self._limit:
            self._room.clear()

    def give_back(self, num_bytes: int) -> None:
        """Count bytes out."""
        self._held -= num_bytes
        if self._held < self._limit:
            self._room.set()
