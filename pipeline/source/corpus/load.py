"""Implements the load stage of a corpus, which reads a shard's pictures from the input by range.

The stage adds checksums, format and size, which need no decoding. It refuses files that cannot be pictures; the encode
stage refuses damaged pictures.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.arrow import binary_column
from pairmill.pipeline.common.faults import local_fault
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.listing import entries_in
from pairmill.pipeline.common.progress import ShardProgress, unwatched
from pairmill.pipeline.common.text import describe
from pairmill.pipeline.image.decode import ImageError
from pairmill.pipeline.image.isolated import IsolatedProcessor
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.source.cursor import ReadError, UnreachableInput
from pairmill.pipeline.source.mapping import ALTERNATES_COLUMN
from pairmill.pipeline.source.uid import picture_uid
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.pairs import IMAGE_COLUMN, KEPT_STATUS, STORED
from pairmill.schemas.status import Status

MAX_BYTES = 64 << 20
"""Larger picture files are refused unread."""

_READERS = 8
_FILLED_COLUMNS = ("original_bytes", "sha256", "md5", "original_format", "original_width", "original_height")


_Ref = tuple[str | None, int | None, int | None]
"""File, offset and length of a picture."""


@dataclass(slots=True)
class _Row:
    """What is known about the picture of one row so far and, if the row is refused, why."""

    status: str
    detail: str | None
    uid: str
    image: Any = None  # bytes, or a view of them
    original_bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    original_format: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    stored: _Ref | None = None
    """The chosen picture, if several pictures have the row's key."""
    denied: str | None = None
    """The picture's file, if access to it is denied."""

    def refuse(self, status: Status, detail: str | None) -> None:
        self.status, self.detail, self.image = status.value, detail, None


