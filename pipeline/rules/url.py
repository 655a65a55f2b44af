"""URL rules, before anything is fetched.

URLs are read by yarl, which is what the HTTP client (aiohttp) reads them with: a host that these rules see is the host
that is connected to, whatever user names, ports, backslashes or exotic letters the URL holds.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from yarl import URL

from pairmill.pipeline.rules.base import SourceRules, Verdict, rule
from pairmill.pipeline.rules.blocklists import is_listed, url_digest
from pairmill.schemas.status import Status

MAX_URL_BYTES = 8_192
"""Longer ones fail at most servers: RFC 9110, section 4.1 asks for 8,000 octets at least."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,31}):")  # RFC 3986, section 3.1

# C0, DEL, C1 and every kind of white space. Clients disagree on them: some cut, some quote, some drop them.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")

# After IDNA. Underscores are no host names by RFC 1123 but do exist in DNS.
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_MAX_NAME_CHARS = 253
_IPV6 = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*")


class Address(NamedTuple):
    """What the rules need of a URL."""

    scheme: str
    """Lower case; empty where the URL has none."""
    host: str
    """Lower case, in its ASCII (IDNA) form, without a dot at the end; empty where there is none."""
    problem: str | None = None
    """Why the URL cannot be fetched, or None."""


def read_url(url: str) -> URL:
    """The URL as the client reads it, blanks around it left out. Raises ValueError for all that cannot be read."""
    try:
        target = URL(url.strip())
        _ = target.host, target.port  # decodes IDNA, which may fail
    except IndexError as error:  # yarl 1.25 on http://[x]@, where a host is missing
        raise ValueError("no host") from error
    return target


def parse_address(url: str) -> Address:
    """The scheme and host that fetching `url` would use. Of schemes other than http and https, the scheme only."""
    # A data URI may be megabytes long: not worth remembering.
    url = url.strip()  # as the fetcher does
    return _parse_once(url) if len(url) <= MAX_URL_BYTES else _parse(url)


def _parse(url: str) -> Address:
    match = _SCHEME.match(url)
    if match is None:
        return Address("", "", "no scheme")
    scheme = match[1].lower()
    if scheme not in ("http", "https"):
        return Address(scheme, "")
    if _FORBIDDEN.search(url):
        return Address(scheme, "", "white space or a control character")
    if len(url.encode()) > MAX_URL_BYTES:
        return Address(scheme, "", f"longer than {MAX_URL_BYTES} bytes")
    try:
        target = read_url(url)
    except ValueError as error:  # UnicodeError is one too
        return Address(scheme, "", str(error))
    if not target.host:
        return Address(scheme, "", "no host")
    host = (target.raw_host or "").lower().removesuffix(".")
    return Address(scheme, host, _problem(host, target.port))


_parse_once = lru_cache(maxsize=16_384)(_parse)  # four shards: each of the rules below asks again


@lru_cache(maxsize=16)
def host_set(entries: tuple[str, ...]) -> frozenset[str]:
    """Hosts of a block or allow list in the form of `Address.host`. ValueError: an entry that is no host."""
    return frozenset(_listed_host(entry) for entry in entries)


def refused_redirect(url: str, rules: SourceRules) -> tuple[Status, str] | None:
    """The Status and detail that the URL rules have for the target of a redirect, or None."""
    address = parse_address(url)
    host = address.host
    if address.problem:  # what the rules cannot read, they cannot allow
        return Status.BAD_REDIRECT, address.problem
    if address.scheme not in rules.url_schemes:
        return Status.URL_SCHEME, str(address.scheme)
    if rules.url_blocklist and is_listed([url_digest(url)], "url", rules.url_blocklist, rules.files)[0]:
        return Status.URL_BLOCKLISTED, url
    if rules.url_block_hosts and (entry := _entry_for(host, host_set(tuple(rules.url_block_hosts)))):
        return Status.URL_HOST_BLOCKED, entry
    if rules.url_allow_hosts and not _entry_for(host, host_set(tuple(rules.url_allow_hosts))):
        return Status.URL_HOST_NOT_ALLOWED, host
    return None


@rule(Status.URL_MISSING)
def url_missing(rows: pa.Table, rules: SourceRules) -> Verdict:
    """A null URL, or one that holds nothing but white space."""
    return pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(rows["url"])), 0)


@rule(Status.URL_INVALID)
def url_invalid(rows: pa.Table, rules: SourceRules) -> Verdict:
    """A URL that is relative, cannot be read, has no valid host, or is too long. Detail: why."""
    problems = pa.array([address.problem for address in _addresses(rows)], pa.string())
    return pc.is_null(problems), problems


@rule(Status.URL_SCHEME)
def url_scheme(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Any scheme but `url_schemes`: file, ftp, data and so on. Detail: the scheme."""
    schemes = pa.array([address.scheme for address in _addresses(rows)], pa.string())
    return pc.is_in(schemes, pa.array(rules.url_schemes, pa.string())), schemes


@rule(Status.URL_HOST_BLOCKED)
def url_host_blocked(rows: pa.Table, rules: SourceRules) -> Verdict:
    """A host in `url_block_hosts`, or a subdomain of one. Detail: the entry."""
    if not rules.url_block_hosts:
        return None
    blocked = host_set(tuple(rules.url_block_hosts))
    entries = pa.array([_entry_for(address.host, blocked) for address in _addresses(rows)], pa.string())
    return pc.is_null(entries), entries


@rule(Status.URL_HOST_NOT_ALLOWED)
def url_host_not_allowed(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Neither a host in `url_allow_hosts` nor a subdomain of one. Detail: the host."""
    if not rules.url_allow_hosts:
        return None
    allowed = host_set(tuple(rules.url_allow_hosts))
    hosts = [address.host for address in _addresses(rows)]
    return pa.array([_entry_for(host, allowed) is not None for host in hosts], pa.bool_()), pa.array(hosts, pa.string())


@rule(Status.URL_BLOCKLISTED)
def url_blocklisted(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Exactly a URL in the file `url_blocklist`, or one whose SHA-256 stands there."""
    if rules.url_blocklist is None:
        return None
    digests = [url_digest(url) for url in rows["url"].to_pylist()]
    return pa.array(~is_listed(digests, "url", rules.url_blocklist, rules.files))


def _addresses(rows: pa.Table) -> list[Address]:
    return [parse_address(url) for url in rows["url"].to_pylist()]


def _problem(host: str, port: int | None) -> str | None:
    if not (_IPV6.fullmatch(host) or (len(host) <= _MAX_NAME_CHARS and _NAME.fullmatch(host))):
        return f"no valid host: {host!r}"
    return "port 0" if port == 0 else None


def _entry_for(host: str, entries: frozenset[str]) -> str | None:
    """The host itself or the parent domain of it that is among `entries`."""
    while host and host not in entries:
        host = host.partition(".")[2]
    return host or None


def _listed_host(entry: str) -> str:
    name = entry.strip().removeprefix("*.").removeprefix(".")
    is_bare_ipv6 = _IPV6.fullmatch(name.lower()) is not None
    address = parse_address(f"http://[{name}]/" if is_bare_ipv6 else f"http://{name}/")
    has_port = not is_bare_ipv6 and ":" in name and not name.endswith("]")
    if address.problem or has_port or any(mark in name for mark in "/?#@"):
        raise ValueError(f"{entry!r} is no host; give a name such as example.com, without scheme, port and path")
    return address.host
