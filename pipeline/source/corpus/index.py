"""Where the pictures of a corpus are: one row per picture, written once to `input/`, as text formats are converted.

A row says which bytes of which file are the picture, and what caption stands beside it. What cannot be used is a row
too, with the reason in MALFORMED_COLUMN: nothing is left out without a word.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.source.files import MALFORMED_COLUMN
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.pairs import STORED

PICTURE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "avifs"),
    *("heic", "heif", "svg", "jp2", "jxl", "qoi", "psd", "ico"),  # not decoded: each is a row that says so
)
CAPTION_ENDINGS = ("txt", "caption", "text")
MAX_TEXT_BYTES = 1 << 20
"""Of a caption or JSON file; longer ones are refused unread."""

_CAPTION_KEYS = ("caption", "text", "TEXT", "alt")
_URL_KEYS = ("url", "URL")
_KEPT_KEYS = frozenset({*_CAPTION_KEYS, *_URL_KEYS, "uid"})
_MAX_KEY_CHARS = 4_096  # Linux' PATH_MAX

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # of the sample: what its files have in common
        pa.field("url", pa.binary()),
        pa.field("caption", pa.binary()),
        pa.field("uid", pa.string()),  # of the sample's JSON; taken for the row's own where it has the shape of one
        *STORED,
        pa.field(MALFORMED_COLUMN, pa.string()),
    ]
)


@dataclass(slots=True)
class Sample:
    """The files of one key, as they come."""

    key: str
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    """(file that holds it, offset, length)"""
    caption: bytes | None = None
    json_fields: dict[str, str] = field(default_factory=dict)
    """What its JSON says, as far as it matters here."""
    problem: str | None = None

    def add_json(self, data: bytes) -> None:
        """Take in a JSON object; anything else is passed over: the picture and its caption do not need it."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict) and not self.json_fields:
            self.json_fields = {key: text for key, text in value.items() if key in _KEPT_KEYS and isinstance(text, str)}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per picture: the first stands for the sample, further ones are refused, as is a sample without."""
        caption = self.caption if self.caption is not None else self._fact(*_CAPTION_KEYS)
        common = {"key": readable_name(self.key), "url": self._fact(*_URL_KEYS), "caption": caption}
        common["uid"] = own_uid(self.json_fields.get("uid", ""))
        if not self.pictures:
            yield {**common, MALFORMED_COLUMN: clean_text(self.problem) or "no picture under this key"}
        for number, (file, offset, length) in enumerate(self.pictures):
            place: dict[str, Any] = {"image_tar": file, "image_offset": offset, "image_length": length}
            problem = self.problem or (f"picture {number + 1} under one key" if number else None)
            if readable_name(file) != file:  # columns hold UTF-8
                place, problem = {}, f"{readable_name(file)}: a name that is not UTF-8; rename it"
            yield {**common, **place, MALFORMED_COLUMN: clean_text(problem)}

    def _fact(self, *names: str) -> bytes | None:
        for name in names:
            if (value := self.json_fields.get(name)) is not None:
                return value.encode("utf-8", "surrogatepass")
        return None


def readable_name(name: str) -> str:
    """A file name from outside as text: what is not UTF-8 becomes U+FFFD, and it is not endless."""
    return name[:_MAX_KEY_CHARS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def split_name(name: str) -> tuple[str, str]:
    """(key, ending in lower case) of a file in a WebDataset: the key ends at the first dot of the last part.

    https://github.com/webdataset/webdataset, `base_plus_ext`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower().rpartition(".")[2]
