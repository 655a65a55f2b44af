"""Splits captions into words, so that each distinct word of a shard is examined only once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]

BETWEEN_RUNS = r"[^\pL\pM\pN_]+"
"""Matches separators between runs of letters, marks, digits and underscores, the "whole words" of the caption rules."""


@dataclass(frozen=True)
class Words:
    """The words of captions, in order."""

    distinct: pa.Array
    """The distinct words, string [distinct]. One of them can be empty."""
    codes: Integers
    """The index of each word in `distinct`, [words]."""
    bounds: Integers
    """The words of caption i are `codes[bounds[i]:bounds[i + 1]]`, [captions + 1]. A null caption has no words."""

    @classmethod
    def of(cls, lists: pa.ListArray) -> "Words":
        """Create Words from the words of each caption, as Arrow's functions split them."""
        encoded = lists.flatten().dictionary_encode()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        return cls(
            encoded.dictionary,
            encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        )

    def totals(self, values: npt.NDArray[np.generic]) -> Integers:
        """The sum over the words of each caption, int64 [captions]. `values`: an integer per distinct word."""
        return self.sums(values[self.codes])

    def sums(self, values: npt.NDArray[np.generic]) -> Integers:
        """The sum over the words of each caption, int64 [captions]. `values`: an integer per word, in order."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
        totals: Integers = sums[self.bounds[1:]] - sums[self.bounds[:-1]]
        return totals


def split_at_spaces(captions: pa.Array) -> Words:
    """Split captions into the words that the caption rules count. Clean captions contain no other white space."""
    return Words.of(pc.split_pattern(captions, " "))


def split_into_runs(lower: pa.Array) -> Words:
    """Split captions in lower case into runs of letters, marks, digits and underscores."""
    return Words.of(pc.split_pattern_regex(lower, BETWEEN_RUNS))
