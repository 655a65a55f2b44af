"""Recognizes, by its first bytes, a file that is not what its name says, so that the error can say what to do."""

import re

HEAD_BYTES = 1024
"""`kind_of_content` needs no more bytes than this."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that a clone without Git LFS has instead of a file."""

_UNPACK = "unpack it, or compress it with gzip"
_CONVERT = "convert it to Parquet"
GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952; no text starts with these bytes
_KINDS = (
    (rb"\x28\xb5\x2f\xfd", "is compressed with Zstandard", _UNPACK),
    (rb"\xfd7zX", "is compressed with xz", _UNPACK),
    (rb"BZh[1-9]", "is compressed with bzip2", _UNPACK),
    (rb"\x04\x22\x4d\x18", "is compressed with LZ4", _UNPACK),
    (rb"\x1f\x8b", "is compressed with gzip", "unpack it"),
    (rb"PK\x03\x04", "is a ZIP archive", _UNPACK),
    (rb"7z\xbc\xaf", "is a 7z archive", _UNPACK),
    (rb".{257}ustar", "is a tar archive", "unpack it"),
    (rb"PAR1", "is a Parquet file", "give it the extension .parquet"),
    (rb"PARE", "is an encrypted Parquet file", "decrypt it first"),
    (rb"ORC.?[\x00-\x08\x0e-\x1f]", "is an ORC file", _CONVERT),
    (rb"ARROW1\0\0", "is an Arrow (Feather) file", _CONVERT),
    (rb"Obj\x01", "is an Avro file", _CONVERT),
    (re.escape(LFS_POINTER), "is only a Git LFS pointer", "run `git lfs pull` in its clone"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype html|html)\b", "is a web page", "download the file itself"),
)
"""First bytes of files that often have a wrong extension. Some encodings would decode them, but to garbage."""


def kind_of_content(head: bytes) -> tuple[str, str] | None:
    """(what the file is, what to do), such as ("is a ZIP archive", "unpack it"); None if its kind is not known."""
    return next(((kind, remedy) for start, kind, remedy in _KINDS if re.match(start, head, re.DOTALL)), None)
