"""Searches blocklists: text files of digests or URLs, one per line, kept in memory as sorted arrays.

Ten million SHA-256 digests take 320 MB in each process that reads them. Empty lines and lines that start with # are
skipped.
"""

import hashlib
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.files import Files

DigestKind = Literal["md5", "sha256", "url"]
"""The content of each line in a file: an MD5 in hex, a SHA-256 in hex, or a URL or its SHA-256 in hex."""

_DIGEST_BYTES: dict[DigestKind, int] = {"md5": 16, "sha256": 32, "url": 32}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

_loading = threading.Lock()


def is_listed(digests: Sequence[bytes | None], kind: DigestKind, path: str, files: Files) -> npt.NDArray[np.bool_]:
    """Whether each raw digest is listed in the file at `path`, bool [n]; False for None."""
    entries = load_blocklist(kind, path, files)
    queries = np.array([digest or b"" for digest in digests], dtype=entries.dtype)
    indices = np.searchsorted(entries, queries)
    found = np.zeros(len(queries), dtype=bool)
    inside = indices < len(entries)
    found[inside] = entries[indices[inside]] == queries[inside]
    found &= np.array([digest is not None for digest in digests], dtype=bool)
    return found


def url_digest(url: str) -> bytes:
    """The digest of a URL in a blocklist: the SHA-256 of its UTF-8 bytes, exactly as given."""
    return hashlib.sha256(url.encode()).digest()


def load_blocklist(kind: DigestKind, path: str, files: Files) -> npt.NDArray[np.bytes_]:
    """The digests in a file (a local path or fsspec URL, optionally .gz), sorted; read once per process.

    Raises ValueError, with the line number, for a malformed line, and OSError if the file cannot be read.
    """
    with _loading:  # otherwise, two threads could read it at the same time and use twice the memory
        return _load(kind, path, files)


@lru_cache(maxsize=8)
def _load(kind: DigestKind, path: str, files: Files) -> npt.NDArray[np.bytes_]:
    digests = bytearray()
    for number, line in enumerate(files.read_text_lines(path), start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            digest = _digest(kind, entry)
            if digest is None:
                raise ValueError(f"{path}, line {number}: {entry[:80]!r} is not a {_line_format(kind)}")
            digests += digest
    # numpy's `S` ignores trailing zero bytes in comparisons, which is harmless because all digests have one length.
    entries = np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES[kind]}")
    entries.sort()
    return entries


def _digest(kind: DigestKind, entry: str) -> bytes | None:
    if len(entry) == 2 * _DIGEST_BYTES[kind] and _HEX_DIGITS.issuperset(entry):
        return bytes.fromhex(entry)
    return url_digest(entry) if kind == "url" and "://" in entry and "\ufffd" not in entry else None


def _line_format(kind: DigestKind) -> str:
    hex_digits = f"hash of {2 * _DIGEST_BYTES[kind]} hex digits"
    return f"URL or {hex_digits}" if kind == "url" else hex_digits
