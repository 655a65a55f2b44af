"""Indexes WebDataset tars by walking their headers: records where each picture's bytes are and what its text files
contain.

Consecutive files with the same key form a sample. As in WebDataset, a key is a name up to the first dot after its last
slash. If `photo.1.jpg` has a caption `photo.1.txt`, and `photo.2.jpg` follows, the dots are part of the names, and
these are two samples. Hidden files, whose names begin with a dot, and files of other kinds do not end a sample.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import IO

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.content_kind import kind_of_content
from pairmill.pipeline.source.corpus.index import ImageRef, IndexRow, Sample, readable_name, split_name
from pairmill.pipeline.source.corpus.sidecar import USUAL_TEXTS, TextRules
from pairmill.pipeline.source.corpus.tar_header import BLOCK, HeaderError, parse_header
from pairmill.pipeline.source.corpus.tar_members import LinkTargets, Member, members
from pairmill.pipeline.source.files import PICTURE_ENDINGS, SourceError, reason_unused
from pairmill.schemas.passed_over import PassedOver, Tally

_SPECIAL = frozenset({tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE})
_LINKS = frozenset({tarfile.LNKTYPE, tarfile.SYMTYPE})
_HIDDEN_PATH = re.compile(r"(?:^|/)\.(?!\.?(?:/|$))")
"""Matches a path if one of its parts begins with a dot and is neither `.` nor `..`."""


def tar_rows(uri: str, files: Files, tally: Tally | None = None, rules: TextRules = USUAL_TEXTS) -> Iterator[IndexRow]:
    """Rows of INDEX_SCHEMA. A truncated or damaged part of the tar becomes a row that says where it is.

    `tally` counts members as rows, parts of rows, or skipped. Raises SourceError if the file is not a tar.
    """
    with files.open(uri) as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(BLOCK)
        if not head:  # tar always writes a block of zeros
            yield from _empty_file(uri, tally or Tally())
            return
        try:
            parse_header(head)
        except HeaderError as error:
            raise SourceError(f"{uri}: is not an uncompressed tar: {_not_a_tar(head, error)}") from error
        yield from _TarIndexer(uri, file, size, rules, tally or Tally()).rows()


def _not_a_tar(head: bytes, error: HeaderError) -> str:
    """What a file is that does not begin with a tar header, and what to do."""
    kind, remedy = kind_of_content(head) or ("", "")
    if "compressed" in kind or "ZIP" in kind or "7z" in kind:
        remedy = "pictures are read by range, so unpack it, to .tar or a folder"
    is_damaged = not kind or "tar" in kind
    return str(error) if is_damaged else f"it {kind}; {remedy}"


def _empty_file(uri: str, tally: Tally) -> Iterator[IndexRow]:
    tally.add_row()
    yield IndexRow(problem=f"{uri.rpartition('/')[2]}: the tar is empty; was a copy interrupted?")


class _TarIndexer:
    """One pass over a tar."""

    def __init__(self, uri: str, file: IO[bytes], size: int, rules: TextRules, tally: Tally) -> None:
        self._uri, self._file, self._size = uri, file, size
        self._rules, self._tally = rules, tally
        self._targets = LinkTargets(file, size)
        self._dotted: str | None = None
        """A key whose samples are distinguished by the infix after its dot."""

    def rows(self) -> Iterator[IndexRow]:
        """A row per sample and per gap."""
        sample: Sample | None = None
        for member in members(self._file, self._size):
            key, infix, ending = split_name(member.name)
            if not member.is_gap and (reason := self._passed_over(member, ending)):
                self._tally.pass_over(reason)
                continue
            if sample is not None and self._ends(sample, member, key, infix):
                yield self._finish(sample)
                was_cut = member.is_gap and sample.problem is not None
                sample = None
                if was_cut:  # the sample's row already says so
                    continue
            if member.is_gap:
                self._tally.add_row()
                yield IndexRow(problem=f"{self._uri.rpartition('/')[2]}: {member.problem}")
                continue
            sample = sample or Sample(self._key(key, infix), self._rules)
            self._add(sample, member, infix, ending)
        if sample is not None:
            yield self._finish(sample)

    def _ends(self, sample: Sample, member: Member, key: str, infix: str) -> bool:
        """Whether a member or gap does not belong to the sample before it."""
        if key != self._dotted:
            own, self._dotted = sample.own_infix, None
            if key == sample.key and own is not None and infix not in ("", own) and not member.is_gap:
                self._dotted, sample.key = key, f"{key}.{own}"
        return member.is_gap or self._key(key, infix) != sample.key or hash(member.name) in sample.names

    def _key(self, key: str, infix: str) -> str:
        return f"{key}.{infix}" if infix and key == self._dotted else key

    def _finish(self, sample: Sample) -> IndexRow:
        self._tally.add_row(sample.num_files)
        return sample.row()

    def _passed_over(self, member: Member, ending: str) -> PassedOver | None:
        """Why a member belongs to no sample; None if it belongs to one."""
        if _HIDDEN_PATH.search(member.name):
            return PassedOver.HIDDEN
        if member.type == tarfile.DIRTYPE:
            return PassedOver.FOLDER
        if member.type in _SPECIAL:
            return PassedOver.SPECIAL
        if not member.is_file and member.type not in _LINKS:
            return PassedOver.UNKNOWN_MEMBER
        is_used = ending in PICTURE_ENDINGS or self._rules.is_text(ending)
        return None if is_used else reason_unused(member.name)

    def _add(self, sample: Sample, member: Member, infix: str, ending: str) -> None:
        sample.names.add(hash(member.name))
        sample.num_files += 1
        if member.type in _LINKS:
            member = self._targets.resolve(member)
        name = readable_name(member.name.rpartition("/")[2])
        if member.problem is not None:
            self._note(sample, ending, f"{name}: {member.problem}")
        elif member.offset + member.size > self._size:
            sample.problem = f"the tar is truncated within {readable_name(ending) or 'a file'} of this key"
        elif ending in PICTURE_ENDINGS:
            sample.add_image(ImageRef(self._uri, member.offset, member.size), infix)
        elif member.size > self._rules.max_bytes(ending):
            sample.texts_of(infix).add_too_large(name, member.size)
        else:
            self._file.seek(member.offset)
            sample.texts_of(infix).add(name, ending, self._file.read(member.size))

    def _note(self, sample: Sample, ending: str, problem: str) -> None:
        """Record a member that cannot be read. Another picture or text file with its key may be used instead."""
        if ending in PICTURE_ENDINGS:
            sample.add_lost_image(problem)
        else:
            sample.texts.add_problem(problem)
