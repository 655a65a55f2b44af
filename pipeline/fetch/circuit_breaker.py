"""Hosts that let every request run out of time: after so many in a row, nobody waits for them for a while.

A shard of 4,096 rows of one dead host would otherwise take hours, eight at a time.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from pairmill.pipeline.fetch.body import FetchError
from pairmill.schemas.status import Status

_QUIET_S = 60.0
"""How long a silent host is left alone before it gets another chance."""

_MAX_HOSTS = 20_000


class SilentHosts:
    """Counts requests in a row that ran out of time, per host. One answer of any kind starts the count again.

    `least_wait_s`: what a host must have been waited for; where less was left of a URL's time, others used it up.
    """

    def __init__(self, limit: int, least_wait_s: float) -> None:
        self._limit = limit
        self._least_wait_s = least_wait_s
        self._missed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @contextmanager
    def watch(self, host: str) -> Iterator[None]:
        """Around one request: raises FetchError at once where the last `limit` ran out of time, and learns from it."""
        self._require_answering(host)
        started = asyncio.get_running_loop().time()
        try:
            yield
        except asyncio.CancelledError:  # the deadline of the URL
            if asyncio.get_running_loop().time() - started >= self._least_wait_s:
                self._miss(host)
            raise
        except FetchError as failure:
            if failure.status is Status.TIMEOUT:
                self._miss(host)
            else:
                self._missed.pop(host, None)
            raise
        else:
            self._missed.pop(host, None)

    def _require_answering(self, host: str) -> None:
        missed, until = self._missed.get(host, (0, 0.0))
        if missed >= self._limit and asyncio.get_running_loop().time() < until:
            detail = f"not asked: {host} left {missed} requests in a row without an answer"
            raise FetchError(Status.TIMEOUT, detail, retry_after_s=math.inf)

    def _miss(self, host: str) -> None:
        missed, _ = self._missed.pop(host, (0, 0.0))
        self._missed[host] = missed + 1, asyncio.get_running_loop().time() + _QUIET_S
        if len(self._missed) > _MAX_HOSTS:
            self._missed.popitem(last=False)
