"""Tests Fetcher against hostile servers: each misbehavior has its Status, and none takes a long time."""

import asyncio
import datetime
import gzip
import ipaddress
import os
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pairmill.pipeline.fetch.byte_budget import ByteBudget
from pairmill.pipeline.fetch.fetch_url import Fetcher
from pairmill.pipeline.fetch.outcome import FetchOutcome
from pairmill.pipeline.rules import SourceRules
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.job.fetch import FetchConfig
from pairmill.schemas.status import Status
from tests.integration.web import HostileWeb, Request, redirect, reset, response

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8
HTML = b"<!DOCTYPE html><html><body>Sorry" + b"." * 3000


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        yield web


def config(**settings: Any) -> FetchConfig:
    defaults = {"allow_networks": ["127.0.0.0/8"], "timeout_s": 5, "connect_timeout_s": 2, "retries": 0}
    return FetchConfig(**{**defaults, **settings})


def fetch_all(urls: list[str], budget: ByteBudget | None = None, **settings: Any) -> list[FetchOutcome]:
    async def main() -> list[FetchOutcome]:
        async with Fetcher(config(**settings), budget or ByteBudget(1 << 28)) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(main())


def fetch(url: str, **settings: Any) -> FetchOutcome:
    (fetched,) = fetch_all([url], **settings)
    return fetched


def test_a_picture_is_fetched_with_the_details_of_its_response(web: HostileWeb) -> None:
    before = datetime.datetime.now(datetime.UTC)
    fetched = fetch(web.serve("/a.jpg", JPEG))
    assert (fetched.status, fetched.detail, fetched.body) == (Status.OK, None, JPEG)
    assert (fetched.http_status, fetched.content_type) == (200, "image/jpeg")
    assert (fetched.original_bytes, fetched.fetch_attempts) == (len(JPEG), 1)
    assert fetched.final_url == web.url("/a.jpg")
    assert 0 < fetched.fetch_s < 5
    assert before <= fetched.fetched_at <= datetime.datetime.now(datetime.UTC)


def test_requests_have_a_truthful_user_agent_and_no_credentials(web: HostileWeb) -> None:
    url = web.serve("/a.jpg", JPEG, headers={"Set-Cookie": "id=1"})
    fetch_all([url.replace("http://", "http://user:secret@"), url], user_agent="pairmill-test/1 (+https://example.org)")
    assert len(web.requests) == 2
    for request in web.requests:
        assert request.headers["user-agent"] == "pairmill-test/1 (+https://example.org)"
        assert request.headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization", "referer"} & set(request.headers)


def _endless(prefix: bytes) -> Callable[[Request, Any], Any]:
    async def handler(request: Request, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + prefix)
        while not writer.is_closing():
            writer.write(bytes(10_000))
            await writer.drain()
            await asyncio.sleep(0)

    return handler


async def _drip(request: Request, writer: Any) -> None:
    writer.write(response(JPEG, length=40_000))
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.05)


async def _reset_at_once(request: Request, writer: Any) -> None:
    reset(writer)


async def _reset_in_the_body(request: Request, writer: Any) -> None:
    writer.write(response(JPEG, length=40_000))
    await writer.drain()
    await asyncio.sleep(0.05)
    reset(writer)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE_CHUNK = b"%x\r\n%s\r\n" % (len(JPEG), JPEG)

