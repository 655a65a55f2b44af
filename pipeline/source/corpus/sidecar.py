"""Reads the text beside a picture: captions, URL and uid from its `.txt` and `.json`, or from its rows in a table.

Text that cannot be read as captions never counts as "no caption": the sample's `problem` says why, and its row is
refused.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pairmill.pipeline.common.text import utf8_bytes
from pairmill.pipeline.source.columns import CAPTION_NAMES
from pairmill.pipeline.source.content_kind import LFS_POINTER
from pairmill.pipeline.source.files import SourceError, shown
from pairmill.pipeline.source.names import Names
from pairmill.pipeline.source.records import is_nan, parse_json
from pairmill.schemas.job.source import SourceConfig

CAPTION_ENDINGS = ("txt", "caption", "text")
MAX_TEXT_BYTES = 1 << 20
"""Larger caption files are refused unread."""
MAX_JSON_BYTES = 4 << 20
"""Larger JSON is not read, because it takes up to ten times its size in memory once parsed. The sample then needs
another source for its caption."""

Captions = tuple[bytes | None, ...]

_SHOWN_KEYS = 20
_MAX_PROBLEMS = 100
_CAPTION_KEYS = (*CAPTION_NAMES, "description", "prompt")
_IN_OBJECTS = ("caption", "text", "raw", "sentence")
"""Keys of the caption in each object of a list, as in COCO, Visual Genome and Karpathy's splits."""
_UTF_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class UnreadableText(Exception):
    """Text beside a picture that cannot be a caption; the message says why."""


@dataclass(slots=True)
class TextUse:
    """Whether any text file of a tar or folder has the key or extension that `source.caption_column` names."""

    column: str | None = None
    was_found: bool = False
    keys: dict[str, None] = field(default_factory=dict)
    """Some of the JSON keys, for error messages."""
    uncaptioned: int = 0
    """Number of samples that have JSON but no caption, neither in the JSON nor elsewhere."""
    other_keys: dict[str, None] = field(default_factory=dict)
    """Some of the keys with values in the JSON of those samples."""

    def saw(self, keys: Iterable[str], is_named: bool) -> None:
        """Note the keys of one JSON object."""
        self.was_found |= is_named
        _add_keys(self.keys, keys)

    def lacks_caption(self, fields: Mapping[str, object]) -> None:
        """Note a sample that has JSON with these fields, but no caption."""
        self.uncaptioned += 1
        _add_keys(self.other_keys, (key for key, value in fields.items() if value is not None))

    def check(self, uri: str) -> None:
        """Raise SourceError if no text file has that key or extension, because all captions would be missing."""
        if self.column is None or self.was_found:
            return
        known = f"the keys are {shown(list(self.keys))}" if self.keys else "there is no .json beside a picture"
        raise SourceError(
            f"{uri}: no .json beside a picture has the key {self.column!r}, no metadata table has it as a column, and "
            f"no file has it as its extension (source.caption_column); {known}"
        )


@dataclass(frozen=True, slots=True)
class TextRules:
    """Where a job finds the captions, URLs and uids of tars and folders. None: under the usual names."""

    caption: str | None = None
    """A key of the JSON, or the extension of a text file."""
    url: str | None = None
    """A key of the JSON."""
    uid: str | None = None
    """A key of the JSON."""
    encoding: str | None = None
    """Encoding of `.txt` and `.json`. None: UTF-8."""
    use: TextUse | None = None
    """Records what was found."""

    @classmethod
    def of(cls, source: SourceConfig) -> "TextRules":
        """The rules that the job file sets."""
        return cls(source.caption_column, source.url_column, source.uid_column, source.encoding)

    @property
    def text_endings(self) -> tuple[str, ...]:
        """Extensions of caption files, in lower case."""
        own = () if self.caption is None else (self.caption.lower().removeprefix("."),)
        return tuple(dict.fromkeys([*CAPTION_ENDINGS, *(each for each in own if each.isalnum() and each != "json")]))

    def is_text(self, ending: str) -> bool:
        """Whether a file with this extension is text beside a picture."""
        return ending == "json" or ending in self.text_endings

    def max_bytes(self, ending: str) -> int:
        """Maximum size of a file with this extension; larger files are not read."""
        return MAX_JSON_BYTES if ending == "json" else MAX_TEXT_BYTES


