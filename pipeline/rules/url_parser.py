"""THE place where a URL is parsed, and refused if it cannot be fetched.

yarl parses it, as it does inside the HTTP client (aiohttp): the host that the rules see is the host that the client
connects to, whatever user names, ports, backslashes or exotic letters the URL contains.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from yarl import URL

from pairmill.schemas.limits import MAX_URL_BYTES

HTTP_SCHEMES = frozenset({"http", "https"})

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,31}):")  # RFC 3986, section 3.1

# C0, DEL, C1 and every kind of white space. Clients disagree on them: some cut, some quote, some drop them.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")

# After IDNA. RFC 1123 allows no underscores in host names, but DNS has them.
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_MAX_NAME_CHARS = 253
_IPV6 = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """A URL, and why it cannot be fetched if it cannot."""

    text: str
    """As given, without the white space around it."""
    scheme: str
    """Lower case; empty if the URL has none."""
    host: str = ""
    """Lower case, in its ASCII (IDNA) form, without a trailing dot; empty if there is none."""
    problem: str | None = None
    """Why the URL is invalid; None if it is valid, or if its scheme is not http or https."""
    parsed: URL | None = None
    """As yarl parses it; None for invalid URLs and for other schemes."""


def parse_url(url: str) -> ParsedUrl:
    """Parse a URL; never raises. Of a URL whose scheme is not http or https, only the scheme is read."""
    url = url.strip()
    # A data URI may be megabytes long, which is too much to keep in a cache.
    return _parse_cached(url) if len(url) <= MAX_URL_BYTES else _parse(url)


def resolve_url(base: URL, reference: str) -> ParsedUrl:
    """The URL that a reference (a Location header) leads to from `base`: RFC 3986, section 5. Never raises.

    User name, password and fragment are dropped, as no client sends them on to a redirect's target.
    """
    try:
        joined = base.join(_parse_with_yarl(reference))
        if joined.scheme in HTTP_SCHEMES and joined.host:
            joined = joined.with_user(None).with_fragment(None)
    except ValueError as error:
        return ParsedUrl(reference, "", problem=f"{error}: {reference}")
    return parse_url(str(joined))


def parse_host(entry: str) -> str:
    """A host of a block or allow list, in the form of `ParsedUrl.host`. Raises ValueError if it is not a host."""
    name = entry.strip().removeprefix("*.").removeprefix(".")
    is_bare_ipv6 = _IPV6.fullmatch(name.lower()) is not None
    url = parse_url(f"http://[{name}]/" if is_bare_ipv6 else f"http://{name}/")
    has_port = not is_bare_ipv6 and ":" in name and not name.endswith("]")
    if url.problem or has_port or any(mark in name for mark in "/?#@"):
        raise ValueError(f"{entry!r} is not a host; give a name such as example.com, without scheme, port and path")
    return url.host


def _parse(url: str) -> ParsedUrl:
    match = _SCHEME.match(url)
    if match is None:
        return ParsedUrl(url, "", problem="no scheme")
    scheme = match[1].lower()
    if scheme not in HTTP_SCHEMES:
        return ParsedUrl(url, scheme)
    if _FORBIDDEN.search(url):
        return ParsedUrl(url, scheme, problem="white space or a control character")
    if len(url.encode()) > MAX_URL_BYTES:
        return ParsedUrl(url, scheme, problem=f"longer than {MAX_URL_BYTES} bytes")
    try:
        parsed = _parse_with_yarl(url)
    except ValueError as error:  # UnicodeError is one too
        return ParsedUrl(url, scheme, problem=str(error))
    if not parsed.host:
        return ParsedUrl(url, scheme, problem="no host")
    host = (parsed.raw_host or "").lower().removesuffix(".")
    if (problem := _host_problem(host, parsed.port)) is not None:
        return ParsedUrl(url, scheme, host, problem)
    return ParsedUrl(url, scheme, host, None, parsed)


_parse_cached = lru_cache(maxsize=16_384)(_parse)  # four shards: each URL rule asks again, and then the fetcher


def _parse_with_yarl(url: str) -> URL:
    """Raises ValueError for everything that yarl cannot parse."""
    try:
        parsed = URL(url.strip())
        _ = parsed.host, parsed.port  # decodes IDNA, which may fail
    except IndexError as error:  # yarl 1.25 on http://[x]@, where a host is missing
        raise ValueError("no host") from error
    return parsed


def _host_problem(host: str, port: int | None) -> str | None:
    if not (_IPV6.fullmatch(host) or (len(host) <= _MAX_NAME_CHARS and _NAME.fullmatch(host))):
        return f"no valid host: {host!r}"
    return "port 0" if port == 0 else None