MISBEHAVIORS: dict[str, tuple[Any, Status, str | None]] = {
    "chunked": ([CHUNKED + WHOLE_CHUNK + b"0\r\n\r\n"], Status.OK, None),
    "until-close": ([b"HTTP/1.0 200 OK\r\n\r\n" + JPEG, None], Status.OK, None),
    "packed-unasked": ([response(gzip.compress(JPEG), headers={"Content-Encoding": "gzip"})], Status.OK, None),
    "octet-stream": ([response(JPEG, headers={"Content-Type": "application/octet-stream"})], Status.OK, None),
    "slow-headers": ([b"HTTP/1.1 200 OK\r\n", 60.0], Status.TIMEOUT, "not done within 1 s"),
    "silent": ([60.0], Status.TIMEOUT, "not done within 1 s"),
    "drip": (_drip, Status.TIMEOUT, "not done within 1 s"),
    "endless": (_endless(JPEG), Status.BODY_TOO_LARGE, "more than 50000 bytes"),
    "endless-html": (_endless(HTML), Status.NOT_AN_IMAGE, "image/jpeg, looks like html"),
    "announced": ([response(JPEG, length=10**9)], Status.BODY_TOO_LARGE, "1000000000 bytes announced"),
    "reset": (_reset_at_once, Status.CONNECTION_LOST, None),
    "hang-up": ([b"", None], Status.CONNECTION_LOST, "Server disconnected"),
    "hang-up-in-headers": ([b"HTTP/1.1 200 OK\r\nContent-", None], Status.CONNECTION_LOST, None),
    "reset-in-body": (_reset_in_the_body, Status.BODY_TRUNCATED, None),
    "short": ([response(JPEG, length=len(JPEG) + 5), None], Status.BODY_TRUNCATED, None),
    "short-chunked": ([CHUNKED + WHOLE_CHUNK, None], Status.BODY_TRUNCATED, None),
    "bad-chunk": ([CHUNKED + b"zz\r\nhello", None], Status.PROTOCOL_ERROR, None),
    "empty": ([response(b"")], Status.EMPTY_BODY, None),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], Status.EMPTY_BODY, None),
    "html": (
        [response(HTML, headers={"Content-Type": "text/html"})],
        Status.NOT_AN_IMAGE,
        "text/html, looks like html",
    ),
    "svg": ([response(b"<svg xmlns='http://www.w3.org/2000/svg'/>")], Status.IMAGE_UNSUPPORTED, "svg"),
    "huge-header": ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"], Status.PROTOCOL_ERROR, None),
    "many-headers": ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n"], Status.PROTOCOL_ERROR, None),
    "endless-status-line": ([b"HTTP/1.1 200 " + b"O" * 400_000], Status.PROTOCOL_ERROR, None),
    "not-http": ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], Status.PROTOCOL_ERROR, None),
    "bad-length": ([b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"], Status.PROTOCOL_ERROR, None),
    "gzip-bomb": (
        [response(gzip.compress(JPEG + bytes(30_000_000)), headers={"Content-Encoding": "gzip"})],
        Status.BODY_TOO_LARGE,
        "more than 50000 bytes",
    ),
    "404": ([response(HTML, "404 Not Found")], Status.HTTP_4XX, None),
    "429": ([response(b"", "429 Too Many Requests")], Status.HTTP_429, None),
    "503": ([response(b"", "503 Service Unavailable")], Status.HTTP_5XX, None),
    "304": ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], Status.HTTP_OTHER, None),
    "206": ([response(JPEG, "206 Partial Content")], Status.HTTP_OTHER, None),
    "noai": ([response(JPEG, headers={"X-Robots-Tag": "noai"})], Status.OPTED_OUT, "X-Robots-Tag: noai"),
    "noai-second": (
        [response(JPEG, headers=[("X-Robots-Tag", "otherbot: noai"), ("x-robots-tag", "nofollow, NoImageIndex")])],
        Status.OPTED_OUT,
        "X-Robots-Tag: noimageindex",
    ),
    "noai-for-another": ([response(JPEG, headers={"X-Robots-Tag": "otherbot: noai"})], Status.OK, None),
    "redirect-nowhere": ([response(b"", "302 Found")], Status.BAD_REDIRECT, "no Location"),
    "redirect-loop": ([redirect("/misbehavior")], Status.BAD_REDIRECT, None),
    "redirect-metadata": (
        [redirect("http://169.254.169.254/latest/meta-data/")],
        Status.ADDRESS_REFUSED,
        "169.254.169.254 is not a public address",
    ),
    "redirect-loopback6": ([redirect("http://[::1]:80/")], Status.ADDRESS_REFUSED, "::1 is not a public address"),
    "redirect-decimal": (
        [redirect("http://2852039166/")],
        Status.ADDRESS_REFUSED,
        "2852039166 is an IPv4 address in a nonstandard form",
    ),
    "redirect-mapped": (
        [redirect("http://[::ffff:10.0.0.1]/")],
        Status.ADDRESS_REFUSED,
        f"{ipaddress.ip_address('::ffff:10.0.0.1')} leads to 10.0.0.1",  # Python 3.13 writes it differently
    ),
    "redirect-file": (
        [redirect("file:///etc/passwd")],
        Status.BAD_REDIRECT,
        "only http and https are fetched, not file:///etc/passwd",
    ),
    "redirect-junk": ([redirect("http://[")], Status.BAD_REDIRECT, None),
}


