"""Defines http.client's connections with one time limit for all of a request: the TLS handshake, the head and the body.

A timeout of the socket alone starts again with each byte, so a server that sends one now and then would never end it.
"""

import http.client
import io
import select
import socket
import ssl
import time
from functools import partial
from typing import Any

from pairmill.pipeline.fetch.tls import tls_context


class TimedConnection(http.client.HTTPConnection):
    """Raises TimeoutError from any read `timeout` seconds after the connection object was made."""

    def __init__(self, host: str, timeout: float, **options: Any) -> None:
        super().__init__(host, timeout=timeout, **options)
        self.ends_at = time.monotonic() + timeout
        self.response_class = partial(_TimedResponse, ends_at=self.ends_at)  # type: ignore[assignment]


class TimedTlsConnection(TimedConnection, http.client.HTTPSConnection):
    """Like TimedConnection, over TLS."""

    def connect(self) -> None:
        """Connect, then shake hands in the time that is left."""
        http.client.HTTPConnection.connect(self)
        self.sock = tls_context().wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        _shake_hands(self.sock, self.ends_at)


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, ends_at: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, ends_at))


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, ends_at: float) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb", buffering=0)
        self._ends_at = ends_at

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._ends_at))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _shake_hands(sock: ssl.SSLSocket, ends_at: float) -> None:
    sock.setblocking(False)
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            select.select([sock], [], [], _left(ends_at))
        except ssl.SSLWantWriteError:
            select.select([], [sock], [], _left(ends_at))


def _left(ends_at: float) -> float:
    """Seconds until then. Raises TimeoutError if there are none."""
    if (seconds := ends_at - time.monotonic()) <= 0:
        raise TimeoutError("the server did not send everything in time")
    return seconds
