"""Searches blocklists: text files of digests or URLs, one per line, kept in memory as sorted arrays.

Ten million SHA-256 digests take 320 MB in each process that reads them. Empty lines and lines that start with # are
skipped. A URL is listed if a line contains the same text, or a differently written URL that results in the same
request.
"""

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.url_parser import ParsedUrl, parse_url

DigestKind = Literal["md5", "sha256", "url"]
"""The content of each line in a file: an MD5 in hex, a SHA-256 in hex, or a URL or its SHA-256 in hex."""

_DIGEST_BYTES: dict[DigestKind, int] = {"md5": 16, "sha256": 32, "url": 32}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\x00-\x20\x7f\ufffd]+")
_AS_REQUESTED = re.compile(r"https?://[a-z0-9.-]+/[!\"$-~]*")
"""Matches most URLs that parsing would not change, because parsing is slow. Also matches URLs with dot segments, which
it would change."""

_loading = threading.Lock()


@dataclass(frozen=True)
class Blocklist:
    """The content of one file."""

    digests: npt.NDArray[np.bytes_]
    """Sorted. A URL that is normalized before it is requested has two: one as given and one as requested."""
    num_entries: int
    """Number of lines that are neither empty nor comments."""


def is_listed(digests: Sequence[bytes | None], kind: DigestKind, path: str, files: Files) -> npt.NDArray[np.bool_]:
    """Whether each raw digest is listed in the file at `path`, bool [n]; False for None."""
    entries = load_blocklist(kind, path, files).digests
    queries = np.array([digest or b"" for digest in digests], dtype=entries.dtype)
    indices = np.searchsorted(entries, queries)
    found = np.zeros(len(queries), dtype=bool)
    inside = indices < len(entries)
    found[inside] = entries[indices[inside]] == queries[inside]
    found &= np.array([digest is not None for digest in digests], dtype=bool)
    return found


def are_urls_listed(urls: Sequence[ParsedUrl], path: str, files: Files) -> npt.NDArray[np.bool_]:
    """Whether each URL, as given or as requested, is listed in the file at `path`, bool [n]."""
    given = [url_digest(url.text) for url in urls]
    requested = [None if url.parsed is None else url_digest(str(url.parsed)) for url in urls]
    return is_listed(given, "url", path, files) | is_listed(requested, "url", path, files)


def url_digest(url: str) -> bytes:
    """The digest of a URL in a blocklist: the SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(url.encode()).digest()


def load_blocklist(kind: DigestKind, path: str, files: Files) -> Blocklist:
    """The entries of a file (a local path or fsspec URL, optionally .gz); read once per process.

    Raises ValueError, with the line number, for a malformed line, and OSError if the file cannot be read.
    """
    with _loading:  # otherwise, two threads could read it at the same time and use twice the memory
        return _load(kind, path, files)


@lru_cache(maxsize=8)
def _load(kind: DigestKind, path: str, files: Files) -> Blocklist:
    digests, num_entries = bytearray(), 0
    for number, line in enumerate(files.read_text_lines(path), start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            digest = _digest(kind, entry)
            if digest is None:
                raise ValueError(f"{path}, line {number}: {entry[:80]!r} is not a {_line_format(kind)}")
            digests += digest
            num_entries += 1
    # numpy's `S` ignores trailing zero bytes in comparisons: harmless, because all digests have the same length.
    entries = np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES[kind]}")
    entries.sort()
    return Blocklist(entries, num_entries)


def _digest(kind: DigestKind, entry: str) -> bytes | None:
    """The digest of a line, or two concatenated digests for some URLs; None if the line is malformed."""
    if len(entry) == 2 * _DIGEST_BYTES[kind] and _HEX_DIGITS.issuperset(entry):
        return bytes.fromhex(entry)
    if kind != "url" or not _URL.fullmatch(entry):
        return None
    if _AS_REQUESTED.fullmatch(entry) and "/." not in entry:
        return url_digest(entry)
    requested = parse_url(entry).parsed
    return url_digest(entry) + (url_digest(str(requested)) if requested else b"")


def _line_format(kind: DigestKind) -> str:
    digest = f"digest ({2 * _DIGEST_BYTES[kind]} hex digits)"
    return f"URL or {digest}" if kind == "url" else digest
