"""Walks the headers of a tar to find where each member's bytes are, without reading them.

`tarfile` reads whole headers into memory, follows them recursively, and gives up at the first one that it does not
understand. Here, an odd member never ends the walk; it is returned with the reason why it cannot be read. Formats:
POSIX.1-2001 pax, ustar, GNU (https://www.gnu.org/software/tar/manual/html_node/Standard.html), old V7.
"""

import posixpath
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import IO

from pairmill.pipeline.common.text import counted
from pairmill.pipeline.source.corpus.tar_header import BLOCK, Header, HeaderError, parse_header

_MAX_NAME_BYTES = 64 << 10
"""Maximum size of a long name; Linux allows 4 KB."""
_MAX_ZEROS = 4 << 20
"""Zero blocks are skipped, as with `tar --ignore-zeros`, so that concatenated tars can be read. This many bytes of
zeros mark the end."""
_MAX_LINKS = 8
"""Maximum length of a chain of links."""
_MAX_REMEMBERED_BYTES = 256 << 20
"""Maximum memory for the positions of members to which links may point."""
_REMEMBERED_BYTES = 512
"""Memory per remembered member, in addition to the text of its name and link."""
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE})
_WITHOUT_DATA = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE}
)
"""Types without data (POSIX.1-2001), whatever their size. But some programs store data with them."""
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_EXTENSIONS = frozenset({*_LONG, *_PAX, tarfile.XGLTYPE})
_NEEDED_KEYS = frozenset({"path", "linkpath", "size", "GNU.sparse.name", "GNU.sparse.realsize"})
_SPARSE = "its bytes are not contiguous (a sparse file)"
_FIRST_CHUNK_BYTES, _CHUNK_BYTES = 4 << 10, 1 << 20
"""The next header is usually close; if it is not, the reads get larger."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member, or a damaged part of the file."""

    name: str
    type: bytes
    position: int
    """Byte offset of the header."""
    offset: int
    """Byte offset of the content."""
    size: int
    link: str = ""
    """Target, if the member is a link."""
    problem: str | None = None
    """Why the content cannot be read."""
    is_gap: bool = False
    """Whether this is a damaged part of the file instead of a member."""

    @property
    def is_file(self) -> bool:
        """Whether the member is a regular file."""
        return self.type in _REGULAR


@dataclass(slots=True)
class _Pending:
    """What the extension headers before a member say about it."""

    values: dict[str, str] = field(default_factory=dict)
    is_sparse: bool = False

    def size(self, header: Header) -> int:
        text = self.values.get("size", "")
        return int(text) if text.isdigit() and text.isascii() and len(text) < 20 else header.size


