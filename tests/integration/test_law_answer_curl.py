"""Invariant: we accept the responses that curl accepts, with the same bytes; stray bytes never cost the next row."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from pairmill.schemas.status import Status
from tests.http_answers import ANSWERS, PICTURE
from tests.integration.test_fetch import JPEG, fetch_all
from tests.integration.web import HostileWeb, Request, reset, response


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        yield web


def curl(url: str) -> tuple[bool, bytes]:
    """Whether curl accepts the response, and the body that it writes."""
    command = ["curl", "-q", "--silent", "--fail", "--compressed", "--max-time", "20", url]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode == 0, done.stdout


def test_what_curl_accepts_is_accepted_and_what_it_refuses_is_refused(web: HostileWeb) -> None:
    urls = [web.send(f"/{number}.jpg", answer.bytes, then_close=True) for number, answer in enumerate(ANSWERS.values())]
    for (name, answer), url, found in zip(ANSWERS.items(), urls, fetch_all(urls, timeout_s=30), strict=True):
        assert (found.status, found.body) == (answer.status, PICTURE if answer.status is Status.OK else None), name
        accepted = curl(url) == (True, PICTURE)
        if answer.why_not_as_curl is None:
            assert (answer.status is Status.OK) == accepted, name


_LENGTH = b"\r\nContent-Length: 9\r\n\r\n"
EARLY_ENDS = [b"", b"\r\n", b"\r\n\r", _LENGTH, _LENGTH + b"body", b"\r\n\r\n<html>"]


@pytest.mark.parametrize("end", EARLY_ENDS, ids=repr)
def test_redirects_that_end_early_are_followed_like_curl_follows_them(web: HostileWeb, end: bytes) -> None:
    web.serve("/b.jpg", JPEG)
    url = web.send("/a.jpg", b"HTTP/1.1 301 Moved\r\nLocation: /b.jpg" + end, then_close=True)
    (found,) = fetch_all([url], retries=0)
    done = subprocess.run(["curl", "-q", "--silent", "--location", url], capture_output=True, timeout=60, check=False)
    assert (found.body == JPEG) == (done.stdout == JPEG)
    assert (found.status is Status.OK) == bool(end)


STRAY = [
    *(b"\r\n", b"\n", b"\0", b"stray", b"0\r\n\r\n ", b"HTTP/1.1 500 Oh\r\n\r\n", response(b"another row's picture")),
    *(b"H", b"HTTP/1.1 200 OK\r\nX: ", b"<html>" * 1000),
]


WHEN = ["in the same packet", "a moment later", "with the next answer"]
# Once the next request is sent, a complete stray answer looks like the answer to it: RFC 9112 section 11.2.
CASES = [(stray, when) for stray in STRAY for when in (WHEN[:1] if stray[-4:] in (b"\r\n\r\n", b"ture") else WHEN)]


@pytest.mark.parametrize(("stray", "when"), CASES, ids=repr)
def test_bytes_after_one_answer_never_cost_the_next_row(web: HostileWeb, stray: bytes, when: str) -> None:
    served: set[Any] = set()

    async def answer(request: Request, writer: Any) -> None:
        if when == "with the next answer":
            writer.write((stray if writer in served else b"") + response(JPEG))
            served.add(writer)
            return
        writer.write(response(JPEG) + (stray if when == "in the same packet" else b""))
        if when == "a moment later":
            await writer.drain()
            writer.write(stray)

    web.route("*", answer)
    found = fetch_all([web.url(f"/{n}.jpg") for n in range(8)], per_host_concurrency=1, retries=0)
    assert {(each.status, each.body) for each in found} == {(Status.OK, JPEG)}
    # Each row wastes at most one request on a connection that turns out to be spoiled.
    assert sum(web.hits.values()) <= 2 * 8


BREAKS: dict[str, bytes | None] = {
    "closes": b"",
    "resets": None,
    "closes within the status line": b"HTTP/1.1 2",
    "closes within the fields": b"HTTP/1.1 200 OK\r\nContent-Le",
    "closes after an interim response": b"HTTP/1.1 100 Continue\r\n\r\n",
    "sends something else": b"408 Request Timeout\r\n",
    "says that no request came in time": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_request_is_repeated_on_a_fresh_connection_if_a_reused_one_breaks_before_an_answer(
    web: HostileWeb, how: str
) -> None:
    served: set[Any] = set()

    async def answer(request: Request, writer: Any) -> None:
        if writer not in served:
            served.add(writer)
            writer.write(response(JPEG))
            return
        if (last_words := BREAKS[how]) is None:
            reset(writer)
        else:
            writer.write(last_words)
            writer.close()

    web.route("*", answer)
    found = fetch_all([web.url(f"/{n}.jpg") for n in range(6)], per_host_concurrency=1, retries=0)
    assert {(each.status, each.body, each.fetch_attempts) for each in found} == {(Status.OK, JPEG, 1)}
    assert web.connections == 6


def test_connections_are_reused(web: HostileWeb) -> None:
    for answer in (
        response(JPEG),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\xff\xd8\xff\xe0\r\n0\r\n\r\n",
    ):
        web.send("/a.jpg", answer)
        before = web.connections
        found = fetch_all([web.url(f"/a.jpg?{n}") for n in range(20)], per_host_concurrency=1)
        assert {each.status for each in found} == {Status.OK}
        assert web.connections == before + 1