@pytest.mark.parametrize("name", MISBEHAVIORS)
def test_each_misbehavior_has_its_status_in_bounded_time_and_memory(web: HostileWeb, name: str) -> None:
    pieces, status, detail = MISBEHAVIORS[name]
    if callable(pieces):
        url = web.route("/misbehavior", pieces)
    else:
        url = web.send("/misbehavior", *(piece for piece in pieces if piece is not None), then_close=None in pieces)
    started = time.monotonic()
    tracemalloc.start()
    try:
        fetched = fetch(url, timeout_s=1, max_bytes=50_000)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 10
    assert most_bytes < 6_000_000  # of the client, the session and the server, which also runs in this process
    assert fetched.status is status, fetched
    if detail is not None:
        assert fetched.detail == detail
    assert len(fetched.detail or "") <= 200
    assert (fetched.body == JPEG) if status is Status.OK else (fetched.body is None)
    assert web.hits["/misbehavior"] == 1


def test_badly_encoded_headers_do_not_reach_the_columns(web: HostileWeb) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jp\xe9g\xff" + b"x" * 300 + b"\r\nContent-Length: %d\r\n\r\n"
    fetched = fetch(web.send("/a", head % len(JPEG) + JPEG))
    assert fetched.status is Status.OK
    assert fetched.content_type is not None
    assert len(fetched.content_type.encode()) <= 100


def test_early_refusal_closes_the_connection(web: HostileWeb) -> None:
    """The rest of an endless body is never read, not even while the session stays open."""
    sent = 0

    async def handler(request: Request, writer: Any) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + HTML)
        while not writer.is_closing():
            writer.write(bytes(1 << 16))
            sent += 1 << 16
            await writer.drain()

    async def main() -> None:
        async with Fetcher(config(timeout_s=30), ByteBudget(1 << 28)) as fetcher:
            assert (await fetcher.fetch(web.route("/a", handler))).status is Status.NOT_AN_IMAGE
            await asyncio.sleep(0.2)
            before = sent
            await asyncio.sleep(0.2)
            assert sent == before

    asyncio.run(main())
    assert sent < 20_000_000  # about the size of the socket buffers


def test_redirects_are_followed_to_the_end(web: HostileWeb) -> None:
    web.send("/1", redirect("/2", "301 Moved Permanently"))
    web.send("/2", redirect(web.url("/3"), "307 Temporary Redirect"))
    web.send("/3", redirect("picture.jpg?x=1#top", "308 Permanent Redirect"))
    web.serve("/picture.jpg", JPEG)
    fetched = fetch(web.url("/1"), max_redirects=3)
    assert (fetched.status, fetched.fetch_attempts) == (Status.OK, 1)
    assert fetched.final_url == web.url("/picture.jpg?x=1")
    too_many = fetch(web.url("/1"), max_redirects=2)
    assert (too_many.status, too_many.http_status) == (Status.BAD_REDIRECT, 308)
    assert fetch(web.url("/1"), max_redirects=0).detail == "more than 0 redirects"


