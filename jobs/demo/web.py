"""Runs the demo's web server. On many loopback addresses, it serves pictures that it draws on request, and fails on
purpose in many ways.

    with demo_web(seed=2026, pairs=2400) as web:
        ...                                     # a separate process serves until the end of the block

The server is `python -m pairmill.jobs.demo.web SEED PAIRS`. It prints its ports as one line of JSON on stdout,
and exits when its stdin closes, so it does not outlive its parent.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO

from PIL import ExifTags, Image

from pairmill.jobs.demo.pairs import LARGE_SIZES, SIZES, DemoRow, Web, demo_pairs
from pairmill.pipeline.encode.tiny.draw import render
from pairmill.schemas.errors import JobError

NUM_HOSTS = 40
_BIND_TRIES = 20
_FOREVER_S = 3_600
_SMALL_SIZE = (48, 40)
_FORMATS = {"png": "PNG", "webp": "WEBP", "gif": "GIF"}
_PAGE = b"<!doctype html><html><head><title>Gallery</title></head><body><p>Please sign in.</p></body></html>"
_REASONS = {200: "OK", 302: "Found", 404: "Not Found", 410: "Gone", 500: "Internal Server Error", 503: "Busy"}
_FAILURES = {"not_found": 404, "gone": 410, "server_error": 500}


@contextmanager
def demo_web(seed: int, pairs: int) -> Iterator[Web]:
    """Run the server in a separate process for the duration of the block. Raises JobError if it cannot start."""
    # -P: do not import, for example, a random.py from the current directory. The `pairmill` command does not either.
    command = [sys.executable, "-P", "-m", "pairmill.jobs.demo.web", str(seed), str(pairs)]
    # In a new session, so that Ctrl-C stops only the build, which may still have requests in flight.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            line = process.stdout.readline()
            if not line:
                raise JobError("the demo's web server did not start; see its message above")
            web = json.loads(line)
            yield Web(web["port"], web["dead_port"], tuple(web["hosts"]))
        finally:
            process.stdin.close()
            process.terminate()


def picture_body(row: DemoRow, seed: int) -> bytes:
    """The file behind the row's URL, drawn from the seed on every request."""
    rng = row.rng(seed, "picture")
    width, height = rng.choice(LARGE_SIZES if rng.random() < 0.05 else SIZES)
    if row.kind == "too_small":
        width, height = _SMALL_SIZE
    picture, options = render(row.scene, rng, width, height), {}
    if row.kind == "exif_turned":
        # 6: rotate by 90 degrees clockwise for display (EXIF 2.3, tag 0x0112).
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        options["exif"] = exif
    if row.kind == "cmyk":
        picture = picture.convert("CMYK")
    file = BytesIO()
    picture.save(file, _FORMATS.get(row.kind, "JPEG"), quality=88, compress_level=1, method=1, **options)
    return _damage(file.getvalue(), row, seed)


def _damage(body: bytes, row: DemoRow, seed: int) -> bytes:
    if row.kind == "half_a_file":
        return body[: len(body) // 2]
    if row.kind == "corrupt":
        return b"\xff\xd8\xff\xe0" + row.rng(seed, "noise").randbytes(4_000)
    return body


class _Server:
    """Serves rows by the number in the path: `/pictures/000123.jpg`, and `/moved/000123.jpg` after a redirect."""

    def __init__(self, rows: list[DemoRow], seed: int, web: Web) -> None:
        self.rows = rows
        self.seed = seed
        self.web = web
        self.asked: set[int] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it or a response requires closing it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1].decode("latin-1")
                if not await self._answer(target, writer):
                    return
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            return
        finally:
            writer.close()

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> bool:
        """Write the response. Returns False if the connection must be closed after it."""
        folder, _, name = target.strip("/").partition("/")
        number = name.partition(".")[0]
        if folder not in ("pictures", "moved") or not number.isdecimal() or int(number) >= len(self.rows):
            writer.write(_answer(404, b"nothing here", "text/plain"))
            return True
        row = self.rows[int(number)]
        if row.kind == "hangs":
            await asyncio.sleep(_FOREVER_S)
        if row.kind == "cut_short":
            body = picture_body(row, self.seed)
            writer.write(_head(200, "image/jpeg", len(body)) + body[: len(body) // 2])
            await writer.drain()
            return False
        writer.write(self._whole_answer(row, moved=folder == "moved"))
        return True

    def _whole_answer(self, row: DemoRow, moved: bool) -> bytes:
        if row.kind in _FAILURES:
            return _answer(_FAILURES[row.kind], b"no picture here", "text/plain")
        if row.kind == "html":
            return _answer(200, _PAGE, "text/html" if row.index % 2 else "image/jpeg")
        if row.kind == "redirect" and not moved:
            host = self.web.hosts[row.index % len(self.web.hosts)]
            return _answer(302, b"", "text/plain", f"Location: http://{host}:{self.web.port}/moved/{row.index:06d}.jpg")
        if row.kind == "flaky" and row.index not in self.asked:
            self.asked.add(row.index)
            return _answer(503, b"try again", "text/plain", "Retry-After: 0")
        headers = ("X-Robots-Tag: noai",) if row.kind == "opted_out" else ()
        return _answer(200, picture_body(row, self.seed), Image.MIME[_FORMATS.get(row.kind, "JPEG")], *headers)


def _head(status: int, content_type: str, length: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Type: {content_type}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n"


def _answer(status: int, body: bytes, content_type: str, *headers: str) -> bytes:
    return _head(status, content_type, len(body), *headers) + body


def _hosts() -> list[str]:
    """Loopback addresses to serve on. Only on Linux can a server bind to any address in 127.0.0.0/8 by default."""
    hosts = [f"127.{20 + number // 8}.{number % 8}.10" for number in range(NUM_HOSTS)]
    with socket.socket() as probe:
        try:
            probe.bind((hosts[0], 0))
        except OSError:
            return ["127.0.0.1"]
    return hosts


def _open_sockets() -> tuple[list[socket.socket], socket.socket, Web]:
    """One bound socket per host, all on the same free port, and one that reserves the dead port without listening."""
    hosts = _hosts()
    for _ in range(_BIND_TRIES):
        sockets: list[socket.socket] = []
        try:
            for host in hosts:
                sockets.append(socket.socket())
                sockets[-1].bind((host, sockets[0].getsockname()[1] if len(sockets) > 1 else 0))
        except OSError:  # the port is taken on one of the addresses
            for opened in sockets:
                opened.close()
            continue
        dead = socket.socket()
        dead.bind((hosts[0], 0))
        return sockets, dead, Web(sockets[0].getsockname()[1], dead.getsockname()[1], tuple(hosts))
    raise OSError(f"no port is free on all {len(hosts)} loopback addresses")


async def _serve(seed: int, pairs: int) -> None:
    sockets, dead, web = _open_sockets()
    with dead:
        server = _Server(demo_pairs(seed, pairs, web), seed, web)
        for opened in sockets:
            await asyncio.start_server(server.connected, sock=opened, backlog=256)
        print(json.dumps(asdict(web)), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)  # returns when the parent closes its end or dies


def main() -> None:
    """Entry point of the server's process."""
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
