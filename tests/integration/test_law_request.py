"""Invariant: a request's target is sent byte for byte as in the list or the Location header. Oracle: curl."""

import subprocess
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.fetch.guarded_urllib import GuardedOpener
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.urls import redirect_target, request_url
from pairmill.pipeline.rules import SourceRules
from pairmill.schemas.status import Status
from tests.integration.test_fetch import JPEG, config, fetch_all
from tests.integration.web import HostileWeb, Request, response

_ASCII = "".join(map(chr, range(128)))
_BEGIN = "/begin/a//b?s=%7E"

# Parts of signed URLs and image proxies, and characters that only browsers would encode.
_TOKENS = st.sampled_from(
    [
        *("a", "Z", "9", "-", "_", "~", "..", ".", "...", "/", "//", "/./", "/../", ";", ":", "@", "!", "$", "&", "'"),
        *(
            "(",
            ")",
            "*",
            "+",
            ",",
            "=",
            "%3A",
            "%3a",
            "%2F",
            "%2f",
            "%7E",
            "%7e",
            "%20",
            "%25",
            "%2E",
            "%c3%bc",
            "%C3%BC",
        ),
        *("%", "%zz", "%4", '"', "<", ">", "^", "`", "{", "|", "}", "\\", "[", "]", "ü", "€", "画像", "😀"),
        *("X-Amz-Signature=", "Expires=1", "https://", "http:%2F%2F", "w_100,h_200", "Policy=e30_", "\u0301"),
        *("\u00a0x", "\u3000x", "\u2009x", "\u0085x"),  # trailing white space is stripped
    ]
)
_PATHS = st.lists(_TOKENS, max_size=8).map(lambda tokens: "/" + "".join(tokens))
_QUERIES = st.none() | st.lists(_TOKENS | st.just("?"), max_size=8).map("".join)
_FRAGMENTS = st.sampled_from(["", "", "", "#", "#top", "#?x=/../%3A"])


def _targets(queries: st.SearchStrategy[str | None]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda path, query, fragment: path + ("" if query is None else f"?{query}") + fragment,
        _PATHS,
        queries,
        _FRAGMENTS,
    )