@pytest.fixture
def forbidden() -> Iterator[HostileWeb]:
    """A server on a loopback address that the job does not allow."""
    with HostileWeb("127.0.0.2") as server:
        server.serve("/a.jpg", JPEG)
        yield server


def test_nothing_is_sent_to_a_refused_address(web: HostileWeb, forbidden: HostileWeb) -> None:
    web.send("/to-it", redirect(forbidden.url("/a.jpg")))
    port = forbidden.port
    urls = [
        forbidden.url("/a.jpg"),
        web.url("/to-it"),
        f"http://2130706434:{port}/a.jpg",
        f"http://0x7f000002:{port}/a.jpg",
        f"http://0177.0.0.2:{port}/a.jpg",
        f"http://127.2:{port}/a.jpg",
        f"http://[::ffff:127.0.0.2]:{port}/a.jpg",
        f"http://[::127.0.0.2]:{port}/a.jpg",
        f"http://localhost:{port}/a.jpg",
        f"https://127.0.0.2:{port}/a.jpg",
    ]
    only_the_first = ["127.0.0.1/32"]
    for url, fetched in zip(urls[:-2], fetch_all(urls[:-2], allow_networks=only_the_first), strict=True):
        assert fetched.status is Status.ADDRESS_REFUSED, url
    for url, fetched in zip(urls, fetch_all(urls, allow_networks=[]), strict=True):
        assert fetched.status is Status.ADDRESS_REFUSED, url
    assert forbidden.connections == 0
    assert fetch(forbidden.url("/a.jpg")).status is Status.OK  # the server does answer if its address is allowed


