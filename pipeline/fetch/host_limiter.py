"""Limits how many requests run at the same time, per host and in total. For one event loop, not thread-safe."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Host:
    semaphore: asyncio.Semaphore
    users: int = 0
    """Requests that are running or waiting."""
    next_start_at: float = 0.0
    """On the event loop's clock."""


class HostLimiter:
    """Allows `per_host` requests at a time per host and `total` overall, with `interval_s` between starts at one host.

    Hosts without requests take no memory.
    """

    def __init__(self, per_host: int, total: int, interval_s: float = 0.0) -> None:
        self._per_host = per_host
        self._total = asyncio.Semaphore(total)
        self.running = 0
        """Number of requests that hold a slot."""
        self._interval_s = interval_s
        self._hosts: dict[str, _Host] = {}

    def would_wait(self, host: str) -> bool:
        """True if `acquire` would have to wait."""
        known = self._hosts.get(host)
        if known is None:
            return self._total.locked()
        must_space = known.next_start_at > asyncio.get_running_loop().time()
        return self._total.locked() or known.semaphore.locked() or must_space

    @asynccontextmanager
    async def acquire(self, host: str) -> AsyncIterator[None]:
        """Wait until a request to the host may start; it counts as running until the `async with` block ends.

        The host's semaphore is acquired before the total one, so a slow host's queue never exhausts the total. All
        requests acquire them in this order, so no two wait for each other.
        """
        known = self._hosts.setdefault(host, _Host(asyncio.Semaphore(self._per_host)))
        known.users += 1
        try:
            async with known.semaphore:
                await self._wait_for_start(known)
                async with self._total:
                    self.running += 1
                    try:
                        yield
                    finally:
                        self.running -= 1
        finally:
            remaining_s = known.next_start_at - asyncio.get_running_loop().time()
            if remaining_s > 0:  # remember the host until its next start is due
                asyncio.get_running_loop().call_later(remaining_s, self._leave, host, known)
            else:
                self._leave(host, known)

    async def _wait_for_start(self, host: _Host) -> None:
        if self._interval_s:
            now = asyncio.get_running_loop().time()
            start_at = max(now, host.next_start_at)
            host.next_start_at = start_at + self._interval_s
            if start_at > now:  # otherwise `acquire` must not let other tasks run, or `would_wait` may be wrong
                await asyncio.sleep(start_at - now)

    def _leave(self, host: str, known: _Host) -> None:
        known.users -= 1
        if not known.users:
            del self._hosts[host]
