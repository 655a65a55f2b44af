"""THE place where a listed value gets its canonical form, and the hash that represents it in the ledger.

    uid      32 hex digits in lower case, without hyphens
    url      as it is requested: host in lower case and IDNA, no user name, default port or fragment; dot segments
             resolved, blanks and non-ASCII letters percent-encoded. A URL that cannot be requested stays as it is
    host     lower case and IDNA, without a trailing dot. It covers all of its subdomains; an IP address covers itself
    sha256   64 hex digits in lower case
    pdq      64 hex digits in lower case (256 bits)

digest = SHA-256(KIND NUL VALUE)
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterator

from pairmill.pipeline.common.hosts import canonical_host
from pairmill.pipeline.common.url_parser import parse_host, parse_url
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.purge import ListKind

_HEX_256 = re.compile(r"[0-9a-fA-F]{64}")
_URL_TAIL = re.compile(r"//[^\s\"'<>\\^`{|}\x00-\x20\x7f]+")
_SCHEMES = [re.compile(r"https?:\Z", re.IGNORECASE), re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,31}:\Z")]
_SCHEME_CHARS = 33
MAX_HOST_CHARS = 253
"""RFC 1035; without a limit, the parents of a long word would take quadratic time and memory."""
_MAX_PUNCTUATION = 8
"""Maximum number of punctuation characters that are removed after a URL in text. Without a limit, a line of dots
would take quadratic time."""
_HOST_OF_ANY = re.compile(
    r"[\x00-\x20]*(?:https?:[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})?(?:[^/\\?#]*@)?(\[[0-9a-f:.]+\]|\[?[\w.-]+)",
    re.IGNORECASE,
)
_HOST_WORD = re.compile(r"[\\%]?(?<![\w-])(?:[\w-]++\.)+[\w-]+", re.ASCII)
_WIDE_HOST_WORD = re.compile(r"(?<![\w-])(?:[\w-]++\.)+[\w-]+")
_IPV6_WORD = re.compile(r"(?<![0-9a-fA-F:.])[0-9a-fA-F]*+:[0-9a-fA-F:.]+")


def digest(name: str, value: bytes) -> bytes:
    """SHA-256 of `NAME NUL VALUE`."""
    return hashlib.sha256(name.encode() + b"\0" + value).digest()


def key(kind: ListKind, canonical: str) -> bytes:
    """The hash of a canonical value; a PDQ hash stays as it is, because it is compared by distance."""
    return bytes.fromhex(canonical) if kind == "pdq" else digest(kind, canonical.encode("utf-8", "surrogatepass"))


def canonical(kind: ListKind, text: str) -> str | None:
    """The canonical form of a value; None if it is not of this kind."""
    text = text.strip()
    if kind == "uid":
        return own_uid(text)
    if kind == "url":
        return canonical_url(text) if ":" in text and "\ufffd" not in text else None
    if kind == "host":
        try:
            host = parse_host(text)
        except ValueError:
            return None
        return host if _is_ip(host) or not _ends_in_number(host) else None
    return text.lower() if _HEX_256.fullmatch(text) else None


def canonical_url(url: str) -> str:
    """The canonical form of a URL, which is the same for all spellings of one request."""
    parsed = parse_url(url)
    return parsed.text if parsed.parsed is None else str(parsed.parsed)


def url_host(url: str) -> str:
    """The host of a URL, even if the URL cannot be fetched: it can have any scheme or none, or an invalid port or user
    name. Empty if there is no host."""
    parsed = parse_url(url)
    if parsed.parsed is not None:
        return parsed.host
    match = _HOST_OF_ANY.match(url)
    return canonical_host(match[1]) if match else parsed.host


def domains(host: str) -> Iterator[str]:
    """A host, then each of its parent domains that can exist. An IP address has no parents."""
    yield from (host,) if host else ()
    host = host[-MAX_HOST_CHARS - 1 :]
    while not _ends_in_number(host) and (host := host.partition(".")[2]):
        yield host


def urls_in(text: str) -> Iterator[str]:
    """The URLs in a message, with any scheme or none (`//host/path`), each also without the punctuation after it."""
    for _, url in urls_from(text):
        yield url
        yield from without_punctuation(url)


def urls_from(text: str) -> Iterator[tuple[int, str]]:
    """(start, URL) of each URL in a message, with any punctuation after it."""
    for match in _URL_TAIL.finditer(text):
        before = text[max(0, match.start() - _SCHEME_CHARS) : match.start()]
        schemes = (scheme.search(before) for scheme in _SCHEMES)  # http first, because letters can precede it
        scheme = next((scheme[0] for scheme in schemes if scheme), "")
        yield match.start() - len(scheme), scheme + match[0]


def without_punctuation(url: str) -> Iterator[str]:
    """The URL without one character of punctuation after it, without two, and so on."""
    for _ in range(_MAX_PUNCTUATION):
        if url[-1] not in ".,;:!?)]'":
            break
        url = url[:-1]
        yield url


def hosts_in(text: str) -> set[str]:
    """All words in `text` that can be hosts, with their parent domains. A name without a dot or colon counts as a host
    only within a URL."""
    words = set(_HOST_WORD.findall(text))
    escaped = {word for word in words if word[0] in "\\%"}
    found = words - escaped
    found |= {each for word in escaped for each in _after_escape(word)}
    found |= set(_IPV6_WORD.findall(text))
    found = {word.lower() for word in found}
    if not text.isascii():
        found |= {canonical_host(word) for word in set(_WIDE_HOST_WORD.findall(text)) if not word.isascii()}
    return {name for word in found for name in domains(word) if "." in name or ":" in name}


def _after_escape(word: str) -> Iterator[str]:
    """The word without its escape character, and also without the escape sequence that it can begin: `\\n` or `\\u002f`
    in JSON, `%2F` in a URL."""
    yield word[1:]
    if word[0] == "%":
        yield word[3:]
    elif word[1] in "bfnrt":
        yield word[2:]
    elif word[1] == "u":
        yield word[6:]


def _ends_in_number(host: str) -> bool:
    """Whether the host is an IP address or invalid: https://url.spec.whatwg.org/#ends-in-a-number-checker."""
    return host.rpartition(".")[2].isdigit() or ":" in host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