def test_addresses_are_checked_again_on_connecting(forbidden: HostileWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: even if a resolver lets a private address through, we do not connect to it."""

    async def lies(self: Any, name: str) -> list[str]:
        return ["127.0.0.2"]

    monkeypatch.setattr("pairmill.pipeline.fetch.resolver.GuardedResolver.resolve", lies)
    fetched = fetch(f"http://rebind.example:{forbidden.port}/a.jpg", allow_networks=[])
    assert (fetched.status, fetched.detail) == (Status.ADDRESS_REFUSED, "127.0.0.2 is not a public address")
    assert forbidden.connections == 0


def test_an_unknown_host_fails_quickly_with_one_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = __import__("aiodns").DNSResolver.getaddrinfo

    def counting(self: Any, host: str, **options: Any) -> Any:
        asked.append(host)
        return ask(self, host, **options)

    monkeypatch.setattr("aiodns.DNSResolver.getaddrinfo", counting)
    started = time.monotonic()
    urls = [f"http://no-such-host.invalid/{index}.jpg" for index in range(1000)]
    found = fetch_all(urls, retries=2, timeout_s=20)
    assert {fetched.status for fetched in found} == {Status.DNS_ERROR}
    assert all(fetched.final_url is None and "no-such-host.invalid" in (fetched.detail or "") for fetched in found)
    assert asked == ["no-such-host.invalid"]
    assert time.monotonic() - started < 15  # one after the other, the lookups would take longer


def test_silent_name_servers_cause_a_dns_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(self: Any, host: str, **options: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("aiodns.DNSResolver.getaddrinfo", silence)
    started = time.monotonic()
    found = fetch_all([f"http://quiet.example/{index}" for index in range(50)], timeout_s=1)
    assert {fetched.status for fetched in found} == {Status.DNS_ERROR}
    assert time.monotonic() - started < 20


def test_a_closed_port_is_a_connect_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        fetched = fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert fetched.status is Status.CONNECT_ERROR
    assert (fetched.http_status, fetched.final_url) == (None, None)


def test_a_server_that_does_not_accept_connections_times_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        started = time.monotonic()
        fetched = fetch(f"http://127.0.0.1:{full.getsockname()[1]}/", connect_timeout_s=0.5, timeout_s=30)
        assert fetched.status is Status.TIMEOUT
        assert time.monotonic() - started < 15
        for filler in fillers:
            filler.close()


def server_context(folder: Path, address: str = "127.0.0.1", days_left: int = 1) -> tuple[ssl.SSLContext, Path]:
    """A TLS server's context with its own certificate, and that certificate for clients that should trust it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{address} for {days_left} days")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days_left))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        .sign(key, hashes.SHA256())
    )
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    public = certificate.public_bytes(serialization.Encoding.PEM)
    pem, trusted = folder / "server.pem", folder / "trusted.pem"
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private) + public)
    trusted.write_bytes(public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, trusted


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    context, _ = server_context(tmp_path)
    with HostileWeb(tls=context) as web:
        web.serve("/a.jpg", JPEG)
        fetched = fetch(web.url("/a.jpg"))
        assert fetched.status is Status.TLS_ERROR
        assert "self-signed" in (fetched.detail or "")
        assert not web.requests


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({}, Status.OK, ""),
        ({"days_left": -1}, Status.TLS_ERROR, "expired"),
        ({"address": "127.0.0.9"}, Status.TLS_ERROR, "mismatch"),
    ],
)
def test_a_trusted_certificate_must_be_valid_and_belong_to_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], status: Status, says: str
) -> None:
    context, trusted = server_context(tmp_path, **settings)
    verifying = ssl.create_default_context()
    verifying.load_verify_locations(trusted)
    monkeypatch.setattr("pairmill.pipeline.fetch.http_client.tls_context", lambda: verifying)
    with HostileWeb(tls=context) as web:
        web.serve("/a.jpg", JPEG)
        fetched = fetch(web.url("/a.jpg"))
        assert fetched.status is status, fetched
        assert says in (fetched.detail or "").lower()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_says_that_it_requires_a_client_certificate_is_a_tls_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """With TLS 1.3, the alert comes after the client's handshake, in place of a response."""
    context, trusted = server_context(tmp_path)
    context.verify_mode, context.maximum_version = ssl.CERT_REQUIRED, version
    verifying = ssl.create_default_context(cafile=str(trusted))
    monkeypatch.setattr("pairmill.pipeline.fetch.http_client.tls_context", lambda: verifying)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as tls, suppress(OSError):
                with suppress(ssl.SSLError):
                    tls.do_handshake()
                while os.read(tls.fileno(), 10_000):  # a socket closed earlier could discard the alert
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        fetched = fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        assert (fetched.status, "alert" in (fetched.detail or "").lower()) == (Status.TLS_ERROR, True), fetched
        thread.join()


def test_tls_to_a_plain_http_server_is_a_tls_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(response(b"", "400 Bad Request"))

        thread = threading.Thread(target=serve)
        thread.start()
        assert fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/").status is Status.TLS_ERROR
        thread.join()


def _respond_in_turn(web: HostileWeb, path: str, *responses: bytes) -> str:
    remaining = list(responses)

    async def handler(request: Request, writer: Any) -> None:
        writer.write(remaining.pop(0) if len(remaining) > 1 else remaining[0])

    return web.route(path, handler)


def test_temporary_failures_are_retried(web: HostileWeb) -> None:
    url = _respond_in_turn(web, "/a.jpg", response(b"", "503 Service Unavailable"), response(JPEG))
    fetched = fetch(url, retries=1)
    assert (fetched.status, fetched.fetch_attempts, fetched.http_status) == (Status.OK, 2, 200)


def test_permanent_failures_are_not_retried(web: HostileWeb) -> None:
    fetched = fetch(web.send("/a.jpg", response(b"", "404 Not Found")), retries=5)
    assert (fetched.status, fetched.fetch_attempts) == (Status.HTTP_4XX, 1)


