"""Invariant of word lists, as in MetaCLIP: an entry is found if " entry " is a substring of the spaced caption."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.select.balance.word_list import WordList

TEXTS = st.text("ab猫ไ ,.`\n\té\x00", max_size=12)


def spaced(text: str) -> str:
    text = text.replace("\t", " ").replace("\n", " ")
    return "".join(f" {letter} " if letter in ",.;:?!`" else letter for letter in text)


@given(st.lists(TEXTS.map(lambda text: text.replace("\n", "")), max_size=8), st.lists(st.none() | TEXTS, max_size=8))
def test_entries_are_substrings_of_spaced_captions(lines: list[str], captions: list[str | None]) -> None:
    words = WordList(lines)
    patterns: dict[str, str] = {}
    for line in lines:
        entry = spaced(line).strip()
        if entry and entry not in patterns:
            patterns[entry] = ("" if entry[0] in "猫ไ" else " ") + entry + ("" if entry[-1] in "猫ไ" else " ")
    assert len(words) == len(patterns)
    expected = [
        (row, number)
        for row, caption in enumerate(captions)
        for number, pattern in enumerate(patterns.values())
        if pattern in f" {spaced(caption or '')} "
    ]
    found = words.find(pa.chunked_array([pa.array(captions, pa.string())]))
    assert list(zip(*(each.tolist() for each in found), strict=True)) == expected
