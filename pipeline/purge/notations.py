r"""Reads text that is written with escapes, so that a search needs to know only one spelling of a value.

    backslashes     JSON, YAML and Markdown: `\/`, `\u00e9` (also as two surrogates), `\xe9`, `\"`
    HTML            character references: `&#47;`, `&#x2f;`, `&amp;`
    percent         `%2F` in a URL that is part of another URL. The escapes of a URL itself stay, because
                    `a%2Fb` and `a/b` are different URLs

Each notation can contain another one, such as JSON in a string of JSON. The cost is linear in the length of the text.
"""

import csv
import html
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import unquote

from pairmill.pipeline.purge.windows import Window

MAX_NESTED = 3
"""Maximum number of notations inside each other."""
_BACKSLASH = re.compile(
    r"\\(u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[!-/:-@\[-`{-~bfnrt])"
)
_NAMED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SURROGATES = re.compile("[\ud800-\udfff]+")
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
"""With its semicolon: browsers read `&lt` without one, too, but not the parameter `&lt=` of a URL."""
_PERCENT = re.compile("%[0-9a-fA-F]{2}")
_UNENCODED = re.compile(r"(?<!3[aA])//|[\s\"'<>^`{|}&?#=;,]")
"""What no percent-encoded URL contains. In contrast to other slashes, `//` is always encoded, or follows `%3A`."""
_TAG = re.compile(r"<[^<>]*>|\0")
_QUOTE = re.compile("'")
_JSON_QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')
_SPLITS: tuple[Callable[[str], list[str]], ...] = (str.splitlines, _TAG.split, _QUOTE.split, _JSON_QUOTE.split)
_SPECIAL = re.compile(r"[\\&<\"'\0\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""Text without such characters has neither escapes nor parts."""
_DELIMITERS = ",;\t|"


def readings(text: str) -> Iterator[str]:
    """The words of a text that contain escapes, as each notation reads them."""
    seen, level = set[str](), [text]
    for _ in range(MAX_NESTED):
        level = [each for text in level for each in _words_without_escapes(text) if each not in seen]
        seen.update(level)
        yield from level


def strings_in(window: Window) -> set[str]:
    """Everything in text, JSON or HTML that could be a caption or URL, as it stands and as each notation reads it."""
    found = {piece for split in _SPLITS for piece in window.inner(split(window.text))}
    found |= {window.text} if window.is_first and window.is_last else set()
    new = found
    for _ in range(MAX_NESTED):
        new = {piece for text in new for piece in _without_escapes(text)} - found
        found |= new
    return found


def strings_in_cell(text: str) -> set[str]:
    """Everything that could be a caption or URL in the text of one cell."""
    return strings_in(Window(text, 0, True, True)) if _SPECIAL.search(text) else {text}


def csv_fields(window: Window) -> Iterator[str]:
    """The fields of the lines of a CSV file, with any delimiter."""
    for line in window.inner(window.text.splitlines()):
        for delimiter in _DELIMITERS:
            if delimiter in line:
                with suppress(csv.Error):
                    yield from next(csv.reader([line], delimiter=delimiter), [])


def _words_without_escapes(text: str) -> Iterator[str]:
    for mark, decode in (*_NOTATIONS.items(), ("%", _percent_decoded)):
        if mark in text:
            words = "\n".join({word for word in text.split() if mark in word})
            if (decoded := decode(words)) != words:
                yield decoded


def _without_escapes(text: str) -> Iterator[str]:
    """A string and its parts, as each notation reads it."""
    for mark, decode in _NOTATIONS.items():
        if mark in text and (decoded := decode(text)) != text:
            yield decoded
            if _SPECIAL.search(decoded):
                for split in _SPLITS:
                    yield from split(decoded)


def _unescaped(text: str) -> str:
    text = _BACKSLASH.sub(_character, text)
    return _SURROGATES.sub(lambda run: run[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace"), text)


def _character(escape: re.Match[str]) -> str:
    code = escape[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _NAMED.get(code, code)


def _dereferenced(text: str) -> str:
    return _REFERENCE.sub(lambda reference: html.unescape(reference[0]), text)


def _percent_decoded(text: str) -> str:
    """The parts of a text that are percent-encoded as a whole, each on a line."""
    parts = {part for part in _UNENCODED.split(text) if _PERCENT.search(part)}
    return "\n".join(map(unquote, parts)) if parts else text


_NOTATIONS: dict[str, Callable[[str], str]] = {"\\": _unescaped, "&": _dereferenced}
