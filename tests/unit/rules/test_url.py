"""Tests that a URL's host is the one that the client's own parser finds, and tests block and allow lists of hosts."""

import itertools
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pairmill.pipeline.common.hosts import host_of, hosts_of
from pairmill.pipeline.common.url_parser import parse_url, resolve_url
from pairmill.pipeline.rules import SourceRules, apply_rules
from pairmill.pipeline.rules.url import host_set, refused_redirect
from pairmill.schemas.limits import MAX_URL_BYTES
from pairmill.schemas.status import Status, Step

HOSTS = [
    ("http://good.com@evil.com/", "evil.com"),
    ("http://good.com:80@evil.com/", "evil.com"),
    ("http://user:p@ss@good.com/", "good.com"),
    ("http://good.com#@evil.com/", "good.com"),
    ("http://good.com?@evil.com/", "good.com"),
    ("http://GOOD.com./x", "good.com"),
    ("HTTPS://good.com:443/", "good.com"),
    ("http://bücher.de/", "xn--bcher-kva.de"),
    ("http://BÜCHER.de/", "xn--bcher-kva.de"),
    ("http://xn--bcher-kva.de/", "xn--bcher-kva.de"),
    ("http://ｇｏｏｄ.com/", "good.com"),
    ("http://good。com/", "good.com"),
    ("http://a_b.good.com/", "a_b.good.com"),
    ("http://[::1]/", "::1"),
    ("http://[0:0:0:0:0:0:0:1]:80/", "::1"),
    ("http://127.0.0.1/", "127.0.0.1"),
    ("http://[::ffff:127.0.0.1]/", "127.0.0.1"),
    ("http://[0:0:0:0:0:FFFF:7f00:1]/", "127.0.0.1"),
    ("http://good.com/@evil.com", "good.com"),
    ("http:///good.com/@evil.com", "good.com"),
    ("http:/good.com@evil.com//good.com", "evil.com"),
    ("http:good.com", "good.com"),
    ("http://good.com/Foto%20ü.jpg?ä=1", "good.com"),
]

URL_TEXT = st.text(max_size=60) | st.text(alphabet="ht tp:/@.\\#?%[]ab1é。\t", max_size=30).map(
    lambda rest: "http://" + rest
)


@pytest.mark.parametrize(("url", "host"), HOSTS)
def test_the_host_is_the_one_that_the_client_connects_to(url: str, host: str) -> None:
    parsed = parse_url(url)
    assert (parsed.scheme, parsed.host, parsed.problem) == (url.partition(":")[0].lower(), host, None)
    assert hosts_of(pa.chunked_array([[url]])).to_pylist() == [host]


REST = st.from_regex(
    r"(u:p@)?(a|b\.org|\[::1\])(:[1-9])?(/[a/:.@%]{0,6})?(\?[a/:@]{0,4})?(#[a/]{0,2})?", fullmatch=True
)


@given(st.sampled_from(["http:", "https:", "HTTP:"]), st.integers(0, 6), REST)
def test_missing_and_extra_slashes_before_the_host_change_nothing_else(scheme: str, slashes: int, rest: str) -> None:
    """Browsers do the same: https://url.spec.whatwg.org/#special-authority-ignore-slashes-state."""
    usual, found = parse_url(f"{scheme}//{rest}"), parse_url(f"{scheme}{'/' * slashes}{rest}")
    assert (found.problem, found.host, found.parsed) == (None, usual.host, usual.parsed)
    for base in ("http://e.org/a/b?c", "https://e.org:8//a/b"):
        origin = parse_url(base).parsed
        assert origin is not None
        if slashes >= 2 or scheme.lower() != f"{origin.scheme}:":
            assert resolve_url(origin, f"{scheme}{'/' * slashes}{rest}").parsed == usual.parsed


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("http:/x.org/y", "http://e.org/x.org/y"),
        ("http:x.org/y", "http://e.org/a/x.org/y"),
        ("http:?y", "http://e.org/a/b?y"),
        ("http:", "http://e.org/a/b?c"),
        ("HTTP:c:d/y", "http://e.org/a/c:d/y"),
        ("http:///x.org/y", "http://x.org/y"),
        ("https:/x.org//y", "https://x.org//y"),
        ("https:x.org/y", "https://x.org/y"),
        ("///x.org/y", "http://x.org/y"),
        ("//////x.org?y=//z", "http://x.org/?y=//z"),
        ("https:", None),
        ("http:///", None),
    ],
)
def test_a_reference_resolves_to_the_same_url_as_in_browsers(reference: str, url: str | None) -> None:
    """The expected values are the results of `new URL(reference, base)` in Node 20."""
    base = parse_url("http://e.org/a/b?c").parsed
    assert base is not None
    parsed = resolve_url(base, reference).parsed
    assert (str(parsed) if parsed else None) == url


