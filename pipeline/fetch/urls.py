"""URLs as download targets: parsing what a list gives, resolving what a server redirects to."""

from urllib.parse import quote

from yarl import URL

from pairmill.pipeline.fetch.addresses import is_ipv4, is_legacy_ipv4
from pairmill.pipeline.fetch.body import FetchError
from pairmill.pipeline.rules.url import read_url
from pairmill.schemas.status import Status

# Kept as they are in a Location header, everything else is percent-encoded. RFC 3986 section 2, and % itself.
_URL_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"


def parse_target(url: str, refused: Status | None = None) -> URL:
    """A URL that may be requested, without user name, password and fragment.

    Raises FetchError with url_invalid, url_scheme or address_refused; `refused` replaces the first two.
    """
    try:
        target = read_url(url)
    except ValueError as error:
        raise FetchError(refused or Status.URL_INVALID, f"{error}: {url}") from error
    host, port = target.host, target.port
    if target.scheme not in ("http", "https"):
        raise FetchError(refused or Status.URL_SCHEME, f"only http and https are fetched, not {url}")
    if not host or port == 0:
        raise FetchError(refused or Status.URL_INVALID, f"no host or port to connect to: {url}")
    if is_legacy_ipv4(host):
        raise FetchError(Status.ADDRESS_REFUSED, f"{host} is IPv4 in disguise")
    if host.replace(".", "").isdigit() and not is_ipv4(host):
        raise FetchError(refused or Status.URL_INVALID, f"{host} is neither a name nor an address")
    return target.with_user(None).with_fragment(None)


def redirect_target(url: URL, location: str | None) -> URL:
    """Where an answer of `url` sends us (RFC 9110 section 10.2.2). Raises FetchError, mostly bad_redirect."""
    if not location:
        raise FetchError(Status.BAD_REDIRECT, "no Location")
    # Header bytes beyond ASCII arrive as surrogates; servers mean UTF-8 in a path.
    encoded = quote(location.strip().encode("utf-8", "surrogateescape"), safe=_URL_CHARACTERS)
    try:
        joined = str(url.join(read_url(encoded)))
    except ValueError as error:
        raise FetchError(Status.BAD_REDIRECT, f"{error}: {encoded}") from error
    return parse_target(joined, refused=Status.BAD_REDIRECT)