def members(file: IO[bytes], size: int, *, start: int = 0) -> Iterator[Member]:
    """All members in order, with links unresolved, and gaps where the tar is damaged or ends early. `size`: size of the
    tar in bytes."""
    position, zeros, any_end, pending = start, 0, False, _Pending()
    while position + BLOCK <= size and zeros < _MAX_ZEROS:
        file.seek(position)
        try:
            header = parse_header(file.read(BLOCK))
            if header is not None and header.size < 0:
                raise HeaderError(f"negative size: {header.size:,}")
        except HeaderError as error:
            end = _next_header(file, size, position + BLOCK)
            rest = "" if end is None else f"; {end - position:,} bytes are skipped"
            yield _gap(position, f"the tar is damaged at byte {position:,}: {error}{rest}")
            if end is None:
                return
            position, pending = end, _Pending()
            continue
        if header is None:
            position, zeros, any_end = position + BLOCK, zeros + BLOCK, True
            continue
        zeros, any_end = 0, False
        data = _after_sparse_map(file, size, position, header)
        is_of_next = header.type in _EXTENSIONS  # the pending size is the next member's
        length = header.size if is_of_next else pending.size(header)
        after = data + -(-length // BLOCK) * BLOCK
        if is_of_next:
            if data + length <= size:
                _read_extension(file, data, length, header.type, pending)
        else:
            member = _member(header, pending, position, data, length)
            if member.type in _WITHOUT_DATA and not _has_data(file, size, data, after):
                after = data
            yield member
            pending = _Pending()
        position = after
    if position > size or position + BLOCK > size > position:
        yield _gap(size, f"the tar is truncated at byte {size:,}")
    elif not any_end:
        yield _gap(size, f"the tar has no end marker: it may be truncated at byte {size:,}")


def _member(header: Header, pending: _Pending, position: int, data: int, length: int) -> Member:
    name = pending.values.get("GNU.sparse.name") or pending.values.get("path") or header.name
    # V7 has no type for folders. The name in the header can be cut, so only the long name shows it.
    kind = tarfile.DIRTYPE if header.type in _REGULAR and name.endswith("/") else header.type
    is_sparse = pending.is_sparse or kind == tarfile.GNUTYPE_SPARSE
    link = pending.values.get("linkpath") or header.link
    return Member(name.rstrip("/"), kind, position, data, length, link, _SPARSE if is_sparse else None)


def _has_data(file: IO[bytes], size: int, data: int, after: int) -> bool:
    """Whether the bytes between two positions belong to a member of a type without data: they are no header, and the
    next one follows them."""
    return data < after <= size - BLOCK and not _is_header(file, data) and _is_header(file, after)


def _is_header(file: IO[bytes], position: int) -> bool:
    """Whether a header or a block of zeros is at this position."""
    file.seek(position)
    try:
        parse_header(file.read(BLOCK))
    except HeaderError:
        return False
    return True


def _gap(position: int, problem: str) -> Member:
    return Member("", b"", position, position, 0, "", problem, is_gap=True)


def _next_header(file: IO[bytes], size: int, position: int) -> int | None:
    """Position of the next block with a correct checksum, where GNU tar would resume; None if there is none."""
    chunk_bytes = _FIRST_CHUNK_BYTES
    while position + BLOCK <= size:
        file.seek(position)
        chunk = file.read(min(chunk_bytes, size - position))
        chunk_bytes = min(2 * chunk_bytes, _CHUNK_BYTES)
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if not any(block[148:155]):  # no checksum: usually zeros
                continue
            try:
                parse_header(block)
            except HeaderError:
                continue
            return position + start
        position += max(len(chunk) // BLOCK, 1) * BLOCK
    return None


def _after_sparse_map(file: IO[bytes], size: int, position: int, header: Header) -> int:
    """Where the data of a member begins: after the header, which an old GNU sparse member continues in more blocks."""
    data = position + BLOCK
    if header.type != tarfile.GNUTYPE_SPARSE:
        return data
    file.seek(position + 482)
    is_extended = file.read(1) not in (b"\0", b"")
    while is_extended and data + BLOCK <= size:
        file.seek(data + 504)
        is_extended = file.read(1) not in (b"\0", b"")
        data += BLOCK
    return data


def _read_extension(file: IO[bytes], data: int, length: int, kind: bytes, pending: _Pending) -> None:
    """Add to `pending` what a long name or a pax header says about the next member."""
    if kind in _PAX:
        _read_pax(file, data, data + length, pending)
    elif kind in _LONG and length <= _MAX_NAME_BYTES:
        file.seek(data)
        pending.values[_LONG[kind]] = file.read(length).partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_pax(file: IO[bytes], position: int, end: int, pending: _Pending) -> None:
    """Read records of the form `LENGTH KEY=VALUE\\n` (POSIX.1-2001). Values that are not needed are skipped, whatever
    their size."""
    while position < end:
        file.seek(position)
        head = file.read(min(256, end - position))
        digits, _, rest = head.partition(b" ")
        if not (digits.isdigit() and len(digits) <= 12 and int(digits) > len(digits)):
            return
        length = int(digits)
        key = rest.partition(b"=")[0].decode("utf-8", "replace")
        start = len(digits) + 1 + len(key.encode()) + 1
        pending.is_sparse |= key.startswith("GNU.sparse.")
        if key in _NEEDED_KEYS and start < length <= min(_MAX_NAME_BYTES, end - position):
            file.seek(position + start)
            pending.values[key] = file.read(length - start - 1).decode("utf-8", "surrogateescape")
        position += length


class LinkTargets:
    """Finds the members to which links point, as `tarfile.extractfile` does. Tars without links cost nothing."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self._known: dict[str, list[Member]] | None = None
        self._where = "in the tar"

    def resolve(self, link: Member) -> Member:
        """The regular file to which a link points, renamed to the link's name; if there is none, the link with a
        problem."""
        found, seen = link, 0
        while found.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) and seen < _MAX_LINKS:
            target = self._target(found)
            if target is None:
                return replace(link, problem=f"a link to {found.link[:200]}, which is not {self._where}")
            found, seen = target, seen + 1
        if not found.is_file:
            return replace(link, problem=f"a link to {found.link[:200] or found.name[:200]}, which is not a file")
        return replace(found, name=link.name, position=link.position)

    def _target(self, link: Member) -> Member | None:
        """The target of a link: for a hard link, the last member of that name before it; for a symbolic link, the last
        member of that name anywhere."""
        is_hard = link.type == tarfile.LNKTYPE
        name = link.link if is_hard else posixpath.join(posixpath.dirname(link.name), link.link)
        found = self._members().get(_plain(name), [])
        end = bisect_left(found, link.position, key=attrgetter("position")) if is_hard else len(found)
        return found[end - 1] if end else None

    def _members(self) -> dict[str, list[Member]]:
        if self._known is None:
            self._known, room = {}, _MAX_REMEMBERED_BYTES
            for number, member in enumerate(members(self._file, self._size)):
                room -= _REMEMBERED_BYTES + len(member.name) + len(member.link)
                if room < 0:
                    self._where = f"among the first {counted(number, 'member')} of the tar"
                    break
                if not member.is_gap:
                    self._known.setdefault(_plain(member.name), []).append(member)
        return self._known


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
