"""Runs a real S3 server (moto's, in its own process), behind a proxy that counts requests and injects faults."""

import asyncio
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_UPLOAD = "<Error><Code>NoSuchUpload</Code><Message>The specified upload does not exist.</Message></Error>"
DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
MAX_BODY_BYTES = 1 << 30
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-be-seen",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Faults:
    """Faults to inject from now on. Each rate is a fraction of the requests."""

    slow_down: float = 0.0
    """The share of requests that are answered with 503 SlowDown."""
    reset: float = 0.0
    """The share of requests whose connection is cut before the server sees them."""
    lost_replies: float = 0.0
    """The share of requests that the server executes, but whose connection is cut before the reply."""
    lose_reply_to: str | None = None
    """The server executes the next request whose method, path and query contain this text, but its reply is lost."""
    down: bool = False
    """Cut every connection immediately."""
    deny_writes: bool = False
    """Answer writes with 403 AccessDenied."""
    deny_lists: bool = False
    """Answer listings with 403 AccessDenied."""
    deny_reads_of: str | None = None
    """Answer with 403 AccessDenied if an object is read whose path contains this text."""


@dataclass
class FaultyS3:
    """A proxy for `target`; clients use `url`. `requests` counts requests by kind: LIST, GET, PUT, HEAD, POST,
    DELETE."""

    target: str
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    requests: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._done: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            self._ready.set()
            await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests[_kind(request)] += 1
        faults, drawn = self.faults, self._rng.random()
        if faults.down or drawn < faults.reset:
            return _cut(request)
        body = await request.read()
        if drawn < faults.reset + faults.slow_down:
            return web.Response(status=503, text=SLOW_DOWN, content_type="application/xml")
        if request.method == "POST" and f"POST {request.raw_path}" in self._done:  # like servers that forget uploads
            return web.Response(status=404, text=NO_UPLOAD, content_type="application/xml")
        is_denied = request.method in ("PUT", "POST") if faults.deny_writes else False
        if faults.deny_reads_of and _kind(request) in ("GET", "HEAD"):
            is_denied = faults.deny_reads_of in request.raw_path
        if is_denied or (faults.deny_lists and _kind(request) == "LIST"):
            return web.Response(status=403, text=DENIED, content_type="application/xml")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        target = f"{self.target}{request.raw_path}"
        async with self._session.request(
            request.method, _as_it_is(target), data=io.BytesIO(body), headers=headers, allow_redirects=False
        ) as reply:
            content = await reply.read()
            named = faults.lose_reply_to and faults.lose_reply_to in f"{request.method} {request.raw_path}"
            if named:
                faults.lose_reply_to = None
                self._done.add(f"{request.method} {request.raw_path}")
            if named or drawn > 1 - faults.lost_replies:
                return _cut(request)
            dropped = ("transfer-encoding", "content-length", "connection")
            passed = [(name, value) for name, value in reply.headers.items() if name.lower() not in dropped]
            if request.method != "HEAD":
                return web.Response(status=reply.status, body=content, headers=passed)
            return web.Response(
                status=reply.status, headers=[*passed, ("Content-Length", reply.headers.get("Content-Length", "0"))]
            )


def _as_it_is(url: str) -> URL:
    return URL(url, encoded=True)


def _kind(request: web.Request) -> str:
    if request.method == "GET" and ("list-type" in request.query or re.fullmatch(r"/[^/]+/?", request.path)):
        return "LIST"
    return request.method


def _cut(request: web.Request) -> web.Response:
    """Close the connection without a reply."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


_SERVER = """
import json, sys
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import main

bucket, names = json.load(sys.stdin)
backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
backend.create_bucket(bucket, "us-east-1")
for name in names:
    backend.put_object(bucket, name, b"{}")
main(sys.argv[1:])
"""


@contextmanager
def s3_server(bucket: str, names: Sequence[str] = ()) -> Iterator[str]:
    """Run moto's server in its own process, with a bucket that has an object with the content `{}` for each of
    `names`. Yields the server's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _SERVER, "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps([bucket, names]))
    process.stdin.close()
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{bucket}?max-keys=1").close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def credentials(endpoint: str | None = None) -> Iterator[None]:
    """Set credentials in the environment of this process, and therefore of its children."""
    wanted = {**CREDENTIALS, **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
