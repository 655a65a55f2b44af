"""What a host's robots.txt says of a URL (RFC 9309), asked for once per origin and remembered.

Says nothing about how the file is fetched: `fetcher.py` passes that in. `Crawl-delay` is no part of the standard
and is not read; `fetch.per_host_interval_s` spaces requests.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from pairmill.pipeline.fetch.body import FetchError
from pairmill.pipeline.fetch.ttl_cache import Remembered
from pairmill.schemas.status import Status

MAX_BYTES = 500 * 1024
"""Of one file; the rest is not read (RFC 9309 section 2.5 asks for no less)."""

_MAX_LINES = 10_000
"""Matching a URL costs time per rule: a file of more lines refuses everything instead."""

_KEEP_S = 86_400.0  # RFC 9309 section 2.4: no longer than a day
_KEEP_FAILURE_S = 300.0
_MAX_CACHED_BYTES = 64 << 20

Get = Callable[[URL], Awaitable[tuple[int, bytes]]]
"""A URL -> (HTTP status, first MAX_BYTES of the body). Raises FetchError where no answer came."""


@dataclass(frozen=True, slots=True)
class _File:
    """What one origin says: rules, nothing (all is allowed), or a failure that forbids all."""

    rules: Protego | None = None
    failure: tuple[Status, str] | None = None
    num_bytes: int = 0


class RobotsFiles:
    """The robots.txt of every origin that is asked for. `token` is the product name that files address us by."""

    def __init__(self, get: Get, token: str) -> None:
        self._get = get
        self._token = token
        self._files: Remembered[_File] = Remembered(
            self._ask,
            keep_s=lambda file: _KEEP_FAILURE_S if file.failure else _KEEP_S,
            max_size=_MAX_CACHED_BYTES,
            size=lambda file: 1_000 + 10 * file.num_bytes,  # parsed rules take several times their text
        )

    async def require_allowed(self, url: URL) -> None:
        """Raises FetchError: robots_disallowed, or why robots.txt could not be had."""
        file = await self._files.get(str(url.origin()))
        if file.failure is not None:
            raise FetchError(*file.failure)
        if file.rules is not None and not file.rules.can_fetch(str(url), self._token):
            raise FetchError(Status.ROBOTS_DISALLOWED, f"robots.txt of {url.authority}")

    async def close(self) -> None:
        """Cancel the questions under way."""
        await self._files.close()

    async def _ask(self, origin: str) -> _File:
        try:
            status, body = await self._get(URL(origin) / "robots.txt")
        except FetchError as failure:
            return _File(failure=(failure.status, f"robots.txt: {failure.detail or failure.status}"))
        if status >= 500 or status == 429:  # section 2.3.1.4: unreachable, so complete disallow
            return _File(failure=(Status.HTTP_429 if status == 429 else Status.HTTP_5XX, f"robots.txt: {status}"))
        if not 200 <= status < 300:  # section 2.3.1.3: unavailable, so anything goes
            return _File()
        text = body[:MAX_BYTES].decode("utf-8", "replace")
        if len(text.splitlines()) > _MAX_LINES:
            return _File(failure=(Status.ROBOTS_DISALLOWED, f"robots.txt of more than {_MAX_LINES:,} lines"))
        return _File(rules=Protego.parse(text), num_bytes=len(body))
