"""Decides whether a host's robots.txt allows a URL (RFC 9309). The file is fetched once per origin and cached.

`fetch_url.py` passes in the function that fetches the file. `Crawl-delay` is not part of the standard and is ignored;
`fetch.per_host_interval_s` spaces requests.
"""

import codecs
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego

from pairmill.pipeline.common.url_parser import HttpUrl
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.ttl_cache import TtlCache
from pairmill.pipeline.fetch.urls import request_url
from pairmill.schemas.status import Status

MAX_BYTES = 500 * 1024
"""Lines that end beyond are ignored; RFC 9309 section 2.5 requires parsing at least this much."""

READ_BYTES = MAX_BYTES + 2
"""How much of a file is read: two more bytes show, even in UTF-16, whether a line ends at MAX_BYTES."""

_MAX_LINES = 10_000
"""Matching a URL takes time for each rule, so a file with more lines counts as disallowing everything."""

_TTL_S = 86_400.0  # RFC 9309 section 2.4: no longer than a day
_FAILURE_TTL_S = 300.0
_MAX_CACHED_BYTES = 64 << 20

Fetch = Callable[[HttpUrl], Awaitable[tuple[int, bytes]]]
"""A URL -> (HTTP status, first READ_BYTES of the decompressed body). Raises FetchError if there is no response, or it
cannot be decompressed."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_USER_AGENT = re.compile(r"\s*user(?:-|\s*)agent(?=[\s:])[\s:]*([^\s/#,;]*)", re.IGNORECASE)
"""The beginning of a line that names a crawler, in every spelling that Protego accepts, up to the end of the name.
`User-agent: pairmill/0.1` addresses `pairmill`, as in Google's parser."""
_ANOTHER = "(another)"
"""Stands for the name of every other crawler: no product name contains parentheses."""


@dataclass(frozen=True, slots=True)
class _RobotsTxt:
    """The file of one origin: rules, or a failure that disallows everything. With neither, everything is allowed."""

    rules: Protego | None = None
    failure: tuple[Status, str] | None = None
    num_bytes: int = 0


class RobotsTxtCache:
    """Caches the robots.txt of each origin. `token`: the product name by which these files address us."""

    def __init__(self, fetch: Fetch, token: str) -> None:
        self._fetch = fetch
        self._token = token
        self._files: TtlCache[_RobotsTxt] = TtlCache(
            self._load,
            ttl_s=lambda file: _FAILURE_TTL_S if file.failure else _TTL_S,
            max_size=_MAX_CACHED_BYTES,
            size=lambda file: 1_000 + 10 * file.num_bytes,  # parsed rules take several times the memory of their text
        )

    async def require_allowed(self, url: HttpUrl) -> None:
        """Raise FetchError if the URL is not allowed: robots_disallowed, or why robots.txt could not be fetched."""
        file = await self._files.get(url.origin)
        if file.failure is not None:
            raise FetchError(*file.failure)
        if file.rules is not None and not file.rules.can_fetch(str(url), self._token):
            raise FetchError(Status.ROBOTS_DISALLOWED, f"robots.txt of {url.authority}")

    async def close(self) -> None:
        """Cancel the running requests."""
        await self._files.close()

    async def _load(self, origin: str) -> _RobotsTxt:
        try:
            status, body = await self._fetch(request_url(f"{origin}/robots.txt"))
        except FetchError as failure:
            return _RobotsTxt(failure=(failure.status, f"robots.txt: {failure.detail or failure.status}"))
        if status >= 500 or status == 429:  # section 2.3.1.4: unreachable, so complete disallow
            return _RobotsTxt(failure=(Status.HTTP_429 if status == 429 else Status.HTTP_5XX, f"robots.txt: {status}"))
        if not 200 <= status < 300:  # section 2.3.1.3: unavailable, so complete allow
            return _RobotsTxt()
        lines = _whole_lines(body).splitlines()
        if len(lines) > _MAX_LINES:
            return _RobotsTxt(failure=(Status.ROBOTS_DISALLOWED, f"robots.txt with more than {_MAX_LINES:,} lines"))
        text = "\n".join(_name_exactly(line, self._token) for line in lines)
        return _RobotsTxt(rules=Protego.parse(text), num_bytes=len(body))


def _whole_lines(body: bytes) -> str:
    """The lines within MAX_BYTES. The first part of a longer line could be a rule for more URLs than the line."""
    text = _decode(body)
    if len(body) <= MAX_BYTES:
        return text
    return text[: max(text.rfind("\n"), text.rfind("\r")) + 1]


def _name_exactly(line: str, token: str) -> str:
    """A line that Protego understands as RFC 9309 section 2.2.1 says: a group is ours if it has our whole name, in any
    case. To Protego, a group for `pair` would also be one for `pairmill`. Asterisks in a name mean nothing, and of
    several words, only the first can be a name."""
    match = _USER_AGENT.match(line)
    if match is None:
        return line
    name = match[1].replace("*", "").lower()
    group = "*" if match[1] and not name else token if name == token else _ANOTHER
    return f"User-agent: {group}"


def _decode(body: bytes) -> str:
    """The text of a file, which should be UTF-8. No NULs, so that it does not matter whether UTF-16 has a mark."""
    text = body.decode("utf-16" if body.startswith(_UTF16) else "utf-8", "replace")
    return text.removeprefix("\ufeff").replace("\0", "")