def test_retries_are_limited(web: HostileWeb) -> None:
    fetched = fetch(web.send("/a.jpg", response(b"", "500 Oh")), retries=1)
    assert (fetched.status, fetched.fetch_attempts, web.hits["/a.jpg"]) == (Status.HTTP_5XX, 2, 2)


def test_retry_after_is_honored_if_time_allows(web: HostileWeb) -> None:
    busy = response(b"", "429 Too Many Requests", {"Retry-After": "1"})
    url = _respond_in_turn(web, "/a.jpg", busy, response(JPEG))
    started = time.monotonic()
    fetched = fetch(url, retries=1)
    assert (fetched.status, fetched.fetch_attempts) == (Status.OK, 2)
    assert time.monotonic() - started >= 1

    url = web.send("/b.jpg", response(b"", "429 Too Many Requests", {"Retry-After": "3600"}))
    assert (fetch(url, retries=3).status, web.hits["/b.jpg"]) == (Status.HTTP_429, 1)


def test_waiting_for_the_host_does_not_use_up_the_urls_time(web: HostileWeb) -> None:
    urls = [web.send(f"/{index}.jpg", 0.3, response(JPEG)) for index in range(8)]
    found = fetch_all(urls, per_host_concurrency=2, timeout_s=0.9)  # takes 1.2 s in total
    assert {fetched.status for fetched in found} == {Status.OK}
    assert all(fetched.fetch_s < 0.9 for fetched in found)


def test_requests_are_limited_per_host_and_in_total(web: HostileWeb) -> None:
    web.send("/a.jpg", 0.03, response(JPEG))
    hosts = [f"127.0.0.{index}" for index in (1, 1, 1)]
    urls = [web.url(f"/a.jpg?{index}", hosts[index % 3]) for index in range(30)]
    assert {fetched.status for fetched in fetch_all(urls, per_host_concurrency=3)} == {Status.OK}
    assert web.max_concurrent["/a.jpg"] == 3
    web.max_concurrent.clear()
    fetch_all(urls, per_host_concurrency=30, concurrency=5)
    assert web.max_concurrent["/a.jpg"] == 5


def test_connections_stay_open_for_other_pictures_up_to_the_concurrency() -> None:
    async def main(web: HostileWeb, concurrency: int) -> tuple[int, int]:
        urls = [web.url("/a.jpg", f"127.0.0.{host}") for host in range(1, 13)]
        async with Fetcher(config(concurrency=concurrency), ByteBudget(1 << 28)) as fetcher:
            for _ in range(2):
                found = await asyncio.gather(*(fetcher.fetch(url) for url in urls))
                assert {fetched.status for fetched in found} == {Status.OK}
            while web.open_connections > concurrency:  # noqa: ASYNC110 - the server has yet to see that they were closed
                await asyncio.sleep(0.01)
            return web.open_connections, web.connections

    with HostileWeb("0.0.0.0") as web:
        web.serve("/a.jpg", JPEG)
        assert asyncio.run(main(web, concurrency=12)) == (12, 12)
    with HostileWeb("0.0.0.0") as web:
        web.serve("/a.jpg", JPEG)
        num_open, _ = asyncio.run(main(web, concurrency=4))
        assert num_open == 4


def test_two_hosts_that_redirect_to_each_other_do_not_deadlock(web: HostileWeb) -> None:
    with HostileWeb("127.0.0.3") as other:
        web.serve("/end.jpg", JPEG)
        other.serve("/end.jpg", JPEG)
        web.send("/go", redirect(other.url("/end.jpg")))
        other.send("/go", redirect(web.url("/end.jpg")))
        urls = [server.url(f"/go?{index}") for index in range(20) for server in (web, other)]
        found = fetch_all(urls, per_host_concurrency=1, concurrency=2)
    assert {fetched.status for fetched in found} == {Status.OK}


