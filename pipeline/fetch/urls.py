"""Which URLs may be requested: the row's own, and the targets of redirects."""

from urllib.parse import quote

from yarl import URL

from pairmill.pipeline.fetch.addresses import is_ipv4, is_legacy_ipv4
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.rules.url_parser import ParsedUrl, parse_url, resolve_url
from pairmill.schemas.status import Status

# Kept as they are in a Location header; everything else is percent-encoded. RFC 3986 section 2, and % itself.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"


def request_url(url: str) -> URL:
    """A row's URL as it is requested: without user name, password and fragment.

    Raises FetchError with url_invalid, url_scheme or address_refused.
    """
    parsed = parse_url(url)
    return _requestable(parsed, invalid=Status.URL_INVALID, other_scheme=Status.URL_SCHEME)


def redirect_target(url: URL, location: str | None) -> URL:
    """Where a response from `url` redirects to (RFC 9110 section 10.2.2).

    Raises FetchError with bad_redirect or address_refused.
    """
    if not location:
        raise FetchError(Status.BAD_REDIRECT, "no Location")
    # Header bytes beyond ASCII arrive as surrogates; servers mean UTF-8 in a path.
    encoded = quote(location.strip().encode("utf-8", "surrogateescape"), safe=_URL_CHARACTERS)
    parsed = resolve_url(url, encoded)
    return _requestable(parsed, invalid=Status.BAD_REDIRECT, other_scheme=Status.BAD_REDIRECT)


def _requestable(url: ParsedUrl, invalid: Status, other_scheme: Status) -> URL:
    if url.problem is not None:
        raise FetchError(invalid, f"{url.problem}: {url.text}")
    if url.parsed is None:
        raise FetchError(other_scheme, f"only http and https are fetched, not {url.text}")
    host = url.parsed.host or ""
    if is_legacy_ipv4(host):
        raise FetchError(Status.ADDRESS_REFUSED, f"{host} is IPv4 in disguise")
    if host.replace(".", "").isdigit() and not is_ipv4(host):
        raise FetchError(invalid, f"{host} is neither a name nor an address")
    return url.parsed.with_user(None).with_fragment(None)