SEPARATORS = ["".join(marks) for length in range(4) for marks in itertools.product("/\\", repeat=length)]


@pytest.mark.parametrize("scheme", ["", "http:", "HTTPS:"])
def test_a_reference_with_backslashes_resolves_as_in_browsers_or_as_in_curl(scheme: str) -> None:
    """To browsers, a backslash before the query is a slash: https://url.spec.whatwg.org/#relative-slash-state,
    #special-authority-ignore-slashes-state and #path-state. To curl, it is a character of the path, and an error in the
    host or in the slashes after the scheme. Confirmed with Node 20 and curl 7.88."""
    base = parse_url("http://e.org/a/b").parsed
    assert base is not None
    for separator, name in itertools.product(SEPARATORS, ["x.org/y?\\z", "x.org\\y?\\z"]):
        folder = {0: "http://e.org/a/", 1: "http://e.org/"}.get(len(separator), "http://")
        folder = "https://" if scheme == "HTTPS:" else folder
        is_plain = "\\" not in separator and "\\" not in name.partition("?")[0]
        if is_plain or (scheme == "http:" and not separator.startswith("//")):
            expected = f"{folder}x.org/y?\\z"  # as in browsers
        elif scheme or separator.startswith("//"):
            expected = None
        else:
            expected = f"http://e.org{'' if separator.startswith('/') else '/a/'}{separator}{name}"
        parsed = resolve_url(base, scheme + separator + name).parsed
        assert (str(parsed) if parsed else None) == expected, (separator, name)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no scheme"),
        ("photo.jpg", "no scheme"),
        ("//good.com/x", "no scheme"),
        ("http://good.com/my photo.jpg", "white space"),
        ("http://good.com/\tx", "white space"),
        ("http://\ngood.com/", "white space"),
        ("http://good.com\u00a0.evil.com/", "white space"),
        ("http://good.com/\x00", "white space or a control"),
        ("http://", "no host"),
        ("http:/", "no host"),
        ("http:///?x", "no host"),
        ("http://good.com\\@evil.com/", "backslash"),
        ("http://good.com:99999/", "ort"),
        ("http://good.com:abc/", "ort"),
        ("http://good.com:0/", "port 0"),
        ("http://good.com%2eevil.com/", "no valid host"),
        ("http://good.com%00.evil.com/", "no valid host"),
        ("http://[::1/", ""),
        ("http://[]@", "no host"),
        ("http://[::1]@/x", "no host"),
        ("http://[fe80::1%25eth0]/", "no valid host"),
        ("http://.com/", "no valid host"),
        ("http://a..b/", "no valid host"),
        ("http://" + "a" * 64 + ".com/", "no valid host"),
        ("http://" + "a." * 130 + "com/", "no valid host"),
        ("http://xn--a.com/", ""),
        ("http://good.com/" + "a" * MAX_URL_BYTES, "longer than 8192 bytes"),
        ("http://good.com/" + "ä" * (MAX_URL_BYTES // 2), "longer than 8192 bytes"),
    ],
)
def test_urls_that_cannot_be_fetched_are_invalid_and_say_why(in_flight: Any, url: str, says: str) -> None:
    table = apply_rules(in_flight([{"url": url or "."}]), Step.URL, SourceRules())
    assert table["status"].to_pylist() == ["url_invalid"]
    assert says in table["status_detail"][0].as_py()


@pytest.mark.parametrize(
    ("url", "scheme"),
    [("data:image/png;base64," + "A" * 100_000, "data"), ("C:\\my photo.jpg", "c"), ("file:///etc/passwd", "file")],
)
def test_other_schemes_are_not_confused_with_broken_urls(in_flight: Any, url: str, scheme: str) -> None:
    table = apply_rules(in_flight([{"url": url}]), Step.URL, SourceRules())
    assert (table["status"][0].as_py(), table["status_detail"][0].as_py()) == ("url_scheme", scheme)


