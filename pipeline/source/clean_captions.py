"""Cleans captions for rules, models and `.txt` members.

Most web captions are plain ASCII and already clean. So each step first uses a linear-time regex (RE2) to find the few
rows that it might change, and processes only those. Nothing is truncated here: captions are truncated only for the
models, in `encode/truncate_caption.py`.
"""

import re
import unicodedata
from collections.abc import Callable
from html.entities import html5

import pyarrow as pa
import pyarrow.compute as pc

_NOT_PLAIN = r"[^ -~]|  |^ | $"
"""A character that is not printable ASCII, or a doubled, leading or trailing space."""

# Invisible and meaningless to readers: control characters other than whitespace (C0, DEL, C1), soft hyphens and
# direction marks. ZWJ and ZWNJ stay, because emoji sequences and Persian spelling need them.
_REMOVED_CHARACTERS = (
    r"[\x00-\x08\x0e-\x1b\x7f-\x{84}\x{86}-\x{9f}\x{ad}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{2069}]"
)

# Whitespace as in `str.isspace`, plus the zero-width space, word joiner and byte order mark.
_WHITE_SPACE = r"[\t-\r\x1c-\x20\x{85}\pZ\x{200b}\x{2060}\x{feff}]+"

# Characters that are invisible by themselves: Default_Ignorable_Code_Point of Unicode 17 (DerivedCoreProperties.txt),
# such as the Hangul fillers, zero-width joiners, variation selectors and tags; interlinear annotation marks; and the
# blank Braille and musical symbols. By this point, every run of whitespace has been collapsed to one space.
_INVISIBLE = (
    r"[ \x{ad}\x{34f}\x{61c}\x{115f}\x{1160}\x{17b4}\x{17b5}\x{180b}-\x{180f}\x{200b}-\x{200f}\x{202a}-\x{202e}"
    r"\x{2060}-\x{206f}\x{2800}\x{3164}\x{fe00}-\x{fe0f}\x{feff}\x{ffa0}\x{fff0}-\x{fffb}\x{1bca0}-\x{1bca3}"
    r"\x{1d159}\x{1d173}-\x{1d17a}\x{e0000}-\x{e0fff}]"
)

# At most 30 combining marks in a row, as in the Stream-Safe Text Format (Unicode annex 15, section 13): normalizing
# takes quadratic time in the length of such a run (200,000 marks: 30 s), and no language has longer ones.
_MARKS, _FIRST_MARKS = r"(\pM{30})\pM+", r"\1"

# As in HTML's attributes (https://html.spec.whatwg.org/#named-character-reference-state), because captions are mostly
# `alt` texts: some names need no semicolon, unless `=`, a letter or a digit follows, as in `?a=1&copy=2`.
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[A-Za-z][A-Za-z0-9]{1,31}(?:;|(?![=A-Za-z0-9])))")


def clean_captions(raw: pa.Array) -> pa.Array:
    """Clean a string column, keeping length and order. Null stays null; a caption with nothing left becomes "".

    HTML entities are decoded as browsers decode them in attributes (at most twice, for pages that escape twice),
    control characters are removed, every run of whitespace (including no-break and zero-width spaces) becomes one
    space, ends are trimmed, and the result is NFC.
    A caption without any visible character becomes empty; in other captions, joiners and variation selectors stay.
    """
    captions = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    captions = _change_where(captions.cast(pa.string()), "&", _unescape)
    return _change_where(captions, _NOT_PLAIN, _normalize)


def _change_where(captions: pa.Array, pattern: str, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """`captions` with `change` applied to the rows that match `pattern`."""
    mask = pc.match_substring_regex(captions, pattern).fill_null(False)
    if mask.true_count == 0:
        return captions
    return pc.replace_with_mask(captions, mask, change(captions.filter(mask)))


def _unescape(captions: pa.Array) -> pa.Array:
    return pa.array([_unescape_twice(caption) for caption in captions.to_pylist()], pa.string())


def _unescape_twice(caption: str) -> str:
    for _ in range(2):
        caption = _REFERENCE.sub(_decode, caption)
    return caption


def _decode(reference: re.Match[str]) -> str:
    text = reference[0]
    if text[1] != "#":
        return html5.get(text[1:], text)
    return _decode_number(text[3:], 16) if text[2] in "xX" else _decode_number(text[2:], 10)


def _decode_number(digits: str, base: int) -> str:
    """https://html.spec.whatwg.org/#numeric-character-reference-end-state. `html.unescape` differs: it drops control
    characters, which joins the words around `&#11;`."""
    # `int` refuses numbers of more than 4,300 digits. With 8 digits, a number is already beyond Unicode.
    code = int(digits.rstrip(";").lstrip("0")[:8] or "0", base)
    if code == 0 or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    is_windows_1252 = 0x80 <= code <= 0x9F
    return (bytes([code]).decode("cp1252", "ignore") if is_windows_1252 else "") or chr(code)


def _normalize(captions: pa.Array) -> pa.Array:
    captions = pc.replace_substring_regex(captions, _REMOVED_CHARACTERS, "")
    captions = pc.replace_substring_regex(captions, _WHITE_SPACE, " ")
    captions = pc.utf8_trim(captions, " ")
    return _change_where(captions, r"[^\x00-\x7f]", _compose)


def _compose(captions: pa.Array) -> pa.Array:
    captions = pc.replace_substring_regex(captions, _MARKS, _FIRST_MARKS)
    composed = [unicodedata.normalize("NFC", caption) for caption in captions.to_pylist()]
    # Limit the marks again, because NFC splits some of them in two, and cleaning a clean caption must not change it.
    captions = pc.replace_substring_regex(pa.array(composed, pa.string()), _MARKS, _FIRST_MARKS)
    return pc.replace_substring_regex(captions, f"^{_INVISIBLE}+$", "")
