"""Runs hosts that keep a client busy, in a separate process, so that they do not slow down the client's event loop.

with flooding(range(8)) as flood:
    flood.url("interim", row=17)
"""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.integration.web import response

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 80

_ENDLESS: dict[str, tuple[bytes, bytes]] = {  # first bytes, then bytes repeated forever
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000),
    "early-hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * 500),
    "fields": (b"HTTP/1.1 200 OK\r\n", b"X-Filler: abcdefghijklmnopqrstuvwxyz\r\n" * 1_500),
    "line": (b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x" * 60_000),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\xff\xd8\xff\xe0\r\n",
        b"1\r\nx\r\n" * 10_000,
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\xff\xd8\xff\xe0\r\n0\r\n",
        b"X-Filler: abcdefghijklmnopqrstuvwxyz\r\n" * 1_500,
    ),
}
_DRIPPING: dict[str, tuple[bytes, bytes]] = {  # first bytes, then bytes five times a second
    "drip": (b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + PICTURE[:1000], b"x"),
    "drip-head": (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "interim-drip": (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "silent": (b"", b""),
    "tls": (b"\x16\x03\x03\x40\x00", b"\x02"),  # a handshake record that never ends
}
_DRIP_S = 0.2

KINDS = (*_DRIPPING, *_ENDLESS)


async def _serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            await _answer(await _kind_of_request(reader), writer)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.close()


async def _kind_of_request(reader: asyncio.StreamReader) -> str:
    first = await reader.readexactly(1)
    if first == b"\x16":  # a TLS handshake
        return "tls"
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b" ")[1].decode().split("/")[1]


async def _answer(kind: str, writer: asyncio.StreamWriter) -> None:
    if kind == "good":
        writer.write(response(PICTURE))
        return
    first, more = _ENDLESS.get(kind) or _DRIPPING[kind]
    writer.write(first)
    while True:
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0 if kind in _ENDLESS else _DRIP_S)


def _address(number: int) -> str:
    return f"127.0.{2 + number // 200}.{1 + number % 200}"


def _serve(hosts: range, ready: Connection) -> None:
    async def run() -> None:
        server = await asyncio.start_server(_serve_connection, _address(hosts[0]), 0, backlog=4096)
        port = server.sockets[0].getsockname()[1]
        others = [
            await asyncio.start_server(_serve_connection, _address(number), port, backlog=4096) for number in hosts[1:]
        ]
        ready.send(port)
        await asyncio.gather(server.serve_forever(), *(other.serve_forever() for other in others))

    asyncio.run(run())


@dataclass(frozen=True)
class Flood:
    """Running hosts, by number."""

    hosts: range
    port: int

    def url(self, kind: str, row: int) -> str:
        """The URL of a row. `kind`: `good`, or one of KINDS. Rows are spread over the hosts."""
        scheme = "https" if kind == "tls" else "http"
        return f"{scheme}://{_address(self.hosts[row % len(self.hosts)])}:{self.port}/{kind}/{row}.jpg"


@contextmanager
def flooding(hosts: range) -> Iterator[Flood]:
    """Run hosts with these numbers, on loopback addresses, that serve every kind of response."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(hosts, there), daemon=True)
    process.start()
    there.close()  # so that `recv` fails if the process ends before it sends anything
    try:
        yield Flood(hosts, here.recv())
    finally:
        process.terminate()
        process.join()