@pytest.mark.parametrize(
    "entry", ["bücher.de", "xn--bcher-kva.de", "BÜCHER.DE.", "*.bücher.de", ".bücher.de", " bücher.de"]
)
def test_a_list_can_contain_a_host_in_any_form(entry: str) -> None:
    assert host_set((entry,)) == {"xn--bcher-kva.de"}


@pytest.mark.parametrize("entry", ["[::1]", "::1", "0:0::1"])
def test_a_list_can_contain_ipv6_addresses(entry: str) -> None:
    assert host_set((entry,)) == {"::1"}


@pytest.mark.parametrize(
    "entry", ["", "http://a.com", "a.com/x", "a.com:80", "[::1]:80", "a b", "u@a.com", "a.com?", "a.com#", "*", "a\\b"]
)
def test_list_entries_that_are_not_hosts_are_errors(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        host_set((entry,))


def test_an_allow_list_cannot_be_bypassed(in_flight: Any) -> None:
    rules = SourceRules(url_allow_hosts=["good.com"])
    evil = [
        "http://good.com@evil.com/",
        "http://evilgood.com/",
        "http://good.com.evil.com/",
        "http://evil.com/good.com",
    ]
    good = ["http://good.com/", "http://a.b.GOOD.com./", "http://evil.com@good.com/"]
    table = apply_rules(in_flight([{"url": url} for url in evil + good]), Step.URL, rules)
    assert table["status"].to_pylist() == ["url_host_not_allowed"] * 4 + ["ok"] * 3
    assert table["status_detail"].to_pylist()[:2] == ["evil.com", "evilgood.com"]


def test_the_same_rules_apply_to_redirects(tmp_path: Path) -> None:
    rules = SourceRules(url_allow_hosts=["good.com"], url_block_hosts=["bad.good.com"])
    assert refused_redirect(parse_url("http://img.good.com/"), rules) is None
    assert refused_redirect(parse_url("http://x.bad.good.com/"), rules) == (Status.URL_HOST_BLOCKED, "bad.good.com")
    assert refused_redirect(parse_url("http://evil.com/"), rules) == (Status.URL_HOST_NOT_ALLOWED, "evil.com")
    assert refused_redirect(parse_url("http://evil.com/"), SourceRules()) is None
    assert refused_redirect(parse_url("http://evil.com/"), SourceRules(url_schemes=["https"])) == (
        Status.URL_SCHEME,
        "http",
    )
    listed = tmp_path / "listed.txt"
    listed.write_text("http://evil.com/a.jpg\n")
    rules = SourceRules(url_blocklist=str(listed))
    assert refused_redirect(parse_url("http://evil.com/a.jpg"), rules) == (
        Status.URL_BLOCKLISTED,
        "http://evil.com/a.jpg",
    )
    assert refused_redirect(parse_url("http://evil.com/b.jpg"), rules) is None


@given(URL_TEXT)
def test_the_client_parses_a_valid_url_the_same_way(url: str) -> None:
    parsed = parse_url(url)
    if parsed.problem is None and parsed.scheme in ("http", "https"):
        target = URL(re.sub(r"^(\w+:)/*", r"\1//", url.strip()))  # yarl finds the host only after exactly two slashes
        assert target.scheme == parsed.scheme
        assert (target.raw_host or "").rstrip(".") == parsed.host


@given(st.lists(URL_TEXT | st.sampled_from([url for url, _ in HOSTS]), max_size=5))
def test_the_host_of_a_url_is_the_same_one_at_a_time_and_in_a_column(urls: list[str]) -> None:
    """A column has a fast path for plain URLs."""
    assert hosts_of(pa.chunked_array([urls, [None]], pa.string())).to_pylist() == [*map(host_of, urls), None]


def test_white_space_around_a_url_is_ignored(in_flight: Any) -> None:
    rules = SourceRules(url_allow_hosts=["good.com"])
    table = apply_rules(in_flight([{"url": " http://good.com/a.jpg\n"}]), Step.URL, rules)
    assert table["status"].to_pylist() == ["ok"]
