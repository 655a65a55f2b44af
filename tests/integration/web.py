"""Runs a hostile web server on loopback: raw asyncio sockets, so that it can break every rule of HTTP.

    with HostileWeb() as web:
        web.serve("/a.jpg", b"...")                      # a well-behaved response
        web.route("/slow", async_handler)                # anything else: handler(request, writer)
        web.url("/a.jpg"), web.hits["/a.jpg"], web.connections

Handlers run on the server's own thread. Leaving the block closes every connection.
"""

import asyncio
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Request:
    """What a client sent: the target, unchanged, and the headers, with lower-case names."""

    target: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def response(
    body: bytes = b"",
    status: str = "200 OK",
    headers: Mapping[str, str] | list[tuple[str, str]] = (),  # type: ignore[assignment]
    length: int | None = None,
) -> bytes:
    """A whole HTTP/1.1 response. `length` overrides the body's Content-Length."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    pairs.append(("Content-Length", str(len(body) if length is None else length)))
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """A response that redirects the client."""
    return response(b"", status, {"Location": location})


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, as a crashed server or a middlebox does."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class HostileWeb:
    """The server: one thread, one event loop, one port on 127.0.0.1 (or another loopback address)."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.hits: Counter[str] = Counter()
        self.connections = 0
        self.open_connections = 0
        self.requests: list[Request] = []
        self.max_concurrent: Counter[str] = Counter()  # maximum number of simultaneous requests, by path
        self._host = host
        self._tls = tls
        self._running: Counter[str] = Counter()
        self._routes: dict[str, Handler] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile-web", daemon=True)

    def __enter__(self) -> "HostileWeb":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def url(self, path: str, host: str | None = None) -> str:
        """URL of a path on this server."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{host or self._host}:{self.port}{path}"

    def serve(
        self, path: str, body: bytes, content_type: str = "image/jpeg", headers: Mapping[str, str] | None = None
    ) -> str:
        """Respond to `path` with a body; returns its URL."""
        return self.send(path, response(body, headers={"Content-Type": content_type, **(headers or {})}))

    def send(self, path: str, *pieces: bytes | float, then_close: bool = False) -> str:
        """Respond to `path` with raw bytes; a number among them is a pause in seconds. Returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            for piece in pieces:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
            if then_close:
                writer.close()

        return self.route(path, handler)

    def route(self, path: str, handler: Handler) -> str:
        """Answer `path` (`*`: every path without a route) with a handler; returns its URL."""
        self._routes[path] = handler
        return self.url(path)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, self._host, 0, limit=1 << 20, ssl=self._tls)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # lets transports close

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while not writer.is_closing():
                request = await _read_request(reader)
                if request is None:
                    break
                await self._handle(request, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.path
        self.requests.append(request)
        self.hits[path] += 1
        self._running[path] += 1
        self.max_concurrent[path] = max(self.max_concurrent[path], self._running[path])
        try:
            handler = self._routes.get(path) or self._routes.get("*")
            if handler is None:
                writer.write(response(b"nothing here", "404 Not Found", {"Content-Type": "text/plain"}))
            else:
                await handler(request, writer)
        finally:
            self._running[path] -= 1


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    request = Request(first.split(" ")[1])
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            request.headers[name.strip().lower()] = value.strip()
    return request
