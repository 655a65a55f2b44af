"""Tests how untrusted text is cleaned for columns such as `status_detail`, and how lines are wrapped for terminals."""

import shlex
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.common.terminal_text import cells, wrapped
from pairmill.pipeline.common.text import clean_text


def test_clean_text_makes_any_text_safe_for_a_column() -> None:
    assert clean_text("a\r\nb\x00c\udc80 d") == "a b c d"
    assert clean_text("x" * 1000) == "x" * 200
    assert clean_text("  \n") is None
    assert clean_text(None) is None


WORDS = st.sampled_from(
    [
        "rows",
        "kept",
        "赤い円の写真",
        "cafe\u0301s",
        "of",
        "/data/a-long-path/to/a/report.html",
        "`pairmill retry out --set a=1`",
        "pairmill gc out;",
        f"pairmill purge {shlex.quote('/my cats, dogs (and more)')};",
        shlex.quote("/it's a folder/with spaces"),
        shlex.quote("/データ/写真 1"),
    ]
)


@given(st.integers(0, 4), st.lists(WORDS, min_size=1, max_size=20), st.integers(20, 80))
def test_wrapped_lines_fit_and_keep_every_command_and_path_whole(indent: int, words: list[str], width: int) -> None:
    text = " " * indent + " ".join(words)
    lines = wrapped(text, width).split("\n")
    assert " ".join(line.strip() for line in lines) == text.strip()
    assert [line for line in lines if columns(line) > width and line.strip() not in words] == []
    whole = [word for word in words if " " in word]
    assert sum(lines_with(word, lines) for word in {*whole}) == len(whole)
    assert columns(text) > width or lines == [text]


def columns(text: str) -> int:
    """The width of the text on a terminal."""
    width = {"W": 2, "F": 2}
    return sum(width.get(unicodedata.east_asian_width(each), 1) for each in text if not unicodedata.combining(each))


@given(st.lists(WORDS, max_size=3))
def test_a_wide_character_takes_two_cells_and_a_combining_one_none(words: list[str]) -> None:
    assert cells(" ".join(words)) == columns(" ".join(words))


def lines_with(word: str, lines: list[str]) -> int:
    """How often the word occurs within a line."""
    return sum(line.count(word) for line in lines)
