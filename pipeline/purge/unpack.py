"""Unpacks compressed files into temporary files, so that `verify --purged` can search them."""

import bz2
import gzip
import lzma
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import pyarrow as pa

from pairmill.pipeline.purge.windows import Reads, blocks
from pairmill.schemas.errors import FailureKind, PairmillError

MAX_UNPACKED_BYTES = 1 << 32
"""A file that unpacks to more bytes than this is not searched: a few kilobytes can unpack to any size."""
_STREAMS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    rb"\x1f\x8b\x08": lambda file: gzip.GzipFile(fileobj=file),
    rb"BZh[1-9]1AY&SY": bz2.BZ2File,
    rb"\xfd7zXZ\0": lzma.LZMAFile,
    rb"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
}
_ZIP = rb"PK\x03\x04"
_UNKNOWN = {
    rb"7z\xbc\xaf\x27\x1c": "7z",
    rb"Rar!\x1a\x07": "rar",
    rb"\x04\x22\x4d\x18": "lz4",
    rb"\x1f\x9d": "compress",
}

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


class UnsearchableError(PairmillError):
    """A file cannot be unpacked. The message gives the reason."""

    kind = FailureKind.INPUT


def is_packed(head: bytes) -> bool:
    """Whether a file that begins like this is compressed, or an archive of compressed files."""
    return any(re.match(magic, head) for magic in (*_STREAMS, _ZIP, *_UNKNOWN))


def unpacked(file: IO[bytes], head: bytes) -> Iterator[tuple[str, IO[bytes]]]:
    """(member, its content) of each member of an archive, or ("", the content) of a compressed file. Each content is
    closed when the next one is requested. Raises UnsearchableError."""
    left = MAX_UNPACKED_BYTES
    for name, source in _sources(file, head):
        with tempfile.TemporaryFile() as target:
            try:
                for block in blocks(source):
                    if (left := left - len(block)) < 0:
                        raise UnsearchableError(f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                    target.write(block)
            except DAMAGED as error:
                raise UnsearchableError(f"is damaged ({error})") from error
            target.seek(0)
            yield name, target


def _sources(file: IO[bytes], head: bytes) -> Iterator[tuple[str, Reads]]:
    for magic, open_stream in _STREAMS.items():
        if re.match(magic, head):
            yield "", open_stream(file)
            return
    if not re.match(_ZIP, head):
        kind = next(kind for magic, kind in _UNKNOWN.items() if re.match(magic, head))
        raise UnsearchableError(f"is packed with {kind}")
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as source:
                    yield member.filename, cast(Reads, source)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # encrypted, or with an unknown method
        raise UnsearchableError(f"is a zip that cannot be read ({error})") from error
