"""THE place where a value of a list gets its canonical form, and the hash under which the ledger knows it.

    uid      32 hex digits in lower case, without hyphens
    url      as it is requested: host in lower case and IDNA, no user name, default port or fragment; dot segments
             resolved, blanks and non-ASCII letters percent-encoded. A URL that cannot be requested stays as it is
    host     lower case and IDNA, without a trailing dot. It covers all of its subdomains
    sha256   64 hex digits in lower case
    pdq      64 hex digits in lower case (256 bits)

digest = SHA-256(KIND NUL VALUE)
"""

import hashlib
import re
from collections.abc import Iterator

from pairmill.pipeline.rules.url_parser import parse_host, parse_url
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.purge import ListKind

_HEX_256 = re.compile(r"[0-9a-fA-F]{64}")
URL_IN_TEXT = re.compile(r"https?://[^\s\"'<>\\^`{|}\x00-\x20\x7f]+", re.IGNORECASE)
"""A URL within other text, such as a message; what follows it, such as a bracket, may be included."""


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
            return parse_host(text)
        except ValueError:
            return None
    return text.lower() if _HEX_256.fullmatch(text) else None


def canonical_url(url: str) -> str:
    """The form of a URL in which two spellings of the same request are equal."""
    parsed = parse_url(url)
    return parsed.text if parsed.parsed is None else str(parsed.parsed)


def domains(host: str) -> Iterator[str]:
    """A host, then each of its parent domains."""
    while host:
        yield host
        host = host.partition(".")[2]


def urls_in(text: str) -> Iterator[str]:
    """URLs within a message, each also without the punctuation that may follow it."""
    for match in URL_IN_TEXT.finditer(text):
        found = match[0]
        yield found
        while found and found[-1] in ".,;:!?)]'":
            found = found[:-1]
            yield found
