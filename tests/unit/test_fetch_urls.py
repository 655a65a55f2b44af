"""Tests which URLs are requested and where redirects lead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.url_parser import parse_url, resolve_url
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.urls import redirect_target, request_url
from pairmill.schemas.status import Status

BASE = request_url("https://example.com/a/b.jpg?x=1")


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
def test_location_headers_are_resolved_against_the_url(location: str, target: str) -> None:
    assert str(redirect_target(BASE, location)) == target


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
def test_bad_redirect_targets_are_refused(location: str | None, status: Status) -> None:
    with pytest.raises(FetchError) as caught:
        redirect_target(BASE, location)
    assert caught.value.status is status


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("file:///etc/passwd", Status.URL_SCHEME),
        ("ftp://example.com/a.jpg", Status.URL_SCHEME),
        ("//example.com/a.jpg", Status.URL_INVALID),
        ("http://", Status.URL_INVALID),
        ("http://:80/a", Status.URL_INVALID),
        ("http://example.com:0/", Status.URL_INVALID),
        ("http://[::1", Status.URL_INVALID),
        ("http://[::1]@/a.jpg", Status.URL_INVALID),
        *(
            (f"http://a.example:{port}/", Status.URL_INVALID)
            for port in ("+80", "-80", "8_0", " 80", "８０", "٨", "8.0")
        ),
        *((f"http://[::1]{port}/", Status.URL_INVALID) for port in ("80", ":+80", ":8_0", "x:80")),
        *(
            (f"http://{host}/", Status.URL_INVALID)
            for host in ("[1::2::3]", "[:::]", "[::ffff:]", "[12345::]", "[1:2:3:4:5:6:7:8:9]")
        ),
        *((f"http://{host}/", Status.URL_INVALID) for host in ("[::1.2.3]", "[::ffff:1.2.3.256]", "[::1%25lo]")),
        *((f"http://{host}/", Status.URL_INVALID) for host in ("[v1.localhost]", "[v1.a:b]", "[a]", "[]", "[1.2.3.4]")),
        ("http://127.1/", Status.ADDRESS_REFUSED),
    ],
)
def test_urls_that_cannot_be_requested_are_refused(url: str, status: Status) -> None:
    with pytest.raises(FetchError) as caught:
        request_url(url)
    assert caught.value.status is status


ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from("/:?#@[].\\% \ud800\udc80"))


@given(text=ANY_TEXT, start=st.sampled_from(["", "http://", "http://a/", "http://a/?", "http://a/#", "//", "data:"]))
def test_law_urls_any_text_is_a_url_that_can_be_written_or_has_a_problem(text: str, start: str) -> None:
    """Includes lone surrogates, which JSON can contain."""
    for parsed in (parse_url(start + text), resolve_url(BASE, start + text)):
        assert parsed.parsed is None or str(parsed.parsed).isascii()
        assert parsed.parsed is None or parsed.problem is None
        assert "\ud800" not in start + text or parsed.parsed is None
        (parsed.problem or "").encode()
