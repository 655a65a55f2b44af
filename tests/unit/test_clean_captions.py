"""Tests the cleaning of captions: what is removed, what stays, and how long it may take."""

import html
import time
import unicodedata
from html.entities import html5
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pairmill.pipeline.source.clean_captions import clean_captions


def clean(caption: str | None) -> str | None:
    (cleaned,) = clean_captions(pa.array([caption], pa.string())).to_pylist()
    return cleaned  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (None, None),
        ("", ""),
        (" \t\n\u200b", ""),
        ("a dog", "a dog"),
        ("  a \r\n\t dog ", "a dog"),
        ("a\u00a0\u2003dog\u3000\ufeff", "a dog"),
        ("a\u200b\u200bdog", "a dog"),
        ("a\x85dog\x1fruns", "a dog runs"),
        ("a\x00b\x07c\x7fd\x9fe", "abcde"),
        ("a \x00 b", "a b"),
        ("co\u00adoperate", "cooperate"),
        ("\u202aabc\u202c", "abc"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("Tom &amp;amp;amp; Jerry", "Tom &amp; Jerry"),
        ("&lt;b&gt;&quot;a&quot;&#39;&#x27;&nbsp;b", "<b>\"a\"'' b"),
        ("R&D, AT&T", "R&D, AT&T"),
        ("http://a.example/?b=1&amp;copy=2&reg=3&amp", "http://a.example/?b=1&copy=2&reg=3&"),
        ("&#65b &#x41g &#xD7", "Ab Ag ×"),
        ("&eacute;e\u0301", "éé"),
        ("e\u00ad\u0301", "é"),
        ("&#0;&#xD800;&#x110000;", "\ufffd\ufffd\ufffd"),
        ("&#" + "9" * 5000 + ";!", "\ufffd!"),
        ("&#" + "0" * 5000 + "65;!", "A!"),
        ("\u212b\u2126", "ÅΩ"),
        ("Ｆｕｌｌ ﬁ", "Ｆｕｌｌ ﬁ"),  # NFC, not NFKC
        ("👨\u200d👩\u200d👧 می\u200cخواهم", "👨\u200d👩\u200d👧 می\u200cخواهم"),
        ("a" + "\u0301" * 100 + "b", "á" + "\u0301" * 29 + "b"),
    ],
)
def test_a_caption_is_cleaned(raw: str | None, cleaned: str | None) -> None:
    assert clean(raw) == cleaned


def test_named_entities_are_decoded_as_by_html_unless_a_word_or_a_parameter_goes_on() -> None:
    """Tries every name of HTML with every kind of next character. Python decodes as in text, we as in attributes, where
    a name without a semicolon ends at the end of the word."""
    texts, decoded, stays = [], [], []
    for name in html5:
        for after in ("", " b", ".", "&", "é", "<", ";", "=1", "Zz", "0z"):
            text = f"a &{name}{after}"
            texts.append(text)
            decoded.append(html.unescape(text))
            stays.append(not name.endswith(";") and after[:1] in ("=", "Z", "0"))
    expected = pc.if_else(pa.array(stays), pa.array(texts), clean_captions(pa.array(decoded)))
    assert clean_captions(pa.array(texts)).to_pylist() == expected.to_pylist()
    assert clean("a &notit; &notin; &ampamp;") == "a &notit; ∉ &ampamp;"


def test_every_numeric_reference_is_decoded_as_browsers_decode_it() -> None:
    """The oracle is Python's decoder, which differs from browsers only in dropping controls and noncharacters."""
    codes = [*range(0x300), *range(0xD700, 0xE100), *range(0xFD00, 0x10100), *range(0x10FF00, 0x110100), 10**20]
    decoded = [html.unescape(f"&#{code};") or chr(code) for code in codes]
    for write in ("&#{};", "&#0{} ", "&#x{:x};", "&#X00{:X} "):
        references = pa.array([f"a{write.format(code)}b" for code in codes])
        expected = pa.array([f"a{char}{' ' * write.endswith(' ')}b" for char in decoded])
        assert clean_captions(references).to_pylist() == clean_captions(expected).to_pylist()
    assert clean("two&#11;words&#x1c;apart&#7;") == "two words apart"


