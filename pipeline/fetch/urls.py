"""Decides whether a row's URL, or the target of a redirect, may be requested."""

from pairmill.pipeline.common.url_parser import HttpUrl, ParsedUrl, parse_url, resolve_url
from pairmill.pipeline.fetch.addresses import is_ipv4, is_legacy_ipv4
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status


def request_url(url: str) -> HttpUrl:
    """A row's URL, in the form in which it is requested.

    Raises FetchError with url_invalid, url_scheme or address_refused.
    """
    return _requestable(parse_url(url), invalid=Status.URL_INVALID, other_scheme=Status.URL_SCHEME)


def redirect_target(url: HttpUrl, location: str | None) -> HttpUrl:
    """The URL that a response from `url` redirects to (RFC 9110 section 10.2.2). `location`: as for `resolve_url`.

    Raises FetchError with bad_redirect or address_refused.
    """
    if not location:
        raise FetchError(Status.BAD_REDIRECT, "no Location")
    return _requestable(resolve_url(url, location), invalid=Status.BAD_REDIRECT, other_scheme=Status.BAD_REDIRECT)


def _requestable(url: ParsedUrl, invalid: Status, other_scheme: Status) -> HttpUrl:
    if url.problem is not None:
        raise FetchError(invalid, f"{url.problem}: {url.text}")
    if url.parsed is None:
        raise FetchError(other_scheme, f"only http and https are fetched, not {url.text}")
    host = url.parsed.host
    if is_legacy_ipv4(host):
        raise FetchError(Status.ADDRESS_REFUSED, f"{host} is an IPv4 address in a nonstandard form")
    if host.replace(".", "").isdigit() and not is_ipv4(host):
        raise FetchError(invalid, f"{host} is neither a name nor an address")
    return url.parsed
