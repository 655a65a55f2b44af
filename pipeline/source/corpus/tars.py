"""Indexes tars as written by WebDataset and img2dataset, where consecutive files with the same stem are a sample.

Nothing is extracted: member names are only compared, links and devices are skipped, and only captions and JSON are
read, up to a limit. `tarfile` parses each header, but we walk from one header to the next ourselves, because `tarfile`
reads headers of any length into memory, follows sizes that point backwards (CVE-2025-8194), and takes a damaged header
for the end.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.corpus.index import (
    CAPTION_ENDINGS,
    MAX_TEXT_BYTES,
    ImageRef,
    IndexRow,
    Sample,
    readable_name,
    split_name,
)
from pairmill.pipeline.source.files import PICTURE_ENDINGS, SourceError

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER_BYTES = 64 << 10
"""Maximum size of a long name (GNU) or a pax header."""
_MAX_ZEROS = 4 << 20
"""Zero blocks are skipped, like with `tar --ignore-zeros`, so that concatenated tars can be read; this many bytes of
zeros mean the end."""
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_WITHOUT_DATA = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE}
)
_LONG_NAME, _PAX = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE


class _DamagedError(Exception):
    """The tar cannot be read any further; the message says why."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    size: int


def tar_rows(uri: str, files: Files) -> Iterator[IndexRow]:
    """Rows of INDEX_SCHEMA. The last row of a truncated or damaged tar says where it breaks off. Raises SourceError if
    the file is not a tar."""
    with files.open(uri) as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(_BLOCK)
        if not head:
            return
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            pass
        except tarfile.HeaderError as error:
            raise SourceError(
                f"{uri}: is not an uncompressed tar ({error}); pictures are read by range, so unpack .tar.gz to .tar"
            ) from error
        yield from _rows(uri, file, size)


def _rows(uri: str, file: IO[bytes], size: int) -> Iterator[IndexRow]:
    sample: Sample | None = None
    problem = None
    try:
        for member in _members(file, size):
            key, ending = split_name(member.name)
            if sample is not None and key != sample.key:
                yield from sample.rows()
                sample = None
            sample = sample or Sample(key)
            _add(sample, uri, member, ending, file, size)
    except _DamagedError as error:
        problem = str(error)
    if sample is not None:
        yield from sample.rows()
    if problem is not None and not (sample is not None and sample.problem):  # which already says so
        yield IndexRow(problem=f"{uri.rpartition('/')[2]}: {problem}")


def _members(file: IO[bytes], size: int) -> Iterator[_Member]:
    """The regular files, in order. Raises _DamagedError."""
    position, zeros, name, real_size, any_end = 0, 0, None, None, False
    while position + _BLOCK <= size and zeros < _MAX_ZEROS:
        file.seek(position)
        try:
            header = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            position, zeros, any_end = position + _BLOCK, zeros + _BLOCK, True
            continue
        except tarfile.HeaderError as error:
            raise _DamagedError(f"the tar is damaged at byte {position:,}: {error}") from error
        length = header.size if real_size is None else real_size
        if length < 0:
            raise _DamagedError(f"the tar is damaged at byte {position:,}: a size of {length:,}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise _DamagedError(f"the tar has a sparse file at byte {position:,}, whose bytes are not contiguous")
        data, zeros, any_end = position + _BLOCK, 0, False
        position = data if header.type in _WITHOUT_DATA else data + -(-length // _BLOCK) * _BLOCK
        if header.type in (_LONG_NAME, _PAX):
            if length > _MAX_HEADER_BYTES:
                raise _DamagedError(f"the tar has a header of {length:,} bytes at byte {data:,}")
            text = file.read(length)
            if header.type == _LONG_NAME:
                name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                name, real_size = _pax(text, name)
            continue
        if header.type in _REGULAR:
            yield _Member(name or header.name, data, length)
        name = real_size = None
    if position > size or position + _BLOCK > size > position:
        raise _DamagedError(f"the tar is truncated at byte {size:,}")
    if not any_end:
        raise _DamagedError(f"the tar has no end marker: it may be truncated at byte {size:,}")


def _pax(text: bytes, name: str | None) -> tuple[str | None, int | None]:
    """`path` and `size` of a pax header: records `LENGTH KEY=VALUE\\n` (POSIX.1-2001)."""
    size = None
    while text:
        digits, _, rest = text.partition(b" ")
        if not digits.isdigit() or len(digits) > 6 or int(digits) <= len(digits):
            break
        record, text = rest[: int(digits) - len(digits) - 1], text[int(digits) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit() and len(value) < 20:
            size = int(value)
    return name, size


def _add(sample: Sample, uri: str, member: _Member, ending: str, file: IO[bytes], size: int) -> None:
    if member.offset + member.size > size:
        sample.problem = f"the tar is truncated within {readable_name(ending) or 'a file'} of this key"
    elif ending in PICTURE_ENDINGS:
        sample.images.append(ImageRef(uri, member.offset, member.size))
    elif ending in (*CAPTION_ENDINGS, "json") and member.size <= MAX_TEXT_BYTES:
        file.seek(member.offset)
        data = file.read(member.size)
        if ending == "json":
            sample.add_json(data)
        elif sample.caption is None:
            sample.caption = data
    elif ending in (*CAPTION_ENDINGS, "json"):
        sample.problem = f"the text file beside the picture is too large: {member.size:,} bytes"
