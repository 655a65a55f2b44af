"""Finds the entries of a word list in captions, as MetaCLIP does (https://arxiv.org/abs/2309.16671, section 3).

A space is added at both ends of the text and around each of `, . ; : ? !` and the backtick. The text then contains an
entry if it contains " entry ". Matching is case-sensitive, and an entry counts once per text. There are two
differences: entries get the same spaces around their punctuation, because otherwise "St. Louis" would never be found;
and in scripts without spaces between words, no space is needed next to an entry, as in MetaCLIP 2
(https://arxiv.org/abs/2507.22062). An Aho-Corasick automaton (1975, https://doi.org/10.1145/360825.360855) finds all
entries in one pass.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import ahocorasick_rs
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.step_file import digest_of

MAX_ENTRIES = 2_000_000
"""Maximum number of entries. Every process that scans rows keeps them all in memory, at about 450 bytes each."""
MAX_FILE_BYTES = 256 << 20
"""Maximum size of the file after decompression."""
_BLOCK_ROWS = 16_384
"""Captions to search at a time. A match takes 200 bytes until it is stored in an array."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_ROW_END = "\n"
"""Terminates each caption in the searched text. No entry contains it."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WordFile:
    """A file of entries, together with its checksum. Cheap to pickle: each process reads the file once."""

    files: Files
    uri: str
    blake2b: str

    @classmethod
    def of(cls, files: Files, uri: str) -> "WordFile":
        """The file as it is now. Raises StepError if it cannot be read."""
        return cls(files, uri, digest_of(files, uri))

    def load(self) -> "WordList":
        """The entries in the file. Raises StepError if it is not a valid list or has changed."""
        return _load(self)


class WordList:
    """Entries, compiled for searching."""

    def __init__(self, lines: list[str]) -> None:
        """Compile the entries, one per line. Surrounding white space, empty lines and repeated entries are ignored."""
        entries = pa.array(lines, pa.string())
        spaced = pc.utf8_trim_whitespace(_spaced(entries))
        is_first = np.zeros(len(entries), bool)
        seen: set[str] = {""}
        for row, text in enumerate(spaced.to_pylist()):
            is_first[row] = text not in seen
            seen.add(text)
        self.entries = pc.utf8_trim_whitespace(entries).filter(pa.array(is_first))
        """The entries as written in the file, string (entries,)."""
        patterns = _wrapped(spaced.filter(pa.array(is_first)))
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            patterns.cast(pa.binary()).to_pylist(), implementation=ahocorasick_rs.Implementation.ContiguousNFA
        )

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, captions: pa.ChunkedArray) -> tuple[Integers, Integers]:
        """(indices of captions, indices of the entries in them), distinct and in ascending order; both (matches,).
        A null caption contains no entries."""
        found = [
            self._find(captions.slice(start, _BLOCK_ROWS), start) for start in range(0, len(captions), _BLOCK_ROWS)
        ]
        pairs = np.concatenate([np.zeros(0, np.int64), *found])
        return pairs // len(self), pairs % len(self)

    def _find(self, captions: pa.ChunkedArray, first: int) -> Integers:
        """The value row * entries + entry for each match, ascending. `first`: index of the first caption."""
        block = captions.combine_chunks().cast(pa.large_string())
        before, after, between = (pa.scalar(text, pa.large_string()) for text in (" ", f" {_ROW_END}", ""))
        whole = pc.binary_join_element_wise(before, pc.fill_null(_spaced(block), ""), after, between)
        offsets = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
        text = memoryview(whole.buffers()[2]).cast("B")[offsets[0] : offsets[-1]]
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        matches = np.fromiter(chain.from_iterable(found), np.int64, 3 * len(found)).reshape(-1, 3)
        rows = np.searchsorted(offsets - offsets[0], matches[:, 1], side="right") - 1 + first
        pairs = np.sort(rows * len(self) + matches[:, 0])  # np.unique hashes integers, which takes 90 times as long
        return np.asarray(pairs[np.diff(pairs, prepend=-1) != 0])


def _spaced(texts: pa.Array) -> pa.Array:
    """The strings with spaces around punctuation, and with tabs and line ends replaced by spaces."""
    return pc.replace_substring_regex(pc.replace_substring_regex(texts, "[\t\n]", " "), "([,.;:?!`])", r" \1 ")


def _wrapped(entries: pa.Array) -> pa.Array:
    """The entries with a space at each end, unless that end is in a script without spaces between words."""
    empty, space = pa.scalar(""), pa.scalar(" ")
    before = pc.if_else(pc.match_substring_regex(entries, f"^{_UNSPACED}"), empty, space)
    after = pc.if_else(pc.match_substring_regex(entries, f"{_UNSPACED}$"), empty, space)
    return pc.binary_join_element_wise(before, entries, after, "")


@lru_cache(maxsize=2)
def _load(file: WordFile) -> WordList:
    if WordFile.of(file.files, file.uri) != file:
        raise StepError(f"{file.uri} has changed since the job began; run the job again")
    try:
        with file.files.open_decompressed(file.uri) as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StepError(f"{file.uri} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StepError(f"{file.uri} is larger than {MAX_FILE_BYTES >> 20} MiB, too large for a list of entries")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise StepError(f"{file.uri} is not a text file in UTF-8 (byte {error.start:,})") from None
    if len(lines) > MAX_ENTRIES:
        raise StepError(f"{file.uri} has {len(lines):,} lines; at most {MAX_ENTRIES:,} entries fit into memory")
    words = WordList(lines)
    if not len(words):
        raise StepError(f"{file.uri} has no entries: write one per line")
    return words