class Loader:
    """Reads the pictures of shards. Thread-safe."""

    def __init__(self, job: BuildJob, files: Files, isolated: bool = False) -> None:
        """`isolated`: decode every picture in a child process, so that a crash loses only one row."""
        self._files = files
        self._processor = ImageProcessor(job.images)
        self._isolated = IsolatedProcessor(job.images) if isolated else None
        self._md5 = job.computes_md5
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="load")

    def close(self) -> None:
        """Stop the reading threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._isolated is not None:
            self._isolated.close()

    def __call__(self, table: pa.Table, has_pictures: bool, progress: ShardProgress | None = None) -> pa.Table:
        """The same rows with their pictures, the pictures' checksums, formats and sizes, and the uids that depend on
        the pictures.

        A row becomes a pair if it has a picture that may be decodable or, without `has_pictures`, if it has a caption.
        """
        names = ("status", "status_detail", "uid")
        rows = [_Row(*values) for values in zip(*(table[name].to_pylist() for name in names), strict=True)]
        if has_pictures:
            self._load(table, rows, progress or unwatched())
        urls, captions = (table[name].cast(pa.large_binary()).to_pylist() for name in ("url", "caption"))
        for row, url, caption in zip(rows, urls, captions, strict=True):
            if not has_pictures and caption is None and row.status == KEPT_STATUS:
                row.refuse(Status.CAPTION_MISSING, None)
            row.uid = row.uid or picture_uid(url, caption, row.sha256)
        return _without_empty_captions(_fill_columns(table, rows))

    def _load(self, table: pa.Table, rows: Sequence[_Row], progress: ShardProgress) -> None:
        by_file: dict[str, list[tuple[int, int, _Row]]] = {}
        refs = list(zip(*(table[name].to_pylist() for name in STORED.names), strict=True))
        alternates = _alternates(table)
        in_memory, several = [], []
        for index, (row, ref) in enumerate(zip(rows, refs, strict=True)):
            if row.status != KEPT_STATUS:
                continue
            if index in alternates:
                several.append((row, [ref, *alternates[index]]))
            elif table[IMAGE_COLUMN.name][index].is_valid:
                row.image = table[IMAGE_COLUMN.name][index].as_buffer()
                in_memory.append(row)
            elif (sound := _sound(row, ref)) is not None:
                file, offset, length = sound
                by_file.setdefault(file, []).append((offset, length, row))
        progress.expect(len(in_memory) + len(several) + sum(map(len, by_file.values())))
        work = [self._pool.submit(self._read_file, file, ranges, progress) for file, ranges in by_file.items()]
        work += [self._pool.submit(self._examine, row, progress) for row in in_memory]
        work += [self._pool.submit(self._read_first_that_decodes, row, refs, progress) for row, refs in several]
        for future in work:
            future.result()
        self._check_storage(rows, refs)

    def _check_storage(self, rows: Sequence[_Row], refs: Sequence[_Ref]) -> None:
        """Raise ReadError if the storage denies access to everything, and not only to some pictures. Credentials may
        expire at any time, so another file must be readable now."""
        denied = next((row.denied for row in rows if row.denied is not None), None)
        if denied is None:
            return
        read = [str(file) for row, (file, _, _) in zip(rows, refs, strict=True) if row.original_bytes is not None]
        if not self._files.can_read_any(chain(reversed(read), self._beside(denied))):
            raise UnreachableInput(f"{denied}: cannot be read, nor can other files: permission denied")

    def _beside(self, file: str) -> Iterator[str]:
        """The other files in a file's folder, as far as they can be listed."""
        folder, _, name = file.rpartition("/")
        with suppress(OSError):
            yield from (f"{folder}/{entry.name}" for entry in entries_in(folder, self._files) if entry.name != name)

    def _read_file(self, file: str, ranges: list[tuple[int, int, _Row]], progress: ShardProgress) -> None:
        try:
            with self._files.open(file) as opened:
                for offset, length, row in sorted(ranges, key=lambda entry: entry[0]):
                    row.image = _read(opened, offset, length)
                    if len(row.image) < length:
                        row.refuse(Status.BODY_TRUNCATED, f"the file ends after {len(row.image):,} of {length:,} bytes")
                        progress.done(good_items=0)
                    else:
                        self._examine(row, progress)
        except OSError as error:
            if (fault := local_fault(error)) is not None:
                raise fault from error
            missing = isinstance(error, FileNotFoundError) and self._is_in_picture_folder(file)
            denied = isinstance(error, PermissionError) and not _is_tar(file)
            if missing or denied:
                for _, _, row in ranges:
                    row.denied = file if denied else None
                    row.refuse(Status.EMPTY_BODY, "the file is missing" if missing else f"no access: {error.strerror}")
                    progress.done(good_items=0)
                return
            # The tar or its mount is missing: the shard fails, and a later run rebuilds it.
            raise ReadError(f"{file}: cannot be read: {error}") from error

    def _read_first_that_decodes(self, row: _Row, refs: Sequence[_Ref], progress: ShardProgress) -> None:
        """Use the first of several pictures that decodes. If none does, the row gets the Status of the first picture
        and a detail that lists all of them."""
        tries = []
        for ref in refs:
            attempt = _Row(row.status, row.detail, row.uid, stored=ref)
            if (sound := _sound(attempt, ref)) is not None:
                file, offset, length = sound
                self._read_file(file, [(offset, length, attempt)], unwatched())
            if attempt.status == KEPT_STATUS and self._isolated is None:  # otherwise already decoded
                self._check_decodes(attempt)
            tries.append(attempt)
            if attempt.status == KEPT_STATUS:
                break
        chosen = tries[-1] if tries[-1].status == KEPT_STATUS else tries[0]
        if chosen.status != KEPT_STATUS:
            chosen.detail = "; ".join(f"picture {n}: {each.status}" for n, each in enumerate(tries, start=1))
        for field in fields(_Row):
            setattr(row, field.name, getattr(chosen, field.name))
        progress.done(good_items=row.status == KEPT_STATUS, num_bytes=row.original_bytes or 0)

    def _check_decodes(self, row: _Row) -> None:
        """Decode a picture whose header is valid. Usually the encoder does this."""
        with _costing_one(row):
            self._processor.pixels(bytes(row.image))

    def _is_in_picture_folder(self, file: str) -> bool:
        return not _is_tar(file) and self._files.is_folder(file.rpartition("/")[0])

    def _examine(self, row: _Row, progress: ShardProgress) -> None:
        body = bytes(row.image)
        self._examine_body(row, body)
        progress.done(good_items=row.status == KEPT_STATUS, num_bytes=len(body))

    def _examine_body(self, row: _Row, body: bytes) -> None:
        row.original_bytes = len(body)
        row.sha256 = hashlib.sha256(body).hexdigest()
        row.md5 = hashlib.md5(body, usedforsecurity=False).hexdigest() if self._md5 else None
        with _costing_one(row):
            if not body:
                raise ImageError(Status.EMPTY_BODY, None)
            row.original_format, (row.original_width, row.original_height) = self._processor.header(body)
            if self._isolated and (picture := self._isolated.process(body)).status is not Status.OK:
                raise ImageError(picture.status, picture.detail)


