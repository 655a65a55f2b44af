"""Stop requests to hosts that never answer: after several timeouts in a row, they fail immediately for a while.

Otherwise a shard of 4,096 rows from one dead host would take hours, eight at a time.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

_OPEN_S = 60.0
"""How long a host is left alone before it is tried again."""

_MAX_HOSTS = 20_000


_HTTP_ERRORS = frozenset({Status.HTTP_4XX, Status.HTTP_429, Status.HTTP_5XX, Status.HTTP_OTHER, Status.OPTED_OUT})


class CircuitBreaker:
    """Counts timeouts in a row per host. A sound response resets the count: a body, a redirect, an error page.

    Anything else (a broken response, a lost connection) changes nothing, or a host that mixes it with silence would
    hold its requests for hours.

    `max_timeouts`: so many in a row open the circuit. `min_wait_s`: a request that had less time does not count, as
    other hosts used up the URL's time; neither does one during which this machine stood still.
    """

    def __init__(self, max_timeouts: int, min_wait_s: float, stalled_since: Callable[[float], bool]) -> None:
        self._stalled_since = stalled_since
        self._max_timeouts = max_timeouts
        self._min_wait_s = min_wait_s
        self._timeouts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # host -> (in a row, open until)

    @contextmanager
    def track(self, host: str) -> Iterator[None]:
        """Wraps one request. Raises FetchError (timeout) immediately if the host's circuit is open."""
        self._require_closed(host)
        started = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:  # the URL's deadline
            if time.monotonic() - started >= self._min_wait_s and not self._stalled_since(started):
                self._count_timeout(host)
            raise
        except FetchError as failure:
            if failure.status is Status.TIMEOUT and not self._stalled_since(started):
                self._count_timeout(host)
            elif failure.status in _HTTP_ERRORS:
                self._timeouts.pop(host, None)
            raise
        else:
            self._timeouts.pop(host, None)

    def _require_closed(self, host: str) -> None:
        timeouts, open_until = self._timeouts.get(host, (0, 0.0))
        if timeouts >= self._max_timeouts and asyncio.get_running_loop().time() < open_until:
            detail = f"not requested: the last {timeouts} requests to {host} timed out"
            raise FetchError(Status.TIMEOUT, detail, retry_after_s=math.inf)

    def _count_timeout(self, host: str) -> None:
        timeouts, _ = self._timeouts.pop(host, (0, 0.0))
        self._timeouts[host] = timeouts + 1, asyncio.get_running_loop().time() + _OPEN_S
        if len(self._timeouts) > _MAX_HOSTS:
            self._timeouts.popitem(last=False)
