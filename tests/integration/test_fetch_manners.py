"""Tests politeness to hosts: robots.txt, spacing, and hosts that never answer."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from pairmill.pipeline.fetch.robots import MAX_BYTES
from pairmill.schemas.status import Status
from tests.integration.test_fetch import JPEG, _respond_in_turn, fetch, fetch_all
from tests.integration.web import HostileWeb, Request, redirect, response


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        web.serve("/a.jpg", JPEG)
        web.serve("/private/b.jpg", JPEG)
        yield web


ROBOTS = b"User-agent: otherbot\nDisallow: /\n\nUser-agent: pairmill\nDisallow: /private/\nDisallow: /*.gif$\n"


def test_robots_txt_is_fetched_once_and_respected(web: HostileWeb) -> None:
    web.send("/robots.txt", 0.1, response(ROBOTS))
    urls = [*(web.url(f"/a.jpg?{n}") for n in range(10)), *(web.url(f"/private/b.jpg?{n}") for n in range(10))]
    found = fetch_all(urls, respect_robots_txt=True)
    assert [fetched.status for fetched in found] == [Status.OK] * 10 + [Status.ROBOTS_DISALLOWED] * 10
    assert found[-1].detail == f"robots.txt of 127.0.0.1:{web.port}"
    assert web.hits == {"/robots.txt": 1, "/a.jpg": 10}


def test_robots_txt_is_not_fetched_unless_the_job_says_so(web: HostileWeb) -> None:
    web.send("/robots.txt", response(b"User-agent: *\nDisallow: /\n"))
    assert fetch(web.url("/a.jpg")).status is Status.OK
    assert web.hits == {"/a.jpg": 1}


@pytest.mark.parametrize(
    ("pieces", "status", "detail"),
    [
        ([response(b"gone", "404 Not Found")], Status.OK, None),
        ([response(b"no", "403 Forbidden")], Status.OK, None),
        ([response(b"", "503 Service Unavailable")], Status.HTTP_5XX, "robots.txt: 503"),
        ([60.0], Status.TIMEOUT, None),
        ([redirect("/robots.txt")], Status.OK, None),
        ([redirect("http://10.0.0.1/robots.txt")], Status.ADDRESS_REFUSED, None),
        ([response(b"\xff\xfe" + bytes(200_000))], Status.OK, None),
        ([response(b"Disallow: /x\n" * 20_000)], Status.ROBOTS_DISALLOWED, "robots.txt with more than 10,000 lines"),
        ([response(b"User-agent: *\nDisallow: /\n" + b"#" * 10_000_000)], Status.ROBOTS_DISALLOWED, None),
    ],
)
def test_a_missing_or_broken_robots_txt_is_treated_as_rfc_9309_says(
    web: HostileWeb, pieces: list[Any], status: Status, detail: str | None
) -> None:
    web.send("/robots.txt", *pieces)
    started = time.monotonic()
    found = fetch_all([web.url(f"/a.jpg?{n}") for n in range(5)], respect_robots_txt=True, timeout_s=2)
    assert {fetched.status for fetched in found} == {status}, found[0]
    assert detail is None or found[0].detail == detail
    assert web.hits["/a.jpg"] == (5 if status is Status.OK else 0)
    assert time.monotonic() - started < 20


FORBIDS_US = b"User-agent: pairmill\nDisallow: /\n\nUser-agent: *\nAllow: /\n"
TRUNCATED = gzip.compress(FORBIDS_US)[:-12]


ENCODED = {
    "gzip": (gzip.compress(FORBIDS_US), "gzip"),
    "gzip without a label": (gzip.compress(FORBIDS_US), ""),
    "zlib, then gzip": (gzip.compress(zlib.compress(FORBIDS_US)), "deflate, gzip"),
    "a long file": (gzip.compress(FORBIDS_US + b"#" * 10_000_000), "gzip"),
    "a wrong label": (FORBIDS_US, "br"),
    "UTF-8 with a BOM": (b"\xef\xbb\xbf" + FORBIDS_US, ""),
    "UTF-16 with a BOM": (FORBIDS_US.decode().encode("utf-16"), ""),
    "UTF-16 without a BOM": (FORBIDS_US.decode().encode("utf-16-be"), ""),
    "UTF-16 and a long file": (("User-agent: pairmill\nDisallow: /\n" + "#" * MAX_BYTES).encode("utf-16"), ""),
    "exactly the limit": (b"\nUser-agent: pairmill\nDisallow: /".rjust(MAX_BYTES, b"#"), ""),
    "exactly the limit, packed": (gzip.compress(b"\nUser-agent: pairmill\nDisallow: /".rjust(MAX_BYTES, b"#")), "gzip"),
    "a NUL": (FORBIDS_US.replace(b": /\n", b": /\0\n"), ""),
    "carriage returns": (FORBIDS_US.replace(b"\n", b"\r"), ""),
    "a version": (FORBIDS_US.replace(b"pairmill", b"Pairmill/0.1 (+https://example.org) # us"), ""),
}


@pytest.mark.parametrize("name", ENCODED)
def test_robots_txt_is_obeyed_however_it_is_encoded(web: HostileWeb, name: str) -> None:
    body, coding = ENCODED[name]
    web.send("/robots.txt", response(body, headers={"Content-Encoding": coding}))
    assert fetch(web.url("/a.jpg"), respect_robots_txt=True).status is Status.ROBOTS_DISALLOWED


UNREADABLE = {
    "truncated": (TRUNCATED, "gzip", Status.BODY_TRUNCATED),
    "many codings": (FORBIDS_US, ", ".join(["gzip"] * 6), Status.PROTOCOL_ERROR),
    "brotli": (b"\x8b\x0a\x80" + FORBIDS_US + b"\x03", "br", Status.PROTOCOL_ERROR),
    "damaged": (gzip.compress(FORBIDS_US)[:10] + b"\xff" * 50, "gzip", Status.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_nothing_is_fetched_if_robots_txt_cannot_be_decompressed(web: HostileWeb, name: str) -> None:
    body, coding, status = UNREADABLE[name]
    web.send("/robots.txt", response(body, headers={"Content-Encoding": coding}))
    assert fetch(web.url("/a.jpg"), respect_robots_txt=True).status is status
    assert web.hits == {"/robots.txt": 1}


def test_the_target_host_of_a_redirect_applies_its_own_robots_txt(web: HostileWeb) -> None:
    with HostileWeb("127.0.0.3") as other:
        other.send("/robots.txt", response(b"User-agent: *\nDisallow: /\n"))
        url = web.send("/go", redirect(other.serve("/a.jpg", JPEG)))
        assert fetch(url, respect_robots_txt=True).status is Status.ROBOTS_DISALLOWED
        assert other.hits == {"/robots.txt": 1}


def test_requests_to_one_host_are_spaced_and_waiting_does_not_use_up_the_urls_time(web: HostileWeb) -> None:
    starts: list[float] = []

    async def handler(request: Request, writer: Any) -> None:
        starts.append(time.monotonic())
        writer.write(response(JPEG))

    urls = [f"{web.route('/spaced.jpg', handler)}?{n}" for n in range(6)]
    found = fetch_all(urls, per_host_interval_s=0.3, timeout_s=1)
    assert {fetched.status for fetched in found} == {Status.OK}
    assert starts[-1] - starts[0] > 1.0  # 1.5 s by our clock; less by the server's if a request arrives late


def test_a_host_that_never_answers_delays_a_shard_by_little_more_than_one_timeout(web: HostileWeb) -> None:
    silent = [f"{web.send('/silent.jpg', 60.0)}?{n}" for n in range(500)]
    with HostileWeb("127.0.0.3") as other:
        good = [f"{other.serve('/good.jpg', JPEG)}?{n}" for n in range(50)]
        started = time.monotonic()
        found = fetch_all([*silent, *good], timeout_s=2, per_host_concurrency=8, retries=2)
        assert time.monotonic() - started < 15  # 500 timeouts, eight at a time, would take two minutes
    assert [fetched.status for fetched in found] == [Status.TIMEOUT] * 500 + [Status.OK] * 50
    assert web.hits["/silent.jpg"] <= 16
    assert sum((fetched.detail or "").startswith("not requested") for fetched in found) >= 480


def test_a_slow_host_that_sometimes_answers_is_still_requested(web: HostileWeb) -> None:
    turn = 0

    async def handler(request: Request, writer: Any) -> None:
        nonlocal turn
        turn += 1
        if turn % 4:
            await asyncio.sleep(60)
        writer.write(response(JPEG))

    urls = [f"{web.route('/moody.jpg', handler)}?{n}" for n in range(24)]
    found = fetch_all(urls, timeout_s=0.5, per_host_concurrency=1)
    assert sum(fetched.status is Status.OK for fetched in found) == 6
    assert web.hits["/moody.jpg"] == 24


def test_retry_after_can_be_a_date(web: HostileWeb) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    busy = response(b"", "503 Service Unavailable", {"Retry-After": soon})
    started = time.monotonic()
    fetched = fetch(_respond_in_turn(web, "/busy.jpg", busy, response(JPEG)), retries=1)
    assert (fetched.status, fetched.fetch_attempts) == (Status.OK, 2)
    assert time.monotonic() - started > 0.5  # dates have no fractions of a second
