"""Stops requests to hosts that never answer: after several timeouts in a row, requests fail immediately for a while.

Otherwise a shard of 4,096 rows from one dead host, eight at a time, would take hours.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

_OPEN_S = 60.0
"""How long a host is left alone before it is tried again."""

_MAX_HOSTS = 20_000


_HTTP_ERRORS = frozenset({Status.HTTP_4XX, Status.HTTP_429, Status.HTTP_5XX, Status.HTTP_OTHER, Status.OPTED_OUT})


@dataclass(slots=True)
class _Host:
    timeouts: int = 0
    """Number of timeouts in a row."""
    open_until: float = 0.0
    """On the clock of time.monotonic()."""
    in_flight: int = 0
    users: int = 0
    """Requests that are running or waiting."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class CircuitBreaker:
    """Counts timeouts in a row per host. A complete response resets the count: a body, a redirect or an error page.

    Anything else (a broken response, a lost connection) changes nothing; otherwise a host that mixes such failures
    with timeouts would block its requests for hours. Once a host has timed out, its concurrent requests are limited to
    the number of timeouts left before the circuit opens.

    `max_timeouts`: this many timeouts in a row open the circuit. `min_wait_s`: a canceled request for which the URL's
    clock ran less than this does not count, because other hosts took most of the URL's time. A request during which
    this machine stalled does not count either.
    """

    def __init__(self, max_timeouts: int, min_wait_s: float, stalled_since: Callable[[float], bool]) -> None:
        self._max_timeouts = max_timeouts
        self._min_wait_s = min_wait_s
        self._stalled_since = stalled_since
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    @asynccontextmanager
    async def track(self, name: str, deadline: Deadline) -> AsyncIterator[None]:
        """Wrap one request. Raises FetchError (timeout) immediately if the host's circuit is open."""
        host = self._hosts.setdefault(name, _Host())
        host.users += 1
        try:
            await self._wait_for_a_chance(name, host, deadline)
            host.in_flight += 1
            try:
                async with self._counting(host, deadline):
                    yield
            finally:
                host.in_flight -= 1
                host.changed.set()
                host.changed = asyncio.Event()
        finally:
            host.users -= 1
            self._forget(name, host)

    async def _wait_for_a_chance(self, name: str, host: _Host, deadline: Deadline) -> None:
        while True:
            if host.timeouts >= self._max_timeouts and time.monotonic() < host.open_until:
                detail = f"not requested: the last {host.timeouts} requests to {name} timed out"
                raise FetchError(Status.TIMEOUT, detail, retry_after_s=math.inf)
            has_chance = not host.timeouts or host.timeouts + host.in_flight < self._max_timeouts
            if has_chance or not host.in_flight:
                return
            with deadline.paused():
                await host.changed.wait()

    @asynccontextmanager
    async def _counting(self, host: _Host, deadline: Deadline) -> AsyncIterator[None]:
        started, remaining_s = time.monotonic(), deadline.remaining_s
        try:
            yield
        except asyncio.CancelledError:  # the URL's deadline
            if remaining_s - deadline.remaining_s >= self._min_wait_s and not self._stalled_since(started):
                self._count_timeout(host)
            raise
        except FetchError as failure:
            if failure.status is Status.TIMEOUT and not self._stalled_since(started):
                self._count_timeout(host)
            elif failure.status in _HTTP_ERRORS:
                host.timeouts = 0
            raise
        else:
            host.timeouts = 0

    def _count_timeout(self, host: _Host) -> None:
        host.timeouts += 1
        host.open_until = time.monotonic() + _OPEN_S

    def _forget(self, name: str, host: _Host) -> None:
        """Drop the host if it is idle and has no timeouts. If too many hosts are known, drop the oldest if idle."""
        if not host.users and not host.timeouts:
            self._hosts.pop(name, None)
            return
        self._hosts.move_to_end(name)
        if len(self._hosts) > _MAX_HOSTS:
            oldest, state = next(iter(self._hosts.items()))
            if not state.users:
                del self._hosts[oldest]
