"""Turns and limits inside one event loop: slots per host, a clock that can be stopped, a budget of bytes.

None of these is safe to use from a second thread.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType


@dataclass(slots=True)
class _Host:
    """The slots of one host, how many hold or want one, and when the next may start (the loop's clock)."""

    slots: asyncio.Semaphore
    users: int = 0
    next_start: float = 0.0


class HostSlots:
    """At most `per_host` holders per host and `total` over all, and `interval_s` between two starts at one host.

    Hosts that nobody uses take no memory.
    """

    def __init__(self, per_host: int, total: int, interval_s: float = 0.0) -> None:
        self._per_host = per_host
        self._total = asyncio.Semaphore(total)
        self._interval_s = interval_s
        self._hosts: dict[str, _Host] = {}

    def would_wait(self, host: str) -> bool:
        """True if `hold` could not enter at once."""
        known = self._hosts.get(host)
        if known is None:
            return self._total.locked()
        return self._total.locked() or known.slots.locked() or known.next_start > asyncio.get_running_loop().time()

    @asynccontextmanager
    async def hold(self, host: str) -> AsyncIterator[None]:
        """Wait for a slot of the host, then for one of all: a slow host's queue never fills the total.

        Both are always taken in this order and given back together, so no two holders wait for each other.
        """
        known = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._per_host)))
        known.users += 1
        try:
            async with known.slots:
                await self._wait_for_start(known)
                async with self._total:
                    yield
        finally:
            left_s = known.next_start - asyncio.get_running_loop().time()
            if left_s > 0:  # remembered until the next start is due, whoever comes
                asyncio.get_running_loop().call_later(left_s, self._leave, host, known)
            else:
                self._leave(host, known)

    async def _wait_for_start(self, host: _Host) -> None:
        if self._interval_s:
            now = asyncio.get_running_loop().time()
            start = max(now, host.next_start)
            host.next_start = start + self._interval_s
            await asyncio.sleep(start - now)

    def _leave(self, host: str, known: _Host) -> None:
        known.users -= 1
        if not known.users:
            del self._hosts[host]


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
    """Bytes in memory, arriving or waiting for somebody: who starts new work waits until there is room again.

    What was started before may add to it up to twice the limit. Beyond that one at a time goes on, so that there is
    always one that ends, and the overshoot is that one.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()
        self._goes_on: Share | None = None
        self._changed = asyncio.Event()
        self._waiting = 0

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
        if self._waiting and self._held < 2 * self._limit:
            self._wake()

    async def wait_for_turn(self, share: "Share") -> None:
        """Return once less than twice the limit is held, or nobody else goes on beyond it."""
        while self._held >= 2 * self._limit and self._goes_on not in (None, share):
            self._waiting += 1
            try:
                await self._changed.wait()
            finally:
                self._waiting -= 1
        if self._held >= 2 * self._limit:
            self._goes_on = share

    def end_turn(self, share: "Share") -> None:
        """The next one may go on."""
        if self._goes_on is share:
            self._goes_on = None
            self._wake()

    def _wake(self) -> None:
        self._changed.set()  # wakes those who wait now
        self._changed = asyncio.Event()


class Share:
    """What one download holds of a ByteBudget. Its clock stands still while it waits for its turn."""

    def __init__(self, budget: ByteBudget, deadline: Deadline) -> None:
        self._budget = budget
        self._deadline = deadline
        self._held = 0

    async def hold(self, num_bytes: int) -> None:
        """Hold so many bytes from now on; call it before there are more."""
        if num_bytes > self._held:
            if self._budget.is_full:
                self._deadline.pause()
                await self._budget.wait_for_turn(self)
                self._deadline.resume()
            self._budget.take(num_bytes - self._held)
        else:
            self._budget.give_back(self._held - num_bytes)
        self._held = num_bytes

    def let_go(self) -> None:
        """Hold nothing any more."""
        self.hand_over()
        self._budget.give_back(self._held)
        self._held = 0

    def hand_over(self) -> None:
        """What is held stays counted; whoever gets the bytes gives them back."""
        self._budget.end_turn(self)
