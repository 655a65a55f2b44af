"""THE place where hosts are cut out of URLs to be counted or compared, so that all spellings of a host count as one."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.url_parser import parse_host, parse_url

_MAX_HOST_END = 320
"""Only this many characters of a URL are searched for its host, so that long URLs cost no extra time."""

_PLAIN = r"^[A-Za-z][A-Za-z0-9+.-]*://(?P<host>(?:[A-Za-z0-9_-]+\.)*[A-Za-z][A-Za-z0-9_-]*)(?::[0-9]*)?(?:[/?#]|$)"
"""A URL whose host is canonical in lower case. Nearly all URLs are like this."""

_ANY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]+)")


def hosts_of(urls: pa.ChunkedArray) -> pa.StringArray:
    """The `host_of` each URL."""
    starts = pc.utf8_slice_codeunits(urls.combine_chunks(), 0, _MAX_HOST_END)
    hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(starts, _PLAIN), "host"))
    others = pc.and_(pc.is_null(hosts), pc.is_valid(starts))
    found = [host_of(url) for url in starts.filter(others).to_pylist()]
    return pc.replace_with_mask(hosts, others, pa.array(found, hosts.type)) if found else hosts


def host_of(url: str) -> str | None:
    """The host of a URL, in the form of `ParsedUrl.host`; None if there is none. URLs that cannot be fetched have a
    host if one follows the scheme and `//`."""
    if parsed := parse_url(url).host:
        return parsed
    match = _ANY.match(url)
    return canonical_host(match["host"]) or None if match else None


def canonical_host(text: str) -> str:
    """A host in the form of `ParsedUrl.host`. Text that is not a host is only converted to lower case."""
    try:
        return parse_host(text)
    except ValueError:
        return text.strip("[]").rstrip(".").lower()
