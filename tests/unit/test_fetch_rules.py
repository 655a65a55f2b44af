"""Redirect targets, status codes, Retry-After, X-Robots-Tag, and text from strangers."""

import pytest
from yarl import URL

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.fetch.body import FetchError
from pairmill.pipeline.fetch.optout import agent_token, refusing_directive
from pairmill.pipeline.fetch.retry_policy import require_success, seconds, wait_before_retry_s
from pairmill.pipeline.fetch.urls import parse_target, redirect_target
from pairmill.schemas.status import Status

HERE = URL("https://example.com/a/b.jpg?x=1")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/c.jpg", "https://example.com/c.jpg"),
        ("c.jpg", "https://example.com/a/c.jpg"),
        ("../c.jpg", "https://example.com/c.jpg"),
        ("?y=2", "https://example.com/a/b.jpg?y=2"),
        ("//cdn.example.org/c.jpg", "https://cdn.example.org/c.jpg"),
        ("http://other.example/c.jpg#top", "http://other.example/c.jpg"),
        ("http://user:secret@other.example/c.jpg", "http://other.example/c.jpg"),
        ("/with blank.jpg", "https://example.com/with%20blank.jpg"),
        ("/already%20quoted.jpg", "https://example.com/already%20quoted.jpg"),
        ("/ü.jpg", "https://example.com/%C3%BC.jpg"),
        (b"/\xc3\xbc.jpg".decode("utf-8", "surrogateescape"), "https://example.com/%C3%BC.jpg"),
        (b"/\xfc.jpg".decode("utf-8", "surrogateescape"), "https://example.com/%FC.jpg"),
    ],
)
def test_where_a_redirect_leads(location: str, target: str) -> None:
    assert str(redirect_target(HERE, location)) == target


@pytest.mark.parametrize(
    ("location", "status"),
    [
        (None, Status.BAD_REDIRECT),
        ("", Status.BAD_REDIRECT),
        ("file:///etc/passwd", Status.BAD_REDIRECT),
        ("gopher://example.com/", Status.BAD_REDIRECT),
        ("data:image/png;base64,AAAA", Status.BAD_REDIRECT),
        ("javascript:alert(1)", Status.BAD_REDIRECT),
        ("http://", Status.BAD_REDIRECT),
        ("http://[::1", Status.BAD_REDIRECT),
        ("http://[::1]@", Status.BAD_REDIRECT),
        ("http://example.com:99999/", Status.BAD_REDIRECT),
        ("http://999.1.1.1/", Status.BAD_REDIRECT),
        ("http://2130706433/", Status.ADDRESS_REFUSED),
        ("http://0x7f.1/", Status.ADDRESS_REFUSED),
    ],
)
def test_redirects_that_lead_nowhere(location: str | None, status: Status) -> None:
    with pytest.raises(FetchError) as caught:
        redirect_target(HERE, location)
    assert caught.value.status is status


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("file:///etc/passwd", Status.URL_SCHEME),
        ("ftp://example.com/a.jpg", Status.URL_SCHEME),
        ("//example.com/a.jpg", Status.URL_SCHEME),
        ("http://", Status.URL_INVALID),
        ("http://:80/a", Status.URL_INVALID),
        ("http://example.com:0/", Status.URL_INVALID),
        ("http://[::1", Status.URL_INVALID),
        ("http://[::1]@/a.jpg", Status.URL_INVALID),
        ("http://127.1/", Status.ADDRESS_REFUSED),
    ],
)
def test_urls_that_are_not_fetched(url: str, status: Status) -> None:
    with pytest.raises(FetchError) as caught:
        parse_target(url)
    assert caught.value.status is status


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (101, Status.HTTP_OTHER),
        (200, None),
        (203, None),
        (206, Status.HTTP_OTHER),
        (300, Status.HTTP_OTHER),
        (304, Status.HTTP_OTHER),
        (400, Status.HTTP_4XX),
        (404, Status.HTTP_4XX),
        (429, Status.HTTP_429),
        (451, Status.HTTP_4XX),
        (500, Status.HTTP_5XX),
        (503, Status.HTTP_5XX),
        (999, Status.HTTP_OTHER),
    ],
)
def test_status_codes(code: int, status: Status | None) -> None:
    if status is None:
        require_success(code, None)
        return
    with pytest.raises(FetchError) as caught:
        require_success(code, "7")
    assert caught.value.status is status
    assert caught.value.retry_after_s == (7 if status.worth_retry else None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (" 120 ", 120), ("0", 0), (None, None), ("-1", None), ("1.5", None), ("soon", None), ("9" * 30, None)],
)
def test_retry_after_in_seconds(text: str | None, value: float | None) -> None:
    assert seconds(text) == value


def test_waits_grow_are_bounded_and_end() -> None:
    failure = FetchError(Status.CONNECTION_LOST)
    for attempts, most in ((1, 1), (2, 2), (3, 4), (12, 10)):
        waits = [wait_before_retry_s(failure, attempts, 20) for _ in range(200)]
        assert all(wait is not None and 0 <= wait <= most for wait in waits)
    assert wait_before_retry_s(failure, 3, retries=2) is None
    assert wait_before_retry_s(FetchError(Status.HTTP_429, retry_after_s=4), 1, 1) == 4
    assert wait_before_retry_s(FetchError(Status.HTTP_4XX), 1, 5) is None
    assert wait_before_retry_s(FetchError(Status.DNS_ERROR), 1, 5) is None


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        ([], None),
        (["all"], None),
        (["noai"], "noai"),
        (["NoAI, nofollow"], "noai"),
        (["nofollow", "noimageai"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["none"], "none"),
        (["noarchive, noimageindex"], "noimageindex"),
        (["noaiplease"], None),
        (["pairmill: noindex"], "noindex"),
        (["Pairmill: nofollow, noai"], "noai"),
        (["*: noai"], "noai"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["googlebot: noindex, pairmill: noai"], "noai"),
        (["googlebot: noindex", "noai"], "noai"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
        (["max-snippet: 20, noai"], "noai"),
        (["max-image-preview:none"], None),
        ([""], None),
        ([":noai"], None),
    ],
)
def test_x_robots_tag(values: list[str], directive: str | None) -> None:
    assert refusing_directive(values, agent_token("Pairmill/0.1 (+https://example.org)")) == directive


def test_text_from_strangers_fits_a_column() -> None:
    assert clean_text("a\r\nb\x00c\udc80 d") == "a b c d"
    assert clean_text("x" * 1000) == "x" * 200
    assert clean_text("  \n") is None
    assert clean_text(None) is None
