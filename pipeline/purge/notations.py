r"""Reads text that is written with escapes, so that a search needs to know only one spelling of a value.

    backslashes     JSON, YAML and Markdown: `\/`, `\u00e9` (also as two surrogates), `\xe9`, `\"`
    HTML            character references: `&#47;`, `&#x2f;`, `&amp;`
    percent         `%2F` in a URL that is part of another URL. The escapes of a URL itself stay, because
                    `a%2Fb` and `a/b` are different URLs

Each notation can contain another one, such as JSON in a string of JSON. Everything that is equally deep is read at once
and only once, whichever way it was reached, so each level costs about as much as the text itself.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from urllib.parse import unquote

from pairmill.pipeline.purge.windows import Window

MAX_NESTED = 3
"""Maximum number of notations inside each other."""
_BACKSLASH = re.compile(
    r"(\\(?:u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[!-/:-@\[-`{-~bfnrt]))"
)
_NAMED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SURROGATES = re.compile("[\ud800-\udfff]+")
_REFERENCE = re.compile(r"(&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});)")
"""With its semicolon: browsers read `&lt` without one, too, but not the parameter `&lt=` of a URL."""
_PERCENT = re.compile("%[0-9a-fA-F]{2}")
_UNENCODED = re.compile(r"(?<!3[aA])//|[\s\"'<>^`{|}&?#=;,]")
"""What no percent-encoded URL contains. In contrast to other slashes, `//` is always encoded, or follows `%3A`."""
_MARKS = re.compile(r"[\\&%]")
_ESCAPED = re.compile(rf"[\\%]|{_REFERENCE.pattern}")
_DROPPED = re.compile(r"[\t\n\r]+")
_SPECIAL = re.compile(r"[\\&<\"'\0\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""Text without such characters has neither escapes nor parts."""
_DOCUMENT = re.compile(r"\s*+(?:\{.*\}|\[.*\]|<.*>|\".*\")\s*", re.DOTALL)
"""JSON or HTML that is a whole cell."""

_BORDER = "\0"
"""Separates texts that are searched together: it ends every part below."""
_LINE = re.compile("[\0\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_TAG = re.compile(r"<[^<>]*>|\0")
_IN_TAG = re.compile(r"<[^<>]*>")
_SINGLE = re.compile("['\0]")
_DOUBLE = re.compile('["\0]')
_UNESCAPED_DOUBLE = re.compile(r'(?<!\\)((?:\\\\)*)"|\0')
_FIELDS = [re.compile(f"[\0\r\n{delimiter}]") for delimiter in ",;\t|"]
_QUOTED_FIELD = re.compile(r'(?<![^,;\t|\r\n\0])"((?:[^"]|"")*+)"(?![^,;\t|\r\n\0])')


def readings(text: str) -> Iterator[str]:
    """The words of a text that contain escapes, as each notation reads them."""
    words = {word for word in text.split() if _MARKS.search(word)}
    seen, percent_decoded = set(words), set[str]()
    for _ in range(MAX_NESTED):
        for mark, decode in (*_NOTATIONS.items(), ("%", _percent_decoded)):
            marked = {word for word in words if mark in word}
            if mark == "%":  # these words stay, because their escapes can be those of a URL itself
                marked -= percent_decoded
                percent_decoded |= marked
            else:
                words -= marked
            if marked:
                decoded = set(decode("\n".join(marked)).split())
                words |= decoded
                if new := decoded - seen:
                    seen |= new
                    yield "\n".join(new)


def without_line_breaks(text: str) -> str:
    """The text without the tabs and line breaks that browsers drop from URLs."""
    return _DROPPED.sub("", text)


def has_escapes(text: str) -> bool:
    """Whether `readings` could read a URL or message in another way."""
    return _ESCAPED.search(text) is not None


def strings_in(window: Window) -> Iterator[set[str]]:
    """Everything in text, JSON or HTML that could be a caption or URL, as it stands and as each notation reads it."""
    seen = set[str]()
    yield {piece for split in (_LINE.split, _SINGLE.split) for piece in window.inner(split(window.text))}
    for _ in range(MAX_NESTED):
        text = window.text
        double, outside = set(chain(*map(window.inner, _between_quotes(text)))), set(window.inner(_TAG.split(text)))
        yield (double | outside) - seen
        attributes = _SINGLE.split(_BORDER.join(_IN_TAG.findall(text))) if "'" in text else []
        new = _decoded(double, "\\") | _decoded(double.union(outside, attributes), "&")
        new -= seen
        if not new:
            return
        yield new
        seen |= new
        window = Window(_BORDER.join(each for each in new if _SPECIAL.search(each)), 0, True, True)
    yield {*chain(*_between_quotes(window.text)), *_TAG.split(window.text)} - seen


def strings_in_cells(texts: Iterable[str]) -> Iterator[set[str]]:
    """Everything that could be a caption or URL in cells, apart from the cells as they stand. Only cells that consist
    of JSON or HTML have parts: what is quoted in another row's caption is not a caption."""
    level, seen = {text.strip("\r\n") for text in texts if _SPECIAL.search(text)}, set[str]()
    for _ in range(MAX_NESTED + 1):
        yield level
        seen |= level
        documents = {text for text in level if _DOCUMENT.fullmatch(text)}
        if documents:
            yield from strings_in(Window(_BORDER.join(documents), 0, True, True))
        level = (_decoded(level - documents, "\\") | _decoded(level - documents, "&")) - seen


def csv_fields(window: Window) -> Iterator[set[str]]:
    """The fields of a CSV file, with any delimiter."""
    for field in _FIELDS:
        yield set(window.inner(field.split(window.text)))
    yield {field.replace('""', '"') for field in _QUOTED_FIELD.findall(window.text)}


def _between_quotes(text: str) -> Iterator[list[str]]:
    """The text split at double quotes, except at those after a backslash; then, if there are any, also at those,
    because a value in HTML or plain text can end with a backslash."""
    parts = _UNESCAPED_DOUBLE.split(text)
    ends = [*parts[1::2], None]  # backslashes in front of the quotation mark
    yield [piece + (end or "") for piece, end in zip(parts[::2], ends, strict=True)]
    if '\\"' in text:
        yield _DOUBLE.split(text)


def _decoded(pieces: Iterable[str], mark: str) -> set[str]:
    marked = {piece for piece in pieces if mark in piece}
    return set(_NOTATIONS[mark](_BORDER.join(marked)).split(_BORDER)) - marked if marked else set()


def _unescaped(text: str) -> str:
    text = _replaced(_BACKSLASH, _character, text)
    return _SURROGATES.sub(lambda run: run[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace"), text)


@lru_cache(1 << 12)
def _character(escape: str) -> str:
    code = escape[1:]
    return chr(int(code[1:], 16)) if len(code) > 1 else _NAMED.get(code, code)


def _dereferenced(text: str) -> str:
    return _replaced(_REFERENCE, _referenced, text)


@lru_cache(1 << 12)
def _referenced(reference: str) -> str:
    return html.unescape(reference)


def _replaced(pattern: re.Pattern[str], read: Callable[[str], str], text: str) -> str:
    """The same as `pattern.sub`, in less time."""
    parts = pattern.split(text)
    parts[1::2] = map(read, parts[1::2])
    return "".join(parts)


def _percent_decoded(text: str) -> str:
    """The parts of a text that are percent-encoded as a whole, each on a line."""
    parts = {part for part in _UNENCODED.split(text) if _PERCENT.search(part)}
    return "\n".join(map(unquote, parts)) if parts else text


_NOTATIONS: dict[str, Callable[[str], str]] = {"\\": _unescaped, "&": _dereferenced}