@contextmanager
def _costing_one(row: _Row) -> Iterator[None]:
    """The error boundary of a row: an error in this block loses only the row, not the shard, unless the machine caused
    it."""
    try:
        yield
    except ImageError as error:
        row.refuse(error.status, error.detail)
    except Exception as error:
        if (fault := local_fault(error)) is not None:
            raise fault from error
        row.refuse(Status.ROW_ERROR, describe(error))


def _is_tar(file: str) -> bool:
    return file.lower().endswith(".tar")


def _alternates(table: pa.Table) -> dict[int, list[_Ref]]:
    """Row -> further pictures with its key."""
    if ALTERNATES_COLUMN not in table.schema.names:
        return {}
    lists = table[ALTERNATES_COLUMN].to_pylist()
    return {row: [tuple(each.values()) for each in refs] for row, refs in enumerate(lists) if refs}


def _sound(row: _Row, ref: _Ref) -> tuple[str, int, int] | None:
    """The reference if it is valid; otherwise None, and the row is refused."""
    file, offset, length = ref
    if file is None or offset is None or length is None:
        row.refuse(Status.EMPTY_BODY, "no picture in this row")
    elif length > MAX_BYTES:
        row.refuse(Status.BODY_TOO_LARGE, f"{length:,} bytes")
    elif offset < 0 or length < 0:
        row.refuse(Status.ROW_MALFORMED, f"{length:,} bytes at {offset:,}")
    else:
        return file, offset, length
    return None


def _read(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _without_empty_captions(table: pa.Table) -> pa.Table:
    """Replace empty captions in `caption_clean` with null, so that they are not embedded. `caption` keeps them."""
    index = table.schema.get_field_index("caption_clean")
    texts = table["caption_clean"]
    return table.set_column(index, table.schema.field(index), pc.if_else(pc.equal(texts, ""), None, texts))


def _fill_columns(table: pa.Table, rows: Sequence[_Row]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "uid": pa.array([row.uid for row in rows], pa.string()),
        "status": pa.array([row.status for row in rows], pa.string()),
        "status_detail": pa.array([row.detail for row in rows], pa.string()),
        "is_pair": pa.array([row.status == KEPT_STATUS for row in rows], pa.bool_()),
        IMAGE_COLUMN.name: binary_column([row.image for row in rows]),
    }
    if ALTERNATES_COLUMN in table.schema.names:
        table = table.drop_columns([ALTERNATES_COLUMN])
        for place, name in enumerate(STORED.names):
            before = table[name].to_pylist()
            values = [old if row.stored is None else row.stored[place] for row, old in zip(rows, before, strict=True)]
            columns[name] = pa.array(values, STORED.field(name).type)
    for name in _FILLED_COLUMNS:
        columns[name] = pa.array([getattr(row, name) for row in rows], table.schema.field(name).type)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), values)
    return table
