"""Runs a fast static web server for benchmarks: one process, keep-alive, bodies from memory."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection


class _Server(asyncio.Protocol):
    def __init__(self, bodies: list[bytes]) -> None:
        self.bodies = bodies
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            request, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            number = int(request.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
            body = self.bodies[number % len(self.bodies)]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            self.transport.writelines([head.encode(), body])


def _serve(bodies: list[bytes], hosts: list[str], ready: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Server(bodies), hosts[0], 0, backlog=4096)
        port = server.sockets[0].getsockname()[1]
        for host in hosts[1:]:
            await asyncio.get_running_loop().create_server(lambda: _Server(bodies), host, port, backlog=4096)
        ready.send(port)
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def serving(bodies: list[bytes], num_hosts: int = 64) -> Iterator[list[str]]:
    """Serve `bodies[n % len]` at `/n.jpg` on `num_hosts` loopback addresses. Yields their base URLs."""
    hosts = [f"127.0.{1 + n // 200}.{1 + n % 200}" for n in range(num_hosts)]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(bodies, hosts, there), daemon=True)
    process.start()
    try:
        port = here.recv()
        yield [f"http://{host}:{port}" for host in hosts]
    finally:
        process.terminate()
        process.join()
