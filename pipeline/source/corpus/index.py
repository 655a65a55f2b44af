"""Defines the index of a corpus: one row per sample, written once to `input/`, like converted text formats.

A row has the byte range of the picture and its captions. Samples that cannot be used are rows too, with the reason in
MALFORMED_COLUMN or CAPTION_PROBLEM_COLUMN: nothing is silently dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pairmill.pipeline.common.text import clean_text, utf8_bytes
from pairmill.pipeline.source.corpus.json_fields import FIELDS_COLUMN, FieldNotes
from pairmill.pipeline.source.corpus.sidecar import Captions, TextRules, Texts
from pairmill.pipeline.source.files import CAPTION_PROBLEM_COLUMN, MALFORMED_COLUMN
from pairmill.pipeline.source.mapping import ALTERNATES_COLUMN
from pairmill.pipeline.source.uid import own_uid
from pairmill.schemas.pairs import STORED

INDEX_LAYOUT = 7
"""Increase this whenever the content of an index changes."""

MAX_PICTURES = 100
"""Maximum number of pictures with the same key. They are read one by one until one of them decodes."""

_MAX_KEY_CHARS = 4_096  # Linux's PATH_MAX

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),  # of the sample: the common stem of its files
        pa.field("url", pa.binary()),
        pa.field("caption", pa.list_(pa.binary())),
        pa.field("uid", pa.string()),  # from the sample's JSON, if it is a valid uid
        *STORED,
        pa.field(ALTERNATES_COLUMN, pa.list_(pa.struct(list(STORED)))),  # further pictures with this key, in order
        pa.field(MALFORMED_COLUMN, pa.string()),
        pa.field(CAPTION_PROBLEM_COLUMN, pa.string()),
        pa.field(FIELDS_COLUMN, pa.string()),
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
    captions: Captions | None = None
    uid: str | None = None
    image: ImageRef | None = None
    alternates: tuple[ImageRef, ...] = ()
    problem: str | None = None
    caption_problem: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sample's JSON."""

    @property
    def caption(self) -> bytes | None:
        """The first caption."""
        return self.captions[0] if self.captions else None

    @property
    def num_bytes(self) -> int:
        """Size of the row's captions and URL, which may be long, in bytes."""
        return sum(len(caption or b"") for caption in self.captions or ()) + len(self.url or b"")

    def repeated(self) -> Iterator[str | None]:
        """The texts that fields of the sample's JSON may repeat."""
        yield from (self.key, self.uid)
        for raw in (self.url, *(self.captions or ())):
            yield None if raw is None else raw.decode("utf-8", "replace")


