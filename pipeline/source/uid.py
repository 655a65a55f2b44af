"""THE place where a pair gets its uid: 128 bits, as 32 hex characters. It does not depend on the pair's position.

uid = BLAKE2b-128(part(url) + part(caption))
part(null) = 00        part(bytes) = 01, then the length as 8 bytes little-endian, then the bytes

If the picture is in the input rather than on the web:

    no URL, or a blank one                              its SHA-256, in hex, replaces the URL
    a URL and caption that several input rows share     BLAKE2b-128(part(url) + part(caption) + part(SHA-256))
"""

import hashlib
import re

_OWN = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def pair_uid(url: bytes | None, caption: bytes | None) -> str:
    """The uid of a URL and caption, given as raw bytes. Null and empty values yield different uids."""
    return hashlib.blake2b(_part(url) + _part(caption), digest_size=16).hexdigest()


def picture_uid(url: bytes | None, caption: bytes | None, sha256: str | None) -> str:
    """The uid of a corpus picture whose URL does not identify it. `sha256`: in hex; None if it was not computed."""
    digest = sha256.encode() if sha256 else None
    if is_blank(url) or digest is None:
        return pair_uid(digest or url, caption)
    return hashlib.blake2b(_part(url) + _part(caption) + _part(digest), digest_size=16).hexdigest()


def is_blank(url: bytes | None) -> bool:
    """Whether the URL is missing: null, empty or only whitespace."""
    return not (url and url.strip())


def own_uid(text: str) -> str | None:
    """The user's own id (32 hex digits or a UUID), in lower case without hyphens. None if it is not an id."""
    return text.replace("-", "").lower() if _OWN.fullmatch(text) else None


def caption_uid(uid: str, caption_index: int) -> str:
    """The uid for one caption of a row that has its own uid: for the first caption, the row's uid; for any other,
    BLAKE2b-128 of `UID:INDEX`."""
    if caption_index == 0:
        return uid
    return hashlib.blake2b(f"{uid}:{caption_index}".encode(), digest_size=16).hexdigest()


def _part(value: bytes | None) -> bytes:
    return b"\x00" if value is None else b"\x01" + len(value).to_bytes(8, "little") + value
