"""Wraps one connection: sends requests, receives bytes, and ends if bytes arrive while it is idle."""

import asyncio
import select
import socket
import ssl
from typing import cast

from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.fetch.http_response import ResponseParser
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.schemas.status import Status

_MAX_BUFFERED_BYTES = 256 << 10
"""Reading pauses while this many bytes are waiting to be parsed."""


class HttpConnection(asyncio.Protocol):
    """A connected socket, with or without TLS."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received: list[bytes] = []
        self._num_received = 0
        self._ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._is_idle = False

    @classmethod
    async def over(cls, sock: socket.socket, tls: ssl.SSLContext | None, name: str) -> "HttpConnection":
        """A connection over a connected socket. With TLS, the certificate must be for `name`. Raises OSError, such as
        ssl.SSLError."""
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, sock=sock, ssl=tls, server_hostname=name if tls else None)
        return protocol

    @property
    def is_open(self) -> bool:
        """True while the connection is open and there are no unread bytes, as far as the event loop knows."""
        transport = self._transport
        return transport is not None and not (self._ended or self._received or transport.is_closing())

    @property
    def is_quiet(self) -> bool:
        """True while the connection is open and there are no unread bytes, not even in the socket's buffer."""
        if self._transport is None or not self.is_open:
            return False
        sock = self._transport.get_extra_info("socket")
        return sock is None or not _is_readable(sock.fileno())

    def send(self, request: bytes) -> None:
        """Send a request. Failures surface when its response is read."""
        self._is_idle = False
        if self._transport is not None:
            self._transport.write(request)

    async def read_into(self, parser: ResponseParser) -> bytes:
        """Wait for bytes and parse them. Returns the part of the body that they contain. Raises FetchError and
        LocalFault."""
        while not self._received:
            if self._error is not None:
                raise _read_error(self._error, within_body=parser.head is not None) from self._error
            if self._ended:
                parser.feed_eof()
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._received[0] if len(self._received) == 1 else b"".join(self._received)
        self._received.clear()
        if self._num_received >= _MAX_BUFFERED_BYTES and self._transport is not None and not self._ended:
            self._transport.resume_reading()
        self._num_received = 0
        return parser.feed(data)

    def idle(self) -> None:
        """Mark the connection as idle. Bytes that arrive from now on belong to no request, so they end it."""
        self._is_idle = True

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if self._is_idle:
            self.abort()
            return
        self._received.append(data)
        is_first_above = self._num_received < _MAX_BUFFERED_BYTES <= self._num_received + len(data)
        self._num_received += len(data)
        if is_first_above and self._transport is not None:
            self._transport.pause_reading()
        self._changed.set()

    def eof_received(self) -> None:
        """Part of asyncio.Protocol: the transport closes itself."""
        self._ended = True
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._error = None if self._ended else exc
        self._ended = True
        self._changed.set()


def _is_readable(file_number: int) -> bool:
    poll = select.poll()  # select() itself is limited to 1,024 files
    poll.register(file_number, select.POLLIN)
    return bool(poll.poll(0))


def _read_error(error: Exception, within_body: bool) -> FetchError:
    if (fault := local_fault(error)) is not None:
        raise fault from error
    if within_body:
        return FetchError(Status.BODY_TRUNCATED, describe_os_error(error))
    status = Status.TLS_ERROR if isinstance(error, ssl.SSLError) else Status.CONNECTION_LOST
    return FetchError(status, describe_os_error(error))


def describe_os_error(error: Exception) -> str:
    """The message from the operating system or the TLS library."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
