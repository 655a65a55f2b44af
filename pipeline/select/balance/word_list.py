"""Finds the entries of a word list in captions, as MetaCLIP does (https://arxiv.org/abs/2309.16671, section 3).

The text is wrapped in spaces, with a space before and after each of `, . ; : ? !` and the backtick, and an entry is in
it if " entry " is. Case counts, and an entry counts once per text. Two differences: entries get the same spaces round
their punctuation, without which "St. Louis" would never be found; and in scripts without spaces between words, an end
of an entry needs no space, as in MetaCLIP 2 (https://arxiv.org/abs/2507.22062). All entries are found in one pass, by
the automaton of Aho and Corasick (1975, https://doi.org/10.1145/360825.360855).
"""

import zlib
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
"""Every process that scans rows keeps all entries: about 450 bytes each."""
MAX_FILE_BYTES = 256 << 20
"""Of the decompressed file."""
_BLOCK_ROWS = 16_384
"""Captions that are searched at a time: a match takes 200 bytes until it is in an array."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_ROW_END = "\n"
"""Ends each caption in the text that is searched. No entry contains it."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WordFile:
    """A file of entries in a certain state. Cheap to pickle: each process reads the file once."""

    files: Files
    uri: str
    blake2b: str

    @classmethod
    def of(cls, files: Files, uri: str) -> "WordFile":
        """The file as it is now. Raises StepError if it cannot be read."""
        return cls(files, uri, digest_of(files, uri))

    def load(self) -> "WordList":
        """Its entries. Raises StepError if it is not such a file, or has changed."""
        return _load(self)


class WordList:
    """Entries, ready to be found."""

    def __init__(self, lines: list[str]) -> None:
        """Surrounding white space, empty lines and repeated entries are left out."""
        entries = pa.array(lines, pa.string())
        spaced = pc.utf8_trim_whitespace(_spaced(entries))
        is_first = np.zeros(len(entries), bool)
        seen: set[str] = {""}
        for row, text in enumerate(spaced.to_pylist()):
            is_first[row] = text not in seen
            seen.add(text)
        self.entries = pc.utf8_trim_whitespace(entries).filter(pa.array(is_first))
        """The entries as they are in the file, string (entries,)."""
        patterns = _wrapped(spaced.filter(pa.array(is_first)))
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            patterns.cast(pa.binary()).to_pylist(), implementation=ahocorasick_rs.Implementation.ContiguousNFA
        )

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, captions: pa.ChunkedArray) -> tuple[Integers, Integers]:
        """(indices of captions, indices of entries in them), without repetition, in ascending order; both (matches,).
        There is nothing in a null caption."""
        found = [
            self._find(captions.slice(start, _BLOCK_ROWS), start) for start in range(0, len(captions), _BLOCK_ROWS)
        ]
        pairs = np.concatenate([np.zeros(0, np.int64), *found])
        return pairs // len(self), pairs % len(self)

    def _find(self, captions: pa.ChunkedArray, first: int) -> Integers:
        """row * entries + entry for each row and entry in it, ascending. `first`: index of the first caption."""
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
    """With spaces round punctuation, and in place of tabs and line ends."""
    return pc.replace_substring_regex(pc.replace_substring_regex(texts, "[\t\n]", " "), "([,.;:?!`])", r" \1 ")


def _wrapped(entries: pa.Array) -> pa.Array:
    """With a space at each end, unless that end is in a script without spaces between words."""
    empty, space = pa.scalar(""), pa.scalar(" ")
    before = pc.if_else(pc.match_substring_regex(entries, f"^{_UNSPACED}"), empty, space)
    after = pc.if_else(pc.match_substring_regex(entries, f"{_UNSPACED}$"), empty, space)
    return pc.binary_join_element_wise(before, entries, after, "")


@lru_cache(maxsize=2)
def _load(file: WordFile) -> WordList:
    if WordFile.of(file.files, file.uri) != file:
        raise StepError(f"{file.uri} has changed since the job began; run it again")
    try:
        with file.files.open_decompressed(file.uri) as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
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
        raise StepError(f"{file.uri} has no entry: write one per line")
    return words
