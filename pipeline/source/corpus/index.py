"""The index of a corpus: one row per picture, written once to `input/`, like converted text formats.

A row has the byte range of the picture and its caption. Unusable samples are rows too, with the reason in
MALFORMED_COLUMN: nothing is silently dropped.
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
"""Maximum size of a caption or JSON file; larger ones are refused unread."""

_CAPTION_KEYS = ("caption", "text", "TEXT", "alt")
_URL_KEYS = ("url", "URL")
_KEPT_KEYS = frozenset({*_CAPTION_KEYS, *_URL_KEYS, "uid"})
_MAX_KEY_CHARS = 4_096  # Linux' PATH_MAX

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # of the sample: the common stem of its files
        pa.field("url", pa.binary()),
        pa.field("caption", pa.binary()),
        pa.field("uid", pa.string()),  # from the sample's JSON, if it is a valid uid
        *STORED,
        pa.field(MALFORMED_COLUMN, pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """The byte range of a picture in a file."""

    uri: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One row of INDEX_SCHEMA. `problem`: why there is no usable picture."""

    key: str | None = None
    url: bytes | None = None
    caption: bytes | None = None
    uid: str | None = None
    image: ImageRef | None = None
    problem: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the texts, which may be long."""
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
    """The files with the same key, as they are read."""

    key: str
    images: list[ImageRef] = field(default_factory=list)
    caption: bytes | None = None
    json_fields: dict[str, str] = field(default_factory=dict)
    """The relevant fields of its JSON."""
    problem: str | None = None

    def add_json(self, data: bytes) -> None:
        """Add a JSON object. Anything else is ignored, since picture and caption do not need it."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict) and not self.json_fields:
            self.json_fields = {key: text for key, text in value.items() if key in _KEPT_KEYS and isinstance(text, str)}

    def rows(self) -> Iterator[IndexRow]:
        """One row per picture. Samples without a picture, and further pictures of a sample, are refused."""
        common = IndexRow(
            key=readable_name(self.key),
            url=self._json_field(*_URL_KEYS),
            caption=self.caption if self.caption is not None else self._json_field(*_CAPTION_KEYS),
            uid=own_uid(self.json_fields.get("uid", "")),
        )
        if not self.images:
            yield replace(common, problem=clean_text(self.problem) or "no picture with this key")
        for number, image in enumerate(self.images):
            problem = self.problem or (f"picture {number + 1} with this key" if number else None)
            if readable_name(image.uri) != image.uri:  # columns are UTF-8
                problem = f"{readable_name(image.uri)}: the name is not UTF-8; rename it"
                yield replace(common, problem=clean_text(problem))
                continue
            yield replace(common, image=image, problem=clean_text(problem))

    def _json_field(self, *names: str) -> bytes | None:
        for name in names:
            if (value := self.json_fields.get(name)) is not None:
                return value.encode("utf-8", "surrogatepass")
        return None


def readable_name(name: str) -> str:
    """An untrusted file name as text: truncated, with U+FFFD for invalid UTF-8."""
    return name[:_MAX_KEY_CHARS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a WebDataset member: the key ends at the first dot of the base name.

    https://github.com/webdataset/webdataset, `base_plus_ext`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower().rpartition(".")[2]
