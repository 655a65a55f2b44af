"""Tests files of digests and URLs: which lines count as entries, and which values are found."""

import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.url_parser import parse_url, resolve_url
from pairmill.pipeline.known.read_values import Tally
from pairmill.pipeline.known.text_list import read_text_list
from pairmill.pipeline.purge.lists import read_list
from pairmill.pipeline.rules import SourceRules, apply_rules, check_rules
from pairmill.pipeline.rules.blocklists import is_listed, load_blocklist, url_digest
from pairmill.pipeline.rules.url import refused_redirect
from pairmill.schemas.errors import JobError, PairmillError
from pairmill.schemas.status import Status, Step


def test_urls_and_hashes_of_urls_can_be_mixed(tmp_path: Path) -> None:
    hashed, plain, other = "http://a.example/ä?b=1", "http://b.example/", "http://B.example/"
    path = tmp_path / "urls.txt"
    path.write_text(f"# no\n{hashlib.sha256(hashed.encode()).hexdigest().upper()}\r\n{plain}\n")
    digests = [url_digest(url) for url in (hashed, plain, other)]
    assert is_listed(digests, "url", str(path), Files()).tolist() == [True, True, False]


SPELLINGS = [
    "http://a.example/%C3%A9?b",
    "http://a.example/\u00e9?b",
    "HTTP://user@A.example:80/./x/../\u00e9?b#c",
    "http:a.example/%C3%A9?b",
]


@pytest.mark.parametrize("listed", [spelling for spelling in SPELLINGS if "://" in spelling])
def test_a_listed_url_is_found_in_every_spelling_that_leads_to_the_same_request(
    tmp_path: Path, in_flight: Any, listed: str
) -> None:
    """This holds for the URLs of rows and of redirects. A redirect's target is checked as it will be requested."""
    path = tmp_path / "urls.txt"
    path.write_text(f"\ufeff{listed}\r\n")
    rules = SourceRules(url_blocklist=str(path))
    urls = [*SPELLINGS, *(f" {url}\n" for url in SPELLINGS), "http://a.example/e?b", "http://a.example/%C3%A9"]
    rows = apply_rules(in_flight([{"url": url} for url in urls]), Step.URL, rules)
    assert rows["status"].to_pylist() == ["url_blocklisted"] * 8 + ["ok"] * 2
    origin = parse_url("http://a.example/x/y").parsed
    assert origin is not None
    for location in (*SPELLINGS[:3], "/\u00e9?b", "../x/../%C3%A9?b"):
        target = parse_url(str(resolve_url(origin, location).parsed))
        assert (refused_redirect(target, rules) or ["none"])[0] is Status.URL_BLOCKLISTED, location


def test_a_list_that_cannot_be_split_into_lines_or_decompressed_is_an_error_with_its_name(tmp_path: Path) -> None:
    urls = b"http://a.example/\n" * 99
    cases = {
        "a.txt": (urls.replace(b"\n", b"\r"), "a.txt, line 1: contains a carriage return"),
        "b.gz": (gzip.compress(urls)[:-9], "b.gz: cannot be fully decompressed"),
        "c.GZ": (urls, "c.GZ: cannot be fully decompressed .*: Not a gzipped file"),
        "d.gz": (gzip.compress(urls)[:10] + b"\xff" * 9, "d.gz: cannot be fully decompressed"),
    }
    for name, (content, problem) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"rules.url_blocklist: .*{problem}"):
            check_rules(SourceRules(url_blocklist=str(path)))
        with pytest.raises(JobError, match=problem):
            read_list(Files(), str(path), "url")
        with pytest.raises(PairmillError, match=re.sub(" contains.*", ".* is not a URL", problem)):
            list(read_text_list(Files(), str(path), "url", Tally()))


def test_a_missing_digest_is_never_listed_even_if_zeros_are(tmp_path: Path) -> None:
    path = tmp_path / "md5"
    path.write_text("00" * 16)
    assert is_listed([None, bytes(16), b"\1" * 16], "md5", str(path), Files()).tolist() == [False, True, False]


def test_an_empty_blocklist_matches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_text("# nothing yet\n")
    assert is_listed([b"\xff" * 32, None], "sha256", str(path), Files()).tolist() == [False, False]
    assert is_listed([], "sha256", str(path), Files()).tolist() == []


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("md5", "ab" * 15),
        ("md5", "ab" * 16 + "  photo.jpg"),
        ("md5", "zz" * 16),
        ("md5", "ab " * 10 + "ab"),
        ("sha256", "ab" * 16),
        ("url", "ab" * 16),
        ("url", "example.com/a"),
        ("url", "http://a.example/\ufffd"),
        ("url", '"http://a.example/"'),
        ("url", "http://a.example/\tspam"),
        ("url", "http://a.example/ # spam"),
    ],
)
def test_a_malformed_line_is_an_error_with_its_number(tmp_path: Path, kind: str, line: str) -> None:
    path = tmp_path / "list"
    path.write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(ValueError, match=r"list, line 3: .* is not a (digest|URL)"):
        load_blocklist(kind, str(path), Files())  # type: ignore[arg-type]


def test_a_blocklist_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = Files.read_text_lines
    monkeypatch.setattr(Files, "read_text_lines", lambda self, path: reads.append(path) or read(self, path))
    (tmp_path / "once").write_text("cd" * 16 + "\n" + "ab" * 16)
    for _ in range(3):
        assert is_listed([b"\xab" * 16, b"\xac" * 16], "md5", str(tmp_path / "once"), Files()).tolist() == [True, False]
    assert len(reads) == 1


LISTED = st.sets(
    st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15)])
)


@given(LISTED, LISTED)
def test_exactly_the_listed_digests_are_found(
    tmp_path_factory: pytest.TempPathFactory, listed: set[bytes], others: set[bytes]
) -> None:
    path = tmp_path_factory.mktemp("lists") / "md5"
    path.write_text("\n".join(digest.hex() for digest in listed))
    asked = [*listed, *others]
    assert is_listed(asked, "md5", str(path), Files()).tolist() == [digest in listed for digest in asked]
