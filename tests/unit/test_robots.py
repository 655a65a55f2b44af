"""Tests how robots.txt is read. What servers answer is in tests/integration/test_fetch_manners.py."""

import asyncio
import time

import pytest

from pairmill.pipeline.common.url_parser import HttpUrl, parse_url
from pairmill.pipeline.fetch.outcome import FetchError
from pairmill.pipeline.fetch.robots import MAX_BYTES, READ_BYTES, RobotsTxtCache


def is_allowed(text: str, encoding: str = "utf-8") -> bool:
    url = parse_url("http://pictures.example/p/1.jpg").parsed
    assert url is not None

    async def answer(_: HttpUrl) -> tuple[int, bytes]:
        return 200, text.encode(encoding)[:READ_BYTES]

    async def run() -> bool:
        cache = RobotsTxtCache(answer, "pairmill")
        try:
            await cache.require_allowed(url)
        except FetchError:
            return False
        finally:
            await cache.close()
        return True

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("User-agent: pairmill/0.1\nDisallow: /p/", False),
        ("User-agent: other/0.1\nDisallow: /p/", True),
        ("User-agent: *\nUser-agent:\nDisallow: /p/", False),  # an empty name takes nothing from the next line
        ("User-agent: *\nUser-agent\n:\nDisallow: /p/", False),
    ],
)
def test_a_version_after_a_crawlers_name_is_ignored_and_the_next_line_is_not(text: str, allowed: bool) -> None:
    assert is_allowed(text) is allowed


NAMES = {"pairmill": True, "PairMill": True, "pairmill/0.1 (bot)": True, "pairmill*": True} | dict.fromkeys(
    ["pair", "p", "mill", "pairmill-images", "pairmillx", "images-pairmill", "*pair*", "(pairmill"], False
)


@pytest.mark.parametrize("line", ["User-agent: {}", "user agent {} # bot", "\tUSERAGENT:{}"])
def test_only_the_groups_with_our_whole_name_are_ours_and_they_count_as_one(line: str) -> None:
    """RFC 9309 section 2.2.1. The groups for everyone count only if none is ours."""
    everyone = line.format("*")
    for name, is_ours in NAMES.items():
        named = line.format(name)
        assert is_allowed(f"{everyone}\nDisallow: /p/\n{named}\nDisallow: /q/") is is_ours
        assert is_allowed(f"{named}\nDisallow: /p/\n\n{everyone}\nDisallow: /q/") is not is_ours
        assert is_allowed(f"{named}\nDisallow: /p/") is not is_ours
        assert is_allowed(f"{named}\n{line.format('other')}\nDisallow: /p/") is not is_ours
        assert is_allowed(f"{line.format('other')}\n{named}\nDisallow: /p/") is not is_ours
        assert is_allowed(f"{named}\nDisallow: /q/\n{everyone}\nAllow: /\n{named}\nDisallow: /p/\n") is not is_ours
        assert not is_allowed(f"{named}\n{everyone}\nDisallow: /p/")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("kept", "cut", "allowed"),
    [("Disallow: /p/", "Allow: /p/|2", False), ("", "Disallow: /|q/", True), ("Disallow: /p/", "", False)],
)
def test_a_line_that_ends_beyond_the_limit_is_no_rule(kept: str, cut: str, allowed: bool, end: str) -> None:
    text = f"User-agent: *{end}{kept}{end}"
    within, _, beyond = cut.partition("|")
    room = MAX_BYTES - len(text) - len(end) - len(within)
    text += "\n".join(["#" * 99] * (room // 100)) + "#" * (room % 100 + 1) + end + within
    assert len(text) == MAX_BYTES
    assert is_allowed(text + beyond) is allowed


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_line_that_ends_within_the_limit_is_a_rule_in_all_encodings(encoding: str, end: str) -> None:
    text = f"User-agent: *{end}Disallow: /p/{end}"
    assert not is_allowed(text + "#" * MAX_BYTES, encoding)
    assert is_allowed(text.replace("/p/", "/q/") + "#" * MAX_BYTES, encoding)


@pytest.mark.parametrize("beyond", ["", "\n", "\r\n", "\rAllow: /p/\n", "\nAllow: /p/\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_rule_that_ends_exactly_at_the_limit_counts(encoding: str, beyond: str) -> None:
    first, last = "User-agent: *\n", "\nDisallow: /p/"
    num_chars = MAX_BYTES // len("#".encode(encoding))
    text = first + "#" * (num_chars - len(first + last)) + last
    assert len(text.encode(encoding)) == MAX_BYTES
    assert not is_allowed(text + beyond, encoding)
    assert is_allowed(text + "1/" + beyond, encoding)


@pytest.mark.parametrize("line", [" " * 49, "User-agent" + " " * 39, "user agent: " + "x" * 37, "user" + " " * 45])
def test_no_robots_txt_takes_more_than_a_second_to_read(line: str) -> None:
    started = time.thread_time()
    is_allowed("\n".join([line] * min(9_900, MAX_BYTES // (len(line) + 1))))
    assert time.thread_time() - started < 1
