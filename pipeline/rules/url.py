"""Defines the URL rules, which keep or drop rows by their URL before anything is fetched."""

from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.url_parser import ParsedUrl, parse_host, parse_url
from pairmill.pipeline.rules.base import SourceRules, Verdict, rule
from pairmill.pipeline.rules.blocklists import are_urls_listed
from pairmill.schemas.status import Status


def refused_redirect(url: ParsedUrl, rules: SourceRules) -> tuple[Status, str] | None:
    """(Status, detail) with which the URL rules refuse the target of a redirect; None if they allow it."""
    if url.problem:  # no rule can allow a URL that cannot be parsed
        return Status.BAD_REDIRECT, url.problem
    if url.scheme not in rules.url_schemes:
        return Status.URL_SCHEME, url.scheme
    if rules.url_blocklist and are_urls_listed([url], rules.url_blocklist, rules.files)[0]:
        return Status.URL_BLOCKLISTED, url.text
    if rules.url_block_hosts and (entry := _entry_for(url.host, host_set(tuple(rules.url_block_hosts)))):
        return Status.URL_HOST_BLOCKED, entry
    if rules.url_allow_hosts and not _entry_for(url.host, host_set(tuple(rules.url_allow_hosts))):
        return Status.URL_HOST_NOT_ALLOWED, url.host
    return None


@rule(Status.URL_MISSING)
def url_missing(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The URL is null or only white space."""
    return pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(rows["url"])), 0)


@rule(Status.URL_INVALID)
def url_invalid(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The URL is relative, cannot be parsed, has no valid host, or is too long. Detail: why."""
    problems = pa.array([url.problem for url in _parse_urls(rows)], pa.string())
    return pc.is_null(problems), problems


@rule(Status.URL_SCHEME)
def url_scheme(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The scheme is not in `url_schemes`: file, ftp, data and so on. Detail: the scheme."""
    schemes = pa.array([url.scheme for url in _parse_urls(rows)], pa.string())
    return pc.is_in(schemes, pa.array(rules.url_schemes, pa.string())), schemes


@rule(Status.URL_HOST_BLOCKED)
def url_host_blocked(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The host is in `url_block_hosts` or a subdomain of one that is. Detail: the entry."""
    if not rules.url_block_hosts:
        return None
    blocked = host_set(tuple(rules.url_block_hosts))
    entries = pa.array([_entry_for(url.host, blocked) for url in _parse_urls(rows)], pa.string())
    return pc.is_null(entries), entries


@rule(Status.URL_HOST_NOT_ALLOWED)
def url_host_not_allowed(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The host is neither in `url_allow_hosts` nor a subdomain of one that is. Detail: the host."""
    if not rules.url_allow_hosts:
        return None
    allowed = host_set(tuple(rules.url_allow_hosts))
    hosts = [url.host for url in _parse_urls(rows)]
    return pa.array([_entry_for(host, allowed) is not None for host in hosts], pa.bool_()), pa.array(hosts, pa.string())


@rule(Status.URL_BLOCKLISTED)
def url_blocklisted(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The URL, in any spelling that leads to the same request, or its SHA-256 is listed in the file `url_blocklist`."""
    if rules.url_blocklist is None:
        return None
    return pa.array(~are_urls_listed(_parse_urls(rows), rules.url_blocklist, rules.files))


@lru_cache(maxsize=16)
def host_set(entries: tuple[str, ...]) -> frozenset[str]:
    """The hosts of a block or allow list, in the form of `ParsedUrl.host`. Raises ValueError for a bad entry."""
    return frozenset(parse_host(entry) for entry in entries)


def _parse_urls(rows: pa.Table) -> list[ParsedUrl]:
    return [parse_url(url) for url in rows["url"].to_pylist()]


def _entry_for(host: str, entries: frozenset[str]) -> str | None:
    """The entry that is the host itself or one of its parent domains; None if there is none."""
    while host and host not in entries:
        host = host.partition(".")[2]
    return host or None
