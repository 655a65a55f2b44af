"""Sends GET requests over HTTP/1.1, on connections to allowed addresses that are kept alive for a while.

    async with client.get(url, deadline) as response:
        response.head.status, response.head.get("location")
        async for chunk in response.chunks(): ...

Any fault of a server raises FetchError; a lack of resources on this machine raises LocalFault. See
docs/decisions/011-http-client.md for why we have our own client.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import aiohappyeyeballs

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.url_parser import HttpUrl
from pairmill.pipeline.fetch.addresses import MAX_ADDRESSES, AddressGuard, is_ipv4
from pairmill.pipeline.fetch.deadline import Deadline
from pairmill.pipeline.fetch.dns import AddressRefused
from pairmill.pipeline.fetch.http_connection import HttpConnection, describe_os_error
from pairmill.pipeline.fetch.http_response import ResponseHead, ResponseParser
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.resolver import GuardedResolver
from pairmill.pipeline.fetch.stall_monitor import StallMonitor
from pairmill.pipeline.fetch.tls import tls_context
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.status import Status

_KEEP_ALIVE_S = 15.0  # some servers close earlier, others later: nginx after 75 by default, Apache after 5
_HAPPY_EYEBALLS_DELAY_S = 0.25  # RFC 8305 section 8
_IDLE_TOO_LONG = 408  # RFC 9110 section 15.5.9: the server gave up waiting before it saw the request


class Response:
    """A response whose body has not been read yet."""

    def __init__(self, head: ResponseHead, parser: ResponseParser, connection: HttpConnection, first: bytes) -> None:
        self.head = head
        self.parser = parser
        self._connection = connection
        self._first = first

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises FetchError (body_truncated, protocol_error)."""
        chunk, self._first = self._first, b""
        while True:
            if chunk:
                yield chunk
            self.parser.raise_failure()
            if self.parser.complete:
                return
            chunk = await self._connection.read_into(self.parser)

    async def read_prefix(self, max_bytes: int) -> bytes:
        """The first `max_bytes` of the body; does not read the rest."""
        prefix = b""
        async for chunk in self.chunks():
            prefix += chunk
            if len(prefix) >= max_bytes:
                break
        return prefix[:max_bytes]


class HttpClient:
    """Sends GET requests, all with the same header fields. For one event loop, not thread-safe."""

    def __init__(
        self, config: FetchConfig, guard: AddressGuard, resolver: GuardedResolver, stalls: StallMonitor
    ) -> None:
        self._stalls = stalls
        self._connect_timeout_s = config.connect_timeout_s
        self._max_open = config.concurrency
        self._num_requests = 0
        self._idle = _IdleConnections()
        self._socket_factory = partial(open_allowed_socket, guard)
        self._resolver = resolver
        self._tls = tls_context()
        self._fields = (
            f"User-Agent: {config.user_agent}\r\nAccept: image/*,*/*;q=0.8\r\nAccept-Encoding: identity\r\n\r\n"
        )

    @asynccontextmanager
    async def get(self, url: HttpUrl, deadline: Deadline) -> AsyncIterator[Response]:
        """Send a request and wait for the head of the final response. Raises FetchError and LocalFault.

        Pauses the URL's deadline while its name is looked up, because look-ups wait for each other and have their own.

        Leaving the `async with` block before the body is complete closes the connection, so no more bytes are read.
        Idle connections are closed, oldest first, to have at most `fetch.concurrency` connections open.
        """
        self._num_requests += 1
        try:
            connection, response = await self._request(url, deadline)
            try:
                yield response
            finally:
                if response.parser.reusable and connection.is_open:  # bytes that arrive from now on end the connection
                    self._idle.keep(url.origin, connection)
                else:
                    connection.abort()
        finally:
            self._num_requests -= 1
            self._make_room()

    def _make_room(self) -> None:
        self._idle.trim(self._max_open - self._num_requests)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._idle.close()

    async def _request(self, url: HttpUrl, deadline: Deadline) -> tuple[HttpConnection, Response]:
        request = f"GET {url.target} HTTP/1.1\r\nHost: {url.authority}\r\n{self._fields}".encode()
        if (kept := self._idle.take(url.origin)) is not None:
            try:
                response = await _exchange(kept, request)
                if response.head.status != _IDLE_TOO_LONG:
                    return kept, response
                kept.abort()
            except FetchError:
                # The server may have closed the idle connection, or sent something after its last response (RFC 9112
                # section 9.3.1). Only a new connection can return the response to this request.
                pass
        connection = await self._connect(url, deadline)
        return connection, await _exchange(connection, request)

    async def _connect(self, url: HttpUrl, deadline: Deadline) -> HttpConnection:
        self._make_room()
        name = url.name
        addresses = [name] if is_ipv4(name) or ":" in name else _to_try(await self._resolve(name, deadline))
        infos = [
            (
                (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, url.port, 0, 0))
                if ":" in address
                else (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, url.port))
            )
            for address in addresses
        ]
        try:
            async with Deadline(self._connect_timeout_s, self._stalls):
                sock = await aiohappyeyeballs.start_connection(
                    infos, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S, socket_factory=self._socket_factory
                )
                return await HttpConnection.over(sock, self._tls if url.scheme == "https" else None, name)
        except TimeoutError as error:
            raise FetchError(Status.TIMEOUT, f"no connection within {self._connect_timeout_s:g} s") from error
        except OSError as error:  # includes ssl.SSLError
            raise _connect_error(error) from error

    async def _resolve(self, name: str, deadline: Deadline) -> list[str]:
        try:
            with deadline.paused():
                return await self._resolver.resolve(name)
        except AddressRefused as error:
            raise FetchError(Status.ADDRESS_REFUSED, str(error)) from error
        except OSError as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            raise FetchError(Status.DNS_ERROR, str(error)) from error