def test_a_full_budget_delays_new_requests(web: HostileWeb) -> None:
    url = web.serve("/a.jpg", JPEG)

    async def main() -> None:
        budget = ByteBudget(1000)
        budget.reserve(1000)
        async with Fetcher(config(timeout_s=1.5), budget) as fetcher:
            task = asyncio.create_task(fetcher.fetch(url))
            await asyncio.sleep(1.8)  # longer than the deadline: waiting does not count
            assert web.connections == 0
            budget.release(1000)
            assert (await task).status is Status.OK

    asyncio.run(main())


def test_waiting_for_another_hosts_robots_txt_takes_none_of_a_urls_time(web: HostileWeb) -> None:
    with HostileWeb("127.0.0.3") as silent:
        silent.send("/robots.txt", 60.0)
        urls = [silent.url("/a.jpg"), *(web.serve(f"/{n}.jpg", JPEG) for n in range(3))]
        found = fetch_all(urls, timeout_s=1.0, concurrency=1, respect_robots_txt=True)
    assert [each.status for each in found] == [Status.TIMEOUT, *[Status.OK] * 3]


def test_a_request_that_waits_to_be_tried_again_reserves_no_bytes(web: HostileWeb) -> None:
    url = web.send("/busy", b"HTTP/1.1 429 Slow Down\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        budget = ByteBudget(1 << 20)
        async with Fetcher(config(timeout_s=30, concurrency=2), budget) as fetcher:
            tasks = [asyncio.create_task(fetcher.fetch(f"{url}?{number}")) for number in range(12)]
            for _ in range(1_000):
                await asyncio.sleep(0.01)
                if web.hits["/busy"] == 12 and not fetcher.in_flight:
                    break
            assert (web.hits["/busy"], budget._reserved) == (12, 0)
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_a_compressed_body_is_reserved_with_its_unpacked_size(web: HostileWeb) -> None:
    body = JPEG + bytes(1_000_000)
    packed = gzip.compress(body)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    budget = ByteBudget(1 << 28)
    (found,) = fetch_all([web.send("/a.jpg", head.encode() + packed)], budget)
    assert found.body == body
    assert budget._reserved == len(body)  # which the decoder releases


def test_endless_bodies_together_take_little_more_than_twice_the_budget(web: HostileWeb) -> None:
    urls = [web.send(f"/{n}", b"HTTP/1.1 200 OK\r\n\r\n" + JPEG, *[bytes(100_000)] * 40, 60.0) for n in range(8)]
    limit, most = 2_000_000, 0

    class Watched(ByteBudget):
        def reserve(self, num_bytes: int) -> None:
            nonlocal most
            super().reserve(num_bytes)
            most = max(most, self._reserved)

    budget = Watched(limit)
    found = fetch_all(urls, budget, timeout_s=1.0, max_bytes=5_000_000, per_host_concurrency=8, retries=0)
    assert {each.status for each in found} == {Status.TIMEOUT}  # each body was given its own second, in turn
    assert limit < most < 2 * limit + 5_000_000 + 8 * (1 << 18)
    assert budget._reserved == 0


def test_cancelling_ends_requests(web: HostileWeb) -> None:
    url = web.send("/slow", 60.0)

    async def main() -> None:
        async with Fetcher(config(timeout_s=60), ByteBudget(1 << 28)) as fetcher:
            task = asyncio.create_task(fetcher.fetch(url))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 20


def test_a_redirect_to_a_host_that_a_rule_refuses_is_not_followed(web: HostileWeb) -> None:
    rules = SourceRules(url_block_hosts=["127.0.0.3"])
    with HostileWeb("127.0.0.3") as blocked:
        url = web.send("/go", redirect(blocked.serve("/end.jpg", JPEG)))

        async def main() -> FetchOutcome:
            budget = ByteBudget(1 << 28)
            async with Fetcher(config(), budget, redirect_rule=lambda url: refused_redirect(url, rules)) as fetcher:
                return await fetcher.fetch(url)

        assert asyncio.run(main()).status is Status.URL_HOST_BLOCKED
        assert blocked.connections == 0