def index_table(rows: Sequence[IndexRow], notes: FieldNotes | None = None) -> pa.Table:
    """The rows in INDEX_SCHEMA. Adds the fields of their JSON to `notes`."""
    notes = FieldNotes() if notes is None else notes
    images = [row.image for row in rows]
    columns = {
        **{name: [getattr(row, name) for row in rows] for name in ("key", "url", "uid")},
        "caption": [row.captions for row in rows],
        "image_tar": [image and image.uri for image in images],
        "image_offset": [None if image is None else image.offset for image in images],
        "image_length": [None if image is None else image.length for image in images],
        ALTERNATES_COLUMN: [[_as_struct(image) for image in row.alternates] or None for row in rows],
        MALFORMED_COLUMN: [row.problem for row in rows],
        CAPTION_PROBLEM_COLUMN: [row.caption_problem for row in rows],
        FIELDS_COLUMN: [notes.keep(row.fields, row.repeated()) if row.fields else None for row in rows],
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def _as_struct(image: ImageRef) -> dict[str, object]:
    return dict(zip(STORED.names, (image.uri, image.offset, image.length), strict=True))


@dataclass(slots=True)
class Sample:
    """The files that share a key, collected as they are read."""

    key: str
    rules: TextRules
    images: list[ImageRef] = field(default_factory=list)
    """Pictures named KEY.ENDING."""
    dotted_images: list[tuple[str, ImageRef]] = field(default_factory=list)
    """(INFIX, picture) for each picture named KEY.INFIX.ENDING, such as `a.seg.png`, used if no other picture decodes.
    """
    names: set[int] = field(default_factory=set)
    """Hashes of the file names, because names may be long. A repeated name, as in concatenated tars, begins another
    sample."""
    num_files: int = 0
    lost_images: list[str] = field(default_factory=list)
    """Why pictures with this key cannot be read."""
    problem: str | None = None
    texts: Texts = field(init=False)
    dotted_texts: Texts = field(init=False)
    """Texts of files named KEY.INFIX.ENDING, used for whatever `texts` lacks."""
    text_infixes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.texts, self.dotted_texts = Texts(self.rules), Texts(self.rules)

    def add_image(self, image: ImageRef, infix: str = "") -> None:
        """Add a picture, unless there are already MAX_PICTURES."""
        if infix and len(self.dotted_images) < MAX_PICTURES:
            self.dotted_images.append((infix, image))
        elif not infix and len(self.images) < MAX_PICTURES:
            self.images.append(image)

    def texts_of(self, infix: str) -> Texts:
        """The Texts to which a file named KEY.INFIX.ENDING belongs."""
        if infix and len(self.text_infixes) < MAX_PICTURES:
            self.text_infixes.add(infix)
        return self.dotted_texts if infix else self.texts

    @property
    def own_infix(self) -> str | None:
        """The infix of the first picture that has its own text, if no picture is named KEY.ENDING."""
        with_text = (infix for infix, _ in self.dotted_images if infix in self.text_infixes)
        return None if self.images else next(with_text, None)

    def _images_in_order(self) -> list[ImageRef]:
        """All pictures, starting with the one that other WebDataset readers use: open_clip's trainer asks for
        `jpg;png;jpeg;webp`."""
        own = self.own_infix
        dotted = sorted(self.dotted_images, key=lambda each: each[0] != own)
        return [*self.images, *(image for _, image in dotted)][:MAX_PICTURES]

    def add_lost_image(self, problem: str) -> None:
        """Note why a picture cannot be read, for at most MAX_PICTURES pictures."""
        if len(self.lost_images) < MAX_PICTURES:
            self.lost_images.append(problem)

    def row(self) -> IndexRow:
        """The row of this sample. All pictures but the first are alternates, in case the first does not decode."""
        self.texts.complete_with(self.dotted_texts)
        captions, caption_problem = self.texts.captions()
        found = self._images_in_order()
        images = [image for image in found if readable_name(image.uri) == image.uri]  # string columns must be UTF-8
        problem = self.problem
        if not images and found:
            problem = f"{readable_name(found[0].uri)}: the name is not UTF-8; rename it"
        elif not images:
            problem = problem or "; ".join(self.lost_images) or "no picture with this key"
        uid = own_uid(self.texts.uid or "")
        if uid is None and self.rules.uid is not None:
            problem = problem or f"no valid uid (source.uid_column): {self.texts.uid or 'none'}"
        return IndexRow(
            key=readable_name(self.key),
            url=self.texts.url,
            captions=captions,
            uid=uid,
            image=images[0] if images else None,
            alternates=tuple(images[1:]),
            problem=clean_text(problem),
            caption_problem=clean_text(caption_problem),
            fields=self.texts.fields,
        )


def readable_name(name: str) -> str:
    """An untrusted file name as text: truncated, with U+FFFD for invalid UTF-8."""
    return utf8_bytes(name[:_MAX_KEY_CHARS]).decode("utf-8", "replace")


def split_name(name: str) -> tuple[str, str, str]:
    """(key, infix, extension in lower case) of a WebDataset member: the key ends at the first dot of the base name.

    https://github.com/webdataset/webdataset, `base_plus_ext`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, endings = base.partition(".")
    infix, _, ending = endings.rpartition(".")
    return f"{folder}{slash}{stem}", infix, ending.lower()