def _to_try(addresses: Sequence[str]) -> list[str]:
    """The first few addresses, in order, from both families if both are present."""
    distinct = list(dict.fromkeys(addresses))
    ipv6 = [address for address in distinct if ":" in address]
    ipv4 = [address for address in distinct if ":" not in address]
    half = MAX_ADDRESSES // 2
    kept = {*ipv6[: max(half, MAX_ADDRESSES - len(ipv4))], *ipv4[: max(half, MAX_ADDRESSES - len(ipv6))]}
    return [address for address in distinct if address in kept]


class _IdleConnections:
    """Keeps idle connections, each for at most `_KEEP_ALIVE_S`, and prefers recent ones."""

    def __init__(self) -> None:
        self._since: dict[HttpConnection, tuple[float, str]] = {}  # oldest first: (loop's time, origin)
        self._by_origin: dict[str, list[HttpConnection]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None

    def keep(self, origin: str, connection: HttpConnection) -> None:
        """Keep a connection."""
        connection.idle()
        loop = asyncio.get_running_loop()
        self._since[connection] = loop.time(), origin
        self._by_origin.setdefault(origin, []).append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(_KEEP_ALIVE_S, self._sweep, loop)

    def take(self, origin: str) -> HttpConnection | None:
        """Take the most recent connection that is still open; None if there is none."""
        while kept := self._by_origin.get(origin):
            connection = self._remove(kept[-1])
            if connection.is_quiet:
                return connection
            connection.abort()
        return None

    def trim(self, limit: int) -> None:
        """Close the oldest connections, so that at most `limit` remain."""
        while len(self._since) > max(0, limit):
            self._remove(next(iter(self._since))).abort()

    def close(self) -> None:
        """Close all connections."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for connection in list(self._since):
            self._remove(connection).abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections whose time is up, and schedule the next sweep for the one that expires next."""
        self._sweep_timer = None
        while self._since:
            connection, (since, _) = next(iter(self._since.items()))
            if since + _KEEP_ALIVE_S > loop.time():
                self._sweep_timer = loop.call_at(since + _KEEP_ALIVE_S, self._sweep, loop)
                return
            self._remove(connection).abort()

    def _remove(self, connection: HttpConnection) -> HttpConnection:
        _, origin = self._since.pop(connection)
        kept = self._by_origin[origin]
        kept.remove(connection)
        if not kept:
            del self._by_origin[origin]
        return connection


async def _exchange(connection: HttpConnection, request: bytes) -> Response:
    """Send a request and read the head of its final response. Closes the connection on failure."""
    parser, first = ResponseParser(), b""
    try:
        connection.send(request)
        while parser.head is None:
            parser.raise_failure()
            first = await connection.read_into(parser)
    except BaseException:  # including the deadline
        connection.abort()
        raise
    return Response(parser.head, parser, connection, first)


def _connect_error(error: OSError) -> FetchError:
    if (fault := local_fault(error)) is not None:
        raise fault from error
    if isinstance(error, AddressRefused):
        return FetchError(Status.ADDRESS_REFUSED, str(error))
    status = Status.TLS_ERROR if isinstance(error, ssl.SSLError) else Status.CONNECT_ERROR
    return FetchError(status, describe_os_error(error))


def open_allowed_socket(guard: AddressGuard, info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
    """Check an address one last time, and return a new socket for it. Raises AddressRefused."""
    family, kind, protocol, _, address = info
    if (refusal := guard.refusal(str(address[0]))) is not None:
        raise AddressRefused(refusal)
    return socket.socket(family, kind, protocol)
