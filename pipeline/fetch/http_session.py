"""The HTTP session behind the fetcher: its limits, and how its exceptions become a Status."""

import resource
import socket
import ssl
from functools import partial

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from pairmill.pipeline.common.faults import LocalFault, local_fault
from pairmill.pipeline.fetch.addresses import AddressGuard
from pairmill.pipeline.fetch.dns import AddressRefused
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.resolver import GuardedResolver
from pairmill.schemas.jobs import FetchConfig
from pairmill.schemas.status import Status

_MAX_HEADER_BYTES = 8190  # per header and for the status line; aiohttp's default, and Apache's LimitRequestFieldSize
_KEEP_ALIVE_S = 2.0  # with thousands of hosts, idle sockets must not use up the limit of open files
_OTHER_FILES = 256  # name look-ups, Python's own, Ray's

# The first that matches counts, so narrow types come before wide ones.
_STATUS_OF: tuple[tuple[type[Exception], Status], ...] = (
    (aiohttp.InvalidURL, Status.URL_INVALID),
    (aiohttp.ClientConnectorDNSError, Status.DNS_ERROR),
    (aiohttp.ClientSSLError, Status.TLS_ERROR),  # certificates too
    (ssl.SSLError, Status.TLS_ERROR),
    (aiohttp.ServerTimeoutError, Status.TIMEOUT),
    (aiohttp.ClientConnectorError, Status.CONNECT_ERROR),
    (aiohttp.ClientPayloadError, Status.BODY_TRUNCATED),  # Content-Length or last chunk not reached
    (aiohttp.ClientResponseError, Status.PROTOCOL_ERROR),
    (HttpProcessingError, Status.PROTOCOL_ERROR),
    (aiohttp.ClientConnectionError, Status.CONNECTION_LOST),
    (ConnectionError, Status.CONNECTION_LOST),
    (aiohttp.ClientError, Status.PROTOCOL_ERROR),
)
CLIENT_ERRORS = tuple(kind for kind, _ in _STATUS_OF)
"""The exceptions that `fetch_error` understands."""


def raise_file_limit(concurrency: int) -> None:
    """Let this process open as many files as so many requests at a time need. Raises LocalFault if it may not."""
    required = 2 * concurrency + _OTHER_FILES  # half of the connections are idle, kept alive
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < required:
        raise LocalFault(f"at most {hard} open files are allowed here; fetch.concurrency needs {required}: lower it")
    if soft != resource.RLIM_INFINITY and soft < required:
        resource.setrlimit(resource.RLIMIT_NOFILE, (required, hard))


def open_session(config: FetchConfig, guard: AddressGuard, resolver: GuardedResolver) -> aiohttp.ClientSession:
    """A session that connects only to allowed addresses."""
    connector = aiohttp.TCPConnector(
        limit=0,  # HostLimiter counts
        use_dns_cache=False,  # GuardedResolver has one that caches failures too
        resolver=resolver,
        socket_factory=partial(open_allowed_socket, guard),
        keepalive_timeout=_KEEP_ALIVE_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
        headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
    )


def open_allowed_socket(guard: AddressGuard, info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for this address: the last step before connecting, for every connection. Raises AddressRefused."""
    family, kind, protocol, _, address = info
    if (refusal := guard.refusal(str(address[0]))) is not None:
        raise AddressRefused(refusal)
    return socket.socket(family, kind, protocol)


async def read_prefix(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The first bytes of a body; the rest is not read."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size >= max_bytes:
            break
    return b"".join(chunks)[:max_bytes]


def fetch_error(error: Exception) -> FetchError:
    """The Status of one of CLIENT_ERRORS, with the message of its innermost cause. Raises LocalFault."""
    cause = getattr(error, "os_error", error)
    if (fault := local_fault(cause)) is not None:
        raise fault from error
    if isinstance(cause, AddressRefused):
        return FetchError(Status.ADDRESS_REFUSED, str(cause))
    status = next(status for kind, status in _STATUS_OF if isinstance(error, kind))
    message = getattr(cause, "message", None) or getattr(cause, "strerror", None) or cause
    return FetchError(status, str(message) or type(error).__name__)
