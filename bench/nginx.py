"""Runs nginx as a stand-in for the web in benchmarks: static files on many loopback addresses, with optional latency
and dead hosts.

Needs Debian's `nginx` (`apt-get install nginx-light`). Silent hosts are sockets that accept connections but never
respond.
"""

import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000; default_type application/octet-stream;
  types {{ image/jpeg jpg; image/png png; image/webp webp; image/gif gif; }}
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ {listen} {tls} root {root}; }}
}}
"""


@contextmanager
def nginx(root: Path, num_hosts: int = 200, certificate: Path | None = None) -> Iterator[list[str]]:
    """Serve the files of a folder on `num_hosts` loopback addresses. Yields their base URLs.

    `certificate`: a PEM file with key and chain. If given, nginx serves over TLS, with session tickets (its default).
    """
    hosts = [f"127.0.{2 + n // 200}.{1 + n % 200}" for n in range(num_hosts)]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ssl = " ssl" if certificate else ""
        listen = " ".join(f"listen {host}:{port} backlog=4096{ssl};" for host in hosts)
        tls = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};" if certificate else ""
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(folder=folder, listen=listen, tls=tls, root=root))
        process = subprocess.Popen(["nginx", "-p", folder, "-c", str(config)], stderr=subprocess.DEVNULL)
        try:
            _wait_for(hosts[-1], port)
            scheme = "https" if certificate else "http"
            yield [f"{scheme}://{host}:{port}" for host in hosts]
        finally:
            process.terminate()
            process.wait()


def _wait_for(host: str, port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("nginx did not start; is it installed?")


@contextmanager
def silent_hosts(num_hosts: int) -> Iterator[list[str]]:
    """Run hosts that accept connections but never answer. Yields their base URLs."""
    listeners = [socket.create_server((f"127.0.9.{1 + n}", 0), backlog=4096) for n in range(num_hosts)]
    held: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    threads = [threading.Thread(target=accept, args=(listener,), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        yield ["http://{}:{}".format(*listener.getsockname()) for listener in listeners]
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in held:
            connection.close()


@contextmanager
def delaying_proxies(bases: Sequence[str], delays_s: Sequence[float]) -> Iterator[list[str]]:
    """For each base URL, run a proxy that delays every request. Yields the base URLs of the proxies."""
    import asyncio
    import multiprocessing

    def serve(ready: object) -> None:
        async def handle(delay_s: float, base: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, _, port = base.removeprefix("http://").partition(":")
            try:
                upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
                while head := await reader.readuntil(b"\r\n\r\n"):
                    await asyncio.sleep(delay_s)
                    upstream_writer.write(head)
                    answer = await upstream_reader.readuntil(b"\r\n\r\n")
                    length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                    writer.write(answer)
                    while length:
                        chunk = await upstream_reader.read(min(length, 1 << 16))
                        length -= len(chunk)
                        writer.write(chunk)
                        await writer.drain()
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        async def run() -> None:
            ports = []
            for number, (base, delay_s) in enumerate(zip(bases, delays_s, strict=True)):
                server = await asyncio.start_server(
                    partial(handle, delay_s, base),
                    f"127.0.{20 + number // 200}.{1 + number % 200}",
                    0,
                    backlog=4096,
                )
                ports.append("http://{}:{}".format(*server.sockets[0].getsockname()))
            ready.send(ports)  # type: ignore[attr-defined]
            await asyncio.Event().wait()

        asyncio.run(run())

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()