_BLANKS = st.sampled_from(["", "", "", " ", "a b"])
# curl 7 drops an empty query from a Location, although it keeps one in a user's URL.
_REFERENCES = st.builds(
    lambda target, blank: target + blank, _targets(_QUERIES.filter(lambda query: query != "")), _BLANKS
) | st.builds(
    lambda folders, name, query: "../" * folders + name + query,
    st.integers(0, 6),
    st.sampled_from(["x", "./x", "x/../y", "x;v=1/../y", "%2e%2e/x", "x y", "x//y/./z"]),
    st.sampled_from(["", "?q=%7E", "?q=a b", "?q=../z"]),
)
_REFERENCES = _REFERENCES.filter(lambda reference: not reference.startswith("//"))  # would name another host
_MANY = settings(
    max_examples=max(settings.default.max_examples // 10, 1),  # each example is a batch of URLs
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def encoded(text: str) -> str:
    """The text with non-ASCII characters percent-encoded: curl sends them unchanged or encodes them in lower case."""
    return quote(text, safe=_ASCII)


def curl(*arguments: str) -> int:
    """Run curl. Returns its exit status."""
    command = ["curl", "-q", "--silent", "--globoff", "--max-time", "20", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


class Recorder:
    """A server on many loopback addresses, so that the Host field tells the requests apart."""

    def __init__(self, web: HostileWeb) -> None:
        self.web = web
        self.locations: dict[str, bytes] = {}
        web.route("*", self._answer)

    async def _answer(self, request: Request, writer: Any) -> None:
        location = self.locations.get(request.headers["host"])
        if request.target == _BEGIN and location is not None:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(response(JPEG))

    def host(self, number: int) -> str:
        return f"127.0.1.{number + 1}:{self.web.port}"

    def take(self) -> dict[str, list[str]]:
        """Host -> the targets requested since the last call."""
        taken: dict[str, list[str]] = {}
        for request in self.web.requests:
            taken.setdefault(request.headers["host"], []).append(request.target)
        self.web.requests.clear()
        return taken


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with HostileWeb("0.0.0.0") as web:
        yield Recorder(web)


def sent_by_curl(recorder: Recorder, urls: Sequence[str], *options: str) -> dict[str, list[str]]:
    recorder.take()
    outputs = [word for _ in urls for word in ("-o", "/dev/null")]
    assert curl(*options, *outputs, *urls) == 0
    return recorder.take()


def sent_by_us(recorder: Recorder, urls: Sequence[str]) -> dict[str, list[str]]:
    found = fetch_all(list(urls), timeout_s=20)
    assert {each.status for each in found} <= {Status.OK}, [each for each in found if each.status is not Status.OK]
    return recorder.take()


def sent_by_urllib(recorder: Recorder, urls: Sequence[str]) -> dict[str, list[str]]:
    """Request the URLs as img2dataset does."""
    import urllib.request

    opener = GuardedOpener(config(), SourceRules())
    for url in urls:
        opener.open(urllib.request.Request(url)).close()
    return recorder.take()


@_MANY
@given(targets=st.lists(_targets(_QUERIES), min_size=20, max_size=40))
def test_the_targets_in_lists_are_sent_unchanged(recorder: Recorder, targets: list[str]) -> None:
    expected = sent_by_curl(recorder, [f"http://{recorder.host(n)}{encoded(t)}" for n, t in enumerate(targets)])
    urls = [f"http://{recorder.host(n)}{target}" for n, target in enumerate(targets)]
    assert sent_by_us(recorder, urls) == expected
    assert sent_by_urllib(recorder, urls) == expected


@_MANY
@given(references=st.lists(_REFERENCES, min_size=20, max_size=40), as_bytes=st.booleans())
def test_the_targets_of_redirects_are_sent_unchanged(recorder: Recorder, references: list[str], as_bytes: bool) -> None:
    urls = [f"http://{recorder.host(n)}{_BEGIN}" for n in range(len(references))]
    recorder.locations = {recorder.host(n): encoded(text).encode() for n, text in enumerate(references)}
    expected = sent_by_curl(recorder, urls, "--location", "--max-redirs", "3")
    if as_bytes:
        recorder.locations = {recorder.host(n): text.encode() for n, text in enumerate(references)}
    assert sent_by_us(recorder, urls) == expected
    assert sent_by_urllib(recorder, urls) == expected


HOSTS = [
    *("bücher.example", "BÜCHER.example", "faß.example", "straße.example", "i❤.example", "☃.example", "例え。テスト"),
    *("пример.испытание", "παράδειγμα.δοκιμή", "παραδειγμας.example", "مثال.إختبار", "דוגמה.טעסט", "उदाहरण.परीक्षा"),
    *(
        "예시.테스트",
        "ｅｘａｍｐｌｅ.example",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.example",
        "a_b.example",
        "bu\u0308cher.example",
    ),
    *("exam\u212ale.example", "ﬁ.example", "Å.example", "1.example", "a-b.example", "xn--p1ai", "öbb.at", "ı.example"),
]


@pytest.mark.parametrize("host", HOSTS)
def test_international_hosts_become_punycode_in_lists_and_redirects_alike(recorder: Recorder, host: str) -> None:
    assert curl("-o", "/dev/null", "--connect-to", f"::127.0.0.1:{recorder.web.port}", f"http://{host}/x") == 0
    (expected,) = recorder.take()
    listed = request_url(f"http://{host}/x")
    begin = request_url("http://a.example/b")
    assert listed.authority == expected.lower()
    assert redirect_target(begin, f"http://{host}/x") == listed
    assert redirect_target(begin, f"//{host}/x") == listed
    assert str(listed) == f"http://{expected.lower()}/x"


@pytest.mark.parametrize(
    ("reference", "target"),  # RFC 3986 section 5.4, against http://a/b/c/d;p?q
    [
        *(
            ("g", "/b/c/g"),
            ("./g", "/b/c/g"),
            ("g/", "/b/c/g/"),
            ("/g", "/g"),
            ("?y", "/b/c/d;p?y"),
            ("g?y", "/b/c/g?y"),
        ),
        *(
            (";x", "/b/c/;x"),
            ("g;x?y#s", "/b/c/g;x?y"),
            ("#s", "/b/c/d;p?q"),
            (".", "/b/c/"),
            ("./", "/b/c/"),
            ("..", "/b/"),
        ),
        *(("../", "/b/"), ("../g", "/b/g"), ("../..", "/"), ("../../g", "/g"), ("../../../g", "/g"), ("/./g", "/g")),
        *(
            ("/../g", "/g"),
            ("g.", "/b/c/g."),
            (".g", "/b/c/.g"),
            ("g..", "/b/c/g.."),
            ("./../g", "/b/g"),
            ("?", "/b/c/d;p?"),
        ),
        *(("g/./h", "/b/c/g/h"), ("g/../h", "/b/c/h"), ("g;x=1/./y", "/b/c/g;x=1/y"), ("g;x=1/../y", "/b/c/y")),
        *(("g?y/./x", "/b/c/g?y/./x"), ("g?y/../x", "/b/c/g?y/../x"), ("http://a?x", "/?x"), ("//a", "/")),
    ],
)
def test_references_are_resolved_as_in_the_standard(reference: str, target: str) -> None:
    resolved = redirect_target(request_url("http://a/b/c/d;p?q"), reference)
    assert (resolved.origin, resolved.target) == ("http://a", target)


def test_what_curl_refuses_is_refused(recorder: Recorder) -> None:
    for text in ("/a b", "/a?b c", "/a\tb", "/a\x7fb"):
        url = f"http://{recorder.host(0)}{text}"
        assert curl("-o", "/dev/null", url) == 3, text
        with pytest.raises(FetchError):
            request_url(url)
    assert recorder.take() == {}


def test_the_row_keeps_the_url_of_its_list(recorder: Recorder) -> None:
    url = f"http://{recorder.host(0)}/a%3ab/%c3%BC?X-Amz-Signature=%2f&e="
    (found,) = fetch_all([url])
    assert found.final_url == url
    assert urlsplit(url).path + "?" + urlsplit(url).query in recorder.take()[recorder.host(0)]