POINTS = chain(range(0x40000), range(0xE0000, 0xF0000))  # the other planes are unassigned or private
EVERY_CHARACTER = [char for char in map(chr, POINTS) if unicodedata.category(char) not in ("Cn", "Co", "Cs")]
BLANK = set(regex.findall(r"\p{Default_Ignorable_Code_Point}|\s|\p{Cc}", "".join(EVERY_CHARACTER)))
BLANK |= set("\u2800\U0001d159\ufff9\ufffa\ufffb")


def test_only_captions_without_a_visible_character_become_empty() -> None:
    """Tries every character of Python's Unicode. The `regex` module says which ones are ignorable."""
    cleaned = clean_captions(pa.array([f" {char}" for char in EVERY_CHARACTER]))
    assert {char for char, text in zip(EVERY_CHARACTER, cleaned.to_pylist(), strict=True) if not text} == BLANK


@given(st.text(st.sampled_from(sorted(BLANK))), st.sampled_from(["", "x", "&#x3164;", "é", "🏴"]))
def test_blank_characters_alone_become_empty_but_stay_beside_visible_characters(blanks: str, visible: str) -> None:
    cleaned = clean(blanks + visible + blanks)
    assert cleaned is not None
    assert bool(cleaned) == (visible not in ("", "&#x3164;"))
    assert clean(cleaned) == cleaned
    if cleaned:
        assert cleaned.count("\u3164") == 2 * blanks.count("\u3164")


def test_rows_keep_their_order() -> None:
    raw = ["plain", None, " a  b ", "&amp;", "", "é", "e\u0301"]
    for column in (pa.array(raw), pa.array(raw, pa.large_string()), pa.chunked_array([raw[:3], raw[3:]])):
        cleaned = clean_captions(column)
        assert cleaned.type == pa.string()
        assert cleaned.to_pylist() == ["plain", None, "a b", "&", "", "é", "é"]
    assert clean_captions(pa.array([], pa.string())).to_pylist() == []
    assert clean_captions(pa.nulls(2, pa.string())).to_pylist() == [None, None]


WILD = st.text() | st.text(alphabet="a \t\x00\u0301\u0316\u0344\u200b\u00ad\u00a0é가ᄀ\u1161&#;x1amp", max_size=80)


@settings(max_examples=settings.default.max_examples // 3)
@given(st.lists(WILD, min_size=1, max_size=6))
@example(["a" + "\u0344" * 40, "a" + "\u0301\u0316" * 40])
def test_a_clean_caption_is_nfc_with_single_spaces_and_no_control_characters(raw: list[str]) -> None:
    every = clean_captions(pa.array(raw))
    again = clean_captions(every).to_pylist()
    for cleaned, twice in zip(every.to_pylist(), again, strict=True):
        assert unicodedata.is_normalized("NFC", cleaned)
        assert not any(unicodedata.category(character) == "Cc" for character in cleaned)
        assert cleaned == " ".join(cleaned.split())
        if "&" not in cleaned:
            assert twice == cleaned


def test_every_combining_mark_counts_toward_the_limit_on_runs() -> None:
    marks = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]
    assert pc.all(pc.match_substring_regex(pa.array(marks), r"^\pM$")).as_py()


@pytest.mark.parametrize(
    "unit", ["a", "  ", " a", "&", "&a", "&#1", "&amp;", "&amp;amp;", "\x00", "\u0301\u0316", "e\u0301", "가", "\u200b"]
)
def test_hostile_captions_take_linear_time(unit: str) -> None:
    started = time.thread_time()
    clean(unit * (250_000 // len(unit)) + "!")
    clean("&#" + unit * (250_000 // len(unit)) + ";")
    assert time.thread_time() - started < 2.5  # an eighth of a second at most; quadratic time would take far longer


def test_plain_captions_are_not_copied_individually() -> None:
    captions = pa.array(["a red circle above a blue square on a white background"] * 4096)
    assert clean_captions(captions).buffers()[2].address == captions.buffers()[2].address
