"""What is special about lists on web servers: their addresses, their errors and how long they may take."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pairmill.schemas.errors import JobError

if TYPE_CHECKING:
    from aiohttp import ClientTimeout

WEB_SCHEMES = ("http://", "https://")
_WEB_TIMEOUT_S = 60.0
"""How long a web server may send nothing. aiohttp's default bounds a whole pass over a list, to five minutes."""


def without_query(uri: str) -> str:
    """A web address without its query, which follows the file's name: `a.parquet?download=true`. Returns all other
    paths unchanged."""
    return uri.partition("#")[0].partition("?")[0] if uri.startswith(WEB_SCHEMES) else uri


def is_named_gz(uri: str) -> bool:
    """Whether the name of a file, or the query of a web address, says that it is compressed."""
    return uri.lower().endswith(".gz") or without_query(uri).lower().endswith(".gz")


def timeout() -> "ClientTimeout":
    """The limits of one request."""
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=_WEB_TIMEOUT_S, sock_read=_WEB_TIMEOUT_S)


@contextlib.contextmanager
def naming_web_errors(uri: str) -> Iterator[None]:
    """Raise JobError with the file's name if the block fails because of a web server. Many errors of fsspec's client
    for these are not OSErrors."""
    if not uri.startswith(WEB_SCHEMES):
        yield
        return
    from aiohttp import ClientError

    try:
        yield
    except (ClientError, TimeoutError) as error:
        raise JobError(f"{uri}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What went wrong, without any text from the server."""
    from aiohttp import ClientConnectorError, ClientResponseError, TooManyRedirects

    match error:
        case TooManyRedirects():
            return "the web server redirects too often"
        case ClientResponseError():
            return f"the web server answered with HTTP {error.status}"
        case ClientConnectorError():
            return f"the web server cannot be reached: {error.os_error.strerror or error.os_error}"
        case TimeoutError():
            return f"the web server sent nothing for {_WEB_TIMEOUT_S:.0f} s"
        case _:
            return f"the web server did not send the whole file ({type(error).__name__})"
