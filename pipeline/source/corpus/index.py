"""Where the pictures of a corpus are: one row per picture, written once to `input/`, as text formats are converted.

A row says which bytes of which file are the picture, and what caption stands beside it. What cannot be used is a row
too, with the reason in MALFORMED_COLUMN: nothing is left out without a word.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.source.files import MALFORMED_COLUMN
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.pairs import STORED

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


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Which bytes of which file are a picture."""

    uri: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One row of INDEX_SCHEMA. `problem`: why there is no picture to use."""

    key: str | None = None
    url: bytes | None = None
    caption: bytes | None = None
    uid: str | None = None
    image: ImageRef | None = None
    problem: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of the texts, which may be long."""
        return len(self.caption or b"") + len(self.url or b"")


def index_table(rows: Sequence[IndexRow]) -> pa.Table:
    """The rows in INDEX_SCHEMA."""
    images = [row.image for row in rows]
    columns = {
        **{name: [getattr(row, name) for row in rows] for name in ("key", "url", "caption", "uid")},
        "image_tar": [image and image.uri for image in images],
        "image_offset": [None if image is None else image.offset for image in images],
        "image_length": [None if image is None else image.length for image in images],
        MALFORMED_COLUMN: [row.problem for row in rows],
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


@dataclass(slots=True)
class Sample:
    """The files of one key, as they come."""

    key: str
    images: list[ImageRef] = field(default_factory=list)
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

    def rows(self) -> Iterator[IndexRow]:
        """One row per picture: the first is the sample's, further ones are refused, as is a sample without."""
        common = IndexRow(
            key=readable_name(self.key),
            url=self._json_field(*_URL_KEYS),
            caption=self.caption if self.caption is not None else self._json_field(*_CAPTION_KEYS),
            uid=own_uid(self.json_fields.get("uid", "")),
        )
        if not self.images:
            yield replace(common, problem=clean_text(self.problem) or "no picture under this key")
        for number, image in enumerate(self.images):
            problem = self.problem or (f"picture {number + 1} under one key" if number else None)
            if readable_name(image.uri) != image.uri:  # columns hold UTF-8
                problem = f"{readable_name(image.uri)}: a name that is not UTF-8; rename it"
                yield replace(common, problem=clean_text(problem))
                continue
            yield replace(common, image=image, problem=clean_text(problem))

    def _json_field(self, *names: str) -> bytes | None:
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
