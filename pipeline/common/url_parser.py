"""THE place where a URL is parsed, and refused if it cannot be fetched.

The target (path and query) of a request is taken from the list or the Location header byte for byte: decoding a `%2F`
would invalidate a signed URL. The exceptions are those of curl: dot segments are resolved, the fragment is dropped, and
blanks and non-ASCII letters are percent-encoded. As in browsers, slashes before the host can be missing, or there can
be too many. The host is parsed by yarl, which applies IDNA (UTS 46). The rules see the same host that the client
connects to, whatever user names, ports, backslashes or exotic letters the URL contains.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from yarl import URL

from pairmill.schemas.limits import MAX_URL_BYTES

HTTP_SCHEMES = frozenset({"http", "https"})

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,31}):")  # RFC 3986, section 3.1

# C0, blank and DEL. Clients handle these differently: some cut the URL there, some percent-encode them, some drop them.
# All clients percent-encode other white space.
_FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x20\x7f]")

# These can come from JSON (`\ud800`). The others stand for bytes that are not UTF-8 (PEP 383).
_LONE_SURROGATES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
_LONE_SURROGATE = "a lone surrogate, which cannot be encoded"

# Also forbidden in a host: C1 and every other kind of white space, which IDNA would map to blanks or drop.
_FORBIDDEN_IN_HOSTS = re.compile(r"[\x80-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")

# After IDNA. RFC 1123 allows no underscores in host names, but DNS has them.
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_MAX_NAME_CHARS = 253
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV6 = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*")
# yarl also accepts a port that only Python's `int` can read, such as `+80`, `8_0` or full-width digits.
_HOST_AND_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::[0-9]*)?")

# RFC 3986, appendix B. Always matches.
_COMPONENTS = re.compile(
    r"(?:(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*):)?(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?P<query>\?[^#]*)?",
    re.DOTALL,
)
_ASCII = "".join(map(chr, range(0x80)))
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """An http or https URL that can be requested, without user name, password and fragment."""

    scheme: str
    host: str
    """Lower case, in its ASCII (IDNA) form; IPv6 without brackets."""
    port: int
    target: str
    """Path and query, as sent in the request line (RFC 9112, section 3.2.1). ASCII."""

    @property
    def name(self) -> str:
        """The host without a trailing dot, which makes a name absolute: `a.example.` and `a.example` are one host."""
        return self.host.removesuffix(".")

    @property
    def authority(self) -> str:
        """`host`, or `host:port` if the port is not the scheme's own: the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.target


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """A URL and, if it cannot be fetched, the reason."""

    text: str
    """As given, without the white space around it."""
    scheme: str
    """Lower case; empty if the URL has none."""
    host: str = ""
    """Lower case, in its ASCII (IDNA) form, without a trailing dot; empty if there is none. IPv4 addresses have one
    form, also where they are written as IPv6 (`::ffff:192.0.2.1`, `64:ff9b::192.0.2.1`, `2002:c000:201::`)."""
    problem: str | None = None
    """Why the URL is invalid; None if it is valid, or if its scheme is not http or https."""
    parsed: HttpUrl | None = None
    """The URL to request; None for invalid URLs and other schemes."""


def parse_url(url: str) -> ParsedUrl:
    """Parse a URL; never raises. If the scheme is not http or https, only the scheme is parsed."""
    url = url.strip()
    # A data URI can be megabytes long, which is too much to keep in a cache.
    return _parse_cached(url) if len(url) <= MAX_URL_BYTES else _parse(url)


def resolve_url(base: HttpUrl, reference: str) -> ParsedUrl:
    """The URL that a reference (a Location header) leads to from `base`: RFC 3986, section 5.2.2. Never raises.

    As in browsers, `http:/x` is a path on the same host if `base` is also http (section 5.4.2 allows this for old
    references); otherwise, `x` is a host with one slash missing. Only browsers accept the former, so its backslashes
    are slashes, as for them (https://url.spec.whatwg.org/#special-relative-or-authority-state). In all other places,
    backslashes are those of curl: characters of a path, and errors in a host.

    `reference` can contain surrogates for bytes that are not UTF-8 (PEP 383). User name, password and fragment are
    dropped, because no client forwards them to a redirect's target.
    """
    if _LONE_SURROGATES.search(reference):
        return ParsedUrl(reference, base.scheme, problem=_LONE_SURROGATE)
    parts = _COMPONENTS.match(reference.strip())
    assert parts is not None
    scheme, authority, path, query = parts.group("scheme", "authority", "path", "query")
    if scheme is not None and scheme.lower() not in HTTP_SCHEMES:
        return ParsedUrl(reference, scheme.lower())
    if authority is None and scheme is not None and scheme.lower() == base.scheme:
        path = path.replace("\\", "/")
        scheme, authority = None, "" if path.startswith("//") else None
    if scheme is None and authority is None:
        base_path, _, base_query = base.target.partition("?")
        if not path:
            query = query if query is not None else f"?{base_query}" if "?" in base.target else None
            path = base_path
        elif not path.startswith("/"):
            path = base_path[: base_path.rindex("/") + 1] + path
        authority = base.authority
    else:
        authority, path = _authority_and_path(authority, path)
    url = f"{scheme or base.scheme}://{authority}{_encode(path, ' ', '%20')}{_encode(query or '', ' ', '+')}"
    return _parse(url)


