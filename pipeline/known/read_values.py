"""Checks the values of lists and turns them into keys. Counts lines and rows without a value."""

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.known.keys import HEX_DIGITS, Keys, digest_keys, keys_of
from pairmill.pipeline.known.known_error import KnownError
from pairmill.schemas.known import ValueKind

_SHA256 = r"^[0-9a-fA-F]{64}$"
_URL = r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^\x00-\x20\x7f]+$"
_UUID = r"^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_FORMS: dict[ValueKind, str] = {kind: f"^[0-9a-fA-F]{{{digits}}}$" for kind, digits in HEX_DIGITS.items()} | {
    "uid": f"^[0-9a-fA-F]{{32}}$|{_UUID}"
}  # the same forms as in source/uid.py


@dataclass
class Tally:
    """Counts of what was read from one list or dataset."""

    values: Counter[ValueKind] = field(default_factory=Counter)
    """Kind -> number of values."""
    unused: Counter[str] = field(default_factory=Counter)
    """Reason -> number of unused lines, rows, files or shards."""


@dataclass(frozen=True)
class Position:
    """The position of values in a list, for messages."""

    path: str
    unit: str
    """`line` or `row`."""
    first: int
    """Number of the first value's line or row."""

    def error(self, index: int, value: str, kind: ValueKind) -> KnownError:
        """The error for the value at this index."""
        what = "a URL" if kind == "url" else f"a valid {kind} ({HEX_DIGITS[kind]} hex digits)"
        shown = repr(clean_text(value, 80) or "")
        return KnownError(f"{self.path}, {self.unit} {self.first + index:,}: {shown} is not {what}")


def looks_like(kind: ValueKind, text: str) -> bool:
    """Whether a field looks like a value of this kind."""
    forms = (_URL, _SHA256) if kind == "url" else (_FORMS[kind],)
    return any(re.match(form, text.strip()) for form in forms)


def list_keys(kind: ValueKind, texts: pa.Array, position: Position, tally: Tally, must_be_urls: bool) -> Keys:
    """The keys of a list's values. Null and blank values are only counted. URLs may also be given as their SHA-256.

    `must_be_urls`: if `kind` is `url`, refuse text that does not look like a URL. If False, such text counts as a URL
    that matches nothing. Raises KnownError, naming the line or row, for text that is not a value of this kind.
    """
    texts = pc.utf8_trim_whitespace(texts)
    is_value = pc.not_equal(texts, "").fill_null(False)
    if empty := len(texts) - is_value.true_count:
        tally.unused[f"no {kind}"] += empty
    tally.values[kind] += is_value.true_count
    if kind == "url":
        return _url_keys(texts, is_value, position, must_be_urls)
    is_good = pc.match_substring_regex(texts, _FORMS[kind]).fill_null(False)
    _refuse(pc.and_not(is_value, is_good), texts, position, kind)
    values = pc.utf8_lower(texts.filter(is_value))
    return keys_of(kind, pc.replace_substring(values, "-", "") if kind == "uid" else values)


def _url_keys(texts: pa.Array, is_value: pa.Array, position: Position, must_be_urls: bool) -> Keys:
    is_digest = pc.match_substring_regex(texts, _SHA256).fill_null(False)
    if must_be_urls:
        is_url = pc.match_substring_regex(texts, _URL).fill_null(False)
        _refuse(pc.and_not(is_value, pc.or_(is_url, is_digest)), texts, position, "url")
    if not is_digest.true_count:
        return keys_of("url", texts.filter(is_value))
    keys = keys_of("url", texts.filter(pc.and_not(is_value, is_digest)))
    return np.concatenate([keys, digest_keys(texts.filter(is_digest))])


def _refuse(is_bad: pa.Array, texts: pa.Array, position: Position, kind: ValueKind) -> None:
    if is_bad.true_count:
        index = pc.index(is_bad, True).as_py()
        raise position.error(index, texts[index].as_py(), kind)