USUAL_TEXTS = TextRules()


@dataclass(slots=True)
class Texts:
    """The texts of one sample, collected as they are read."""

    rules: TextRules
    named: Captions | None = None
    """Captions from the key or extension that the job names."""
    plain: Captions | None = None
    """Captions from a text file."""
    usual: Captions | None = None
    """Captions from a usual key of the JSON."""
    url: bytes | None = None
    uid: str | None = None
    problems: list[str] = field(default_factory=list)
    has_json: bool = False
    fields: dict[str, object] = field(default_factory=dict)
    """Fields of the sample's first JSON object."""

    def add(self, name: str, ending: str, data: bytes) -> None:
        """Add one file, called `name`."""
        try:
            if ending == "json":
                self._add_json(data)
            else:
                captions = (read_text(data, self.rules.encoding),)
                if self.rules.caption and ending == self.rules.caption.lower().removeprefix("."):
                    self._note((), is_named=True)
                    self.named = self.named or captions
                elif self.plain is None or _is_blank(self.plain):
                    self.plain = captions
        except UnreadableText as error:
            self.add_problem(f"{name}: {error}")

    def add_rows(self, table: str, rows: Sequence[dict[str, object]]) -> None:
        """Fill in missing texts with those in a picture's rows of `table`. Each row counts like a JSON object; if there
        are several, each has a caption."""
        found = []
        for row in rows:
            texts = Texts(self.rules)
            try:
                texts._add_object(row)
            except UnreadableText as error:
                texts.add_problem(f"{table}: {error}")
            found.append(texts)
        named, usual = _together([each.named for each in found]), _together([each.usual for each in found])
        for each in found:
            self.complete_with(replace(each, named=named, usual=usual))

    def add_too_large(self, name: str, num_bytes: int) -> None:
        """Record a file that is too large to be read."""
        self.add_problem(f"{name}: too large: {num_bytes:,} bytes")

    def add_problem(self, problem: str) -> None:
        """Record why a text file cannot be read. Only the first few such reasons are kept."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def complete_with(self, other: "Texts") -> None:
        """Take from `other` whatever these texts lack."""
        self.named, self.usual = self.named or other.named, self.usual or other.usual
        if self.plain is None or (other.plain is not None and _is_blank(self.plain)):
            self.plain = other.plain
        self.url, self.uid = self.url or other.url, self.uid or other.uid
        self.problems = [*self.problems, *other.problems][:_MAX_PROBLEMS]
        self.has_json, self.fields = self.has_json or other.has_json, self.fields or other.fields

    def captions(self) -> tuple[Captions | None, str | None]:
        """Returns (captions, None), or (None, the reason) if no caption was found but some text could not be read.
        Uses the first captions that are not blank: those from the key or extension that the job names, then those from
        the text file, then those from the JSON."""
        found = [each for each in (self.named, self.plain, self.usual) if each is not None]
        best = next((each for each in found if not _is_blank(each)), None)
        if best is None and self.problems:
            return None, "; ".join(self.problems)
        if not found and self.has_json and self.rules.use is not None:
            self.rules.use.lacks_caption(self.fields)
        return best or (found[0] if found else None), None

    def _note(self, keys: Iterable[str], is_named: bool) -> None:
        if self.rules.use is not None:
            self.rules.use.saw(keys, is_named)

    def _add_json(self, data: bytes) -> None:
        value = _parse(data, self.rules.encoding)
        if isinstance(value, str) or (isinstance(value, list) and any(map(_is_caption, value))):
            self.usual = self.usual or _captions_in(value)
            return
        self.has_json = True
        if isinstance(value, dict):
            self._add_object(value)

    def _add_object(self, value: dict[str, object]) -> None:
        self.has_json = True
        self.fields = self.fields or value
        names = Names(value)
        self.url = self.url or _text_in(value, names, self.rules.url or "url")
        uid = _text_in(value, names, self.rules.uid or "uid")
        self.uid = self.uid or (uid.decode("utf-8", "replace") if uid else None)
        name = names.find(self.rules.caption) if self.rules.caption else None
        self._note(value, is_named=name is not None)
        if name is not None:
            self.named = self.named or _captions_in(value[name])
        self.usual = self.usual or _usual_captions(value, names)


def _add_keys(known: dict[str, None], keys: Iterable[str]) -> None:
    if len(known) < _SHOWN_KEYS:
        known.update(dict.fromkeys(islice(keys, _SHOWN_KEYS)))


def _together(rows: Sequence[Captions | None]) -> Captions | None:
    """The captions of several rows. None if no row has any."""
    if all(each is None for each in rows):
        return None
    return tuple(caption for each in rows for caption in each or (None,))


def read_text(data: bytes, encoding: str | None = None) -> bytes:
    """A caption file as UTF-8 without a byte order mark, or unchanged if it should be UTF-8 but is not. Raises
    UnreadableText.

    A byte order mark overrides `encoding`, as in browsers (https://encoding.spec.whatwg.org/#decode).
    """
    if data.startswith(LFS_POINTER):
        raise UnreadableText("is only a Git LFS pointer")
    if data.startswith(_UTF_MARKS):
        encoding = "utf-32" if data.startswith(_UTF_MARKS[:2]) else "utf-16"
    if encoding not in (None, "utf-8") and not data.startswith(codecs.BOM_UTF8):
        try:
            return data.decode(encoding).encode()
        except UnicodeError as error:
            raise UnreadableText(f"is not {encoding}") from error
    if b"\0" in data:
        raise UnreadableText("contains NUL bytes, as UTF-16 does")
    return data.removeprefix(codecs.BOM_UTF8)


def _parse(data: bytes, encoding: str | None) -> Any:
    try:
        if encoding in (None, "utf-8") or data.startswith((codecs.BOM_UTF8, *_UTF_MARKS)):
            return parse_json(data.decode(json.detect_encoding(data), "surrogateescape"))
        return parse_json(data.decode(encoding))
    except (ValueError, RecursionError) as error:
        raise UnreadableText("is not JSON") from error


def _usual_captions(value: dict[str, object], names: Names) -> Captions | None:
    """The captions of the first usual key that has any; None if no usual key has a value. Raises UnreadableText if
    there are values, but all are unusable."""
    problem: UnreadableText | None = None
    found: Captions | None = None
    for usual in _CAPTION_KEYS:
        name = names.find(usual)
        try:
            captions = None if name is None else _captions_in(value[name])
        except UnreadableText as error:
            problem = problem or error
            continue
        if captions is not None and not _is_blank(captions):
            return captions
        found = found if captions is None else captions
    if found is None and problem is not None:
        raise problem
    return found


def _captions_in(value: Any, depth: int = 0) -> Captions | None:
    """The captions in a string, a list of strings, or an object or list of objects with a string. None for null, NaN
    and empty lists. Raises UnreadableText for anything else."""
    if value is None or is_nan(value):
        return None
    if isinstance(value, str):
        return (utf8_bytes(value),)
    if isinstance(value, list) and depth < 2:
        parts = [_captions_in(item, depth + 1) or (None,) for item in value]
        return tuple(caption for part in parts for caption in part) or None
    if isinstance(value, dict) and depth < 2:
        found = [value[name] for name in _IN_OBJECTS if value.get(name) is not None]
        texts = [each for each in found if isinstance(each, str)]
        if any(text.strip() for text in texts) or (found and texts == found):
            return (utf8_bytes(next((text for text in texts if text.strip()), texts[0])),)
    raise UnreadableText(f"the caption is {_KINDS.get(type(value), 'not text')}")


def _is_caption(item: Any) -> bool:
    """Whether an item of a top-level list is a caption, and not, for example, a bounding box."""
    return isinstance(item, str) or (isinstance(item, dict) and any(item.get(name) is not None for name in _IN_OBJECTS))


_KINDS = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    bytes: "a number",
    list: "a list in a list",
    dict: "an object",
}


def _text_in(value: dict[str, object], names: Names, wanted: str) -> bytes | None:
    name = names.find(wanted)
    text = None if name is None else value[name]
    return utf8_bytes(text) if isinstance(text, str) else None


def _is_blank(captions: Captions) -> bool:
    return not any(caption and caption.strip() for caption in captions)