def parse_host(entry: str) -> str:
    """A host from a block or allow list, in the form of `ParsedUrl.host`. Raises ValueError if it is not a host."""
    name = entry.strip().removeprefix("*.").removeprefix(".")
    is_bare_ipv6 = _IPV6.fullmatch(name.lower()) is not None
    url = parse_url(f"http://[{name}]/" if is_bare_ipv6 else f"http://{name}/")
    has_port = not is_bare_ipv6 and ":" in name and not name.endswith("]")
    if url.problem or has_port or any(mark in name for mark in "/?#@"):
        raise ValueError(f"{entry!r} is not a host; use a name such as example.com, without a scheme, port or path")
    return url.host


def _parse(url: str) -> ParsedUrl:
    match = _SCHEME.match(url)
    if match is None:
        return ParsedUrl(url, "", problem="no scheme")
    scheme = match[1].lower()
    if scheme not in HTTP_SCHEMES:
        return ParsedUrl(url, scheme)
    if _FORBIDDEN_CHARACTERS.search(url):
        return ParsedUrl(url, scheme, problem="white space or a control character")
    if _LONE_SURROGATES.search(url):
        return ParsedUrl(url, scheme, problem=_LONE_SURROGATE)
    if len(url.encode("utf-8", "surrogatepass")) > MAX_URL_BYTES:
        return ParsedUrl(url, scheme, problem=f"longer than {MAX_URL_BYTES} bytes")
    parts = _COMPONENTS.match(url)
    assert parts is not None
    authority, path = _authority_and_path(parts["authority"], parts["path"])
    if _FORBIDDEN_IN_HOSTS.search(authority):
        return ParsedUrl(url, scheme, problem="white space or a control character")
    try:
        parsed = _parse_authority(scheme, authority)
    except ValueError as error:  # includes UnicodeError
        return ParsedUrl(url, scheme, problem=str(error))
    if not parsed.host:
        return ParsedUrl(url, scheme, problem="no host")
    host = (parsed.raw_host or "").lower()
    name = host.removesuffix(".")
    if (problem := _host_problem(name, parsed.port, authority.rpartition("@")[2])) is not None:
        return ParsedUrl(url, scheme, name, problem)
    target = _remove_dot_segments(_encode(path) or "/") + _encode(parts["query"] or "")
    requested = HttpUrl(scheme, host, parsed.port or _DEFAULT_PORT[scheme], target)
    return ParsedUrl(url, scheme, _as_ipv4(name), None, requested)


_parse_cached = lru_cache(maxsize=16_384)(_parse)  # four shards: each rule and the fetcher parse again


def _authority_and_path(authority: str | None, path: str) -> tuple[str, str]:
    """(authority, path) of an http URL, given those of _COMPONENTS. Any number of slashes can precede the authority.

    https://url.spec.whatwg.org/#special-authority-ignore-slashes-state
    """
    if authority:
        return authority, path
    authority, slash, path = path.lstrip("/").partition("/")
    return authority, slash + path


def _parse_authority(scheme: str, authority: str) -> URL:
    """Parse an authority. Raises ValueError for anything that yarl cannot parse."""
    try:
        parsed = URL(f"{scheme}://{authority}/")
        _ = parsed.host, parsed.port  # decodes IDNA, which can fail
    except IndexError as error:  # yarl 1.25 raises it for http://[x]@, which has no host
        raise ValueError("no host") from error
    return parsed


def _encode(text: str, blank: str = "", encoded_blank: str = "") -> str:
    """Percent-encode only what is not ASCII: as UTF-8, or as the bytes behind surrogates. `blank` is replaced by
    `encoded_blank`."""
    text = text.replace(blank, encoded_blank) if blank else text
    return text if text.isascii() else quote(text.encode("utf-8", "surrogateescape"), safe=_ASCII)


def _remove_dot_segments(path: str) -> str:
    """The path without dot segments (RFC 3986, section 5.2.4). As in curl, percent-encoded dots stay."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    ends_in_folder = segments[-1] in (".", "..")
    return "/" + "/".join([*kept, ""] if ends_in_folder and kept else kept)


def encoded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address is another form of: mapped (RFC 4291, section 2.5.5.2), 6to4 (RFC 3056) or
    NAT64 (RFC 6052). None for other addresses, although some lead to an IPv4 address through another host."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _as_ipv4(host: str) -> str:
    """The IPv4 address if the host is one in an IPv6 form, else the host."""
    return str(encoded_ipv4(ipaddress.IPv6Address(host)) or host) if ":" in host else host


def _host_problem(host: str, port: int | None, host_and_port: str) -> str | None:
    """Why a host or port is not valid, or None. `host_and_port`: as in the URL."""
    in_brackets = host_and_port.startswith("[")
    if not (_is_ipv6(host) if in_brackets else len(host) <= _MAX_NAME_CHARS and _NAME.fullmatch(host)):
        return f"no valid host: {host!r}"
    if not _HOST_AND_PORT.fullmatch(host_and_port):
        return f"no valid port: {host_and_port!r}"
    return "port 0" if port == 0 else None


def _is_ipv6(host: str) -> bool:
    """Whether this is an IPv6 address without a zone. yarl does not check."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return _IPV6.fullmatch(host) is not None
