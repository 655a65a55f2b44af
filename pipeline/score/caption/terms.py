"""Finds the terms of a list in captions: as whole words, ignoring case and the characters between the words of a term.

A term is found wherever the caption rules would find it as a blocked term, and also where other punctuation separates
its words. In scripts without spaces between words, it is found anywhere. A term with symbols, such as `$ex`, `c++`,
`f*ck` or an emoji, must occur exactly as written (ignoring case) and must not start or end inside a longer word.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.rules.caption import UNSPACED_SCRIPTS
from pairmill.pipeline.score.caption.words import BETWEEN_RUNS, Integers, split_into_runs

_Key = tuple[int, ...]

_LITERAL = r"^[^\pL\pM\pN_]|[^\pL\pM\pN_]$|[*@#%\\]|\pS"
"""Matches a term that contains symbols and therefore is not just a sequence of words."""


class _Literals:
    """Terms that must occur exactly as written."""

    def __init__(self, lower: pa.Array) -> None:
        self._terms = sorted(set(lower.to_pylist()))
        self._any = _alternatives(lower)

    def count(self, lower: pa.Array) -> Integers:
        """The number of occurrences of the terms in each caption, [captions]."""
        counts = np.zeros(len(lower), np.int64)
        if self._any:
            found = _numbers(pc.match_substring_regex(lower, self._any).cast(pa.int64()))
            for row in np.flatnonzero(found).tolist():
                counts[row] = sum(_occurrences(lower[row].as_py(), term) for term in self._terms)
        return counts


def _occurrences(text: str, term: str) -> int:
    """The number of occurrences of a term in a caption, not counting those within a longer word."""
    count, start = 0, text.find(term)
    while start >= 0:
        end = start + len(term)
        is_inside = _joins(text[start - 1 : start], term[0]) or _joins(term[-1], text[end : end + 1])
        count += not is_inside
        start = text.find(term, start + 1 if is_inside else end)
    return count


def _joins(left: str, right: str) -> bool:
    """Whether two adjacent characters belong to the same word. At either end of the text, one of them is empty."""
    return all(each == "_" or (each and unicodedata.category(each)[0] in "LMN") for each in (left, right))


def _alternatives(terms: pa.Array) -> str:
    """A regular expression that matches any of the terms, longest first; empty if there are no terms."""
    distinct = sorted(set(terms.to_pylist()), key=lambda term: (-len(term), term))
    return "|".join(re.escape(term.strip()) for term in distinct)


class TermList:
    """Terms, compiled for searching."""

    def __init__(self, terms: Iterable[str]) -> None:
        lower = pc.utf8_lower(pa.array([unicodedata.normalize("NFC", term) for term in terms], pa.string()))
        is_unspaced = pc.match_substring_regex(lower, UNSPACED_SCRIPTS)
        self._unspaced = _alternatives(lower.filter(is_unspaced))
        is_literal = pc.and_not(pc.match_substring_regex(lower, _LITERAL), is_unspaced)
        self._literal = _Literals(lower.filter(is_literal))
        of_words = lower.filter(pc.invert(pc.or_(is_unspaced, is_literal)))
        runs = [[run for run in each if run] for each in pc.split_pattern_regex(of_words, BETWEEN_RUNS).to_pylist()]
        self._runs = pa.array(sorted({run for term in runs for run in term}), pa.string())
        number = {run: index for index, run in enumerate(self._runs.to_pylist())}
        self._terms: dict[int, dict[int, set[_Key]]] = {}
        """Number of a term's first run -> how many runs the term has (descending) -> terms."""
        for term in sorted(runs, key=len, reverse=True):
            if term:
                key = tuple(number[run] for run in term)
                self._terms.setdefault(key[0], {}).setdefault(len(key), set()).add(key)

    def find(self, captions: pa.Array) -> tuple[Integers, Integers, Integers]:
        """(number of terms found, number of their characters, number of all word characters), each [captions].

        Matches of terms without symbols do not overlap: earlier matches win and, among those with the same start, the
        longest. Terms with symbols are counted independently. Only the characters of runs count (see `words.py`). 0 for
        a null caption.
        """
        lower = pc.utf8_lower(captions)
        words = split_into_runs(lower)
        lengths = pc.utf8_length(words.distinct).to_numpy()  # [distinct]
        numbers = pc.fill_null(pc.index_in(words.distinct, self._runs), -1).to_numpy()[words.codes]  # [words]
        hits = np.zeros(len(numbers), np.int64)
        is_covered = np.zeros(len(numbers), bool)
        is_start = np.isin(numbers, list(self._terms))
        for row in np.flatnonzero(words.sums(is_start)).tolist():
            start, end = words.bounds[row : row + 2].tolist()
            for first, length in self._matches(numbers[start:end].tolist()):
                hits[start + first] = 1
                is_covered[start + first : start + first + length] = True
        hits = words.sums(hits) + self._literal.count(lower)
        found = hits, words.sums(is_covered * lengths[words.codes]), words.totals(lengths)
        return self._with_unspaced(lower, found) if self._unspaced else found

    def _matches(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """(position of the first run, number of runs) of each term in one caption."""
        found, position = [], 0
        while position < len(numbers):
            step = 1
            for length, terms in self._terms.get(numbers[position], {}).items():
                if tuple(numbers[position : position + length]) in terms:
                    found.append((position, length))
                    step = length
                    break
            position += step
        return found

    def _with_unspaced(
        self, lower: pa.Array, found: tuple[Integers, Integers, Integers]
    ) -> tuple[Integers, Integers, Integers]:
        """Add the matches of terms in scripts without spaces."""
        hits, covered, total = found
        more = _numbers(pc.count_substring_regex(lower, self._unspaced))
        left = pc.utf8_length(pc.replace_substring_regex(lower, self._unspaced, ""))
        return hits + more, covered + _numbers(pc.subtract(pc.utf8_length(lower), left)), total


def _numbers(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), np.int64)
