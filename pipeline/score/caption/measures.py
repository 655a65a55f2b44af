"""Defines the measures that depend on the caption alone."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.rules import patterns
from pairmill.pipeline.rules.base import SourceRules
from pairmill.pipeline.rules.language import detect_languages
from pairmill.pipeline.score.caption.terms import TermList
from pairmill.pipeline.score.caption.words import Words, split_at_spaces

_GRAM = 10
"""Length of the n-grams in both repetition measures, which is Data-Juicer's default."""

MAX_REPETITION_CHARS = 20_000
"""Only this many leading characters of a caption are examined for repetition, which takes 50 ms. Examining all of a
caption of several megabytes would take ten seconds."""

_RELATIONS = """
    aboard above across against along alongside amid among around at atop behind below beneath beside between beyond by
    down from in inside into near next off on onto out outside over past through toward towards under underneath up upon
    with within without
"""
"""English prepositions of place, direction and company."""


@dataclass(frozen=True)
class Captions:
    """Captions, together with intermediate results that several measures share."""

    texts: pa.Array
    """string [captions]"""

    @cached_property
    def words(self) -> Words:
        """The words of the captions."""
        return split_at_spaces(self.texts)

    @cached_property
    def lower_words(self) -> pa.Array:
        """The distinct words in lower case, without leading and trailing punctuation and symbols, [distinct]."""
        return patterns.bare(self.words.distinct)

    @cached_property
    def num_words(self) -> pa.Array:
        """The number of words, as the caption rules count them, int32 [captions]."""
        return pc.count_substring_regex(self.texts, r"[^ ]+")

    @cached_property
    def num_characters(self) -> pa.Array:
        """The number of Unicode characters, int32 [captions]."""
        return pc.utf8_length(self.texts)


Measure = Callable[[Captions], list[pa.Array]]
"""Captions -> one array for each column."""


def language(captions: Captions) -> list[pa.Array]:
    """(ISO 639 code, probability) by fastText's lid.176, as the rule `caption_languages` detects it."""
    codes, scores = detect_languages(pa.chunked_array([captions.texts]))
    return [codes, scores.cast(pa.float32())]


def words(captions: Captions) -> list[pa.Array]:
    """Number of words."""
    return [captions.num_words]


def characters(captions: Captions) -> list[pa.Array]:
    """Number of Unicode characters."""
    return [captions.num_characters]


def readability(captions: Captions) -> list[pa.Array]:
    """Flesch's reading ease (1948, "A new readability yardstick"), for English. Null without Latin letters.

    206.835 - 1.015 words / sentences - 84.6 syllables / words. A sentence ends where `.`, `!` or `?` precedes a space.
    Syllables are groups of vowels; a silent e at the end does not count.
    """
    letters = pc.replace_substring_regex(pc.utf8_lower(captions.words.distinct), "[^a-z]+", "")
    is_word = np.asarray(pc.greater(pc.utf8_length(letters), 0).to_numpy(zero_copy_only=False), np.int64)
    num_words = captions.words.totals(is_word)
    num_syllables = captions.words.totals(_syllables(letters) * is_word)
    ends = pc.count_substring_regex(captions.texts, r"""[.!?]+["')\]]* """)
    num_sentences = pc.fill_null(ends, 0).to_numpy(zero_copy_only=False) + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        ease = 206.835 - 1.015 * num_words / num_sentences - 84.6 * num_syllables / num_words
    return [pa.array(ease.astype(np.float32), mask=num_words == 0)]


def repetition(captions: Captions) -> list[pa.Array]:
    """(character repetition, word repetition), from 0 to 1, as in Data-Juicer, which follows ROOTS (arXiv 2303.03915).

    Character repetition: the share of all 10-grams that belong to the √n most frequent distinct 10-grams and occur
    more than once, where n is the number of distinct 10-grams. Word repetition: the share of 10-grams that occur more
    than once, over words in lower case without outer punctuation. 0 for captions that are too short for a 10-gram. Only
    the first MAX_REPETITION_CHARS characters of a caption count.
    """
    captions = Captions(pc.utf8_slice_codeunits(captions.texts, 0, MAX_REPETITION_CHARS))
    texts = captions.texts.to_pylist()
    of_characters = [None if text is None else _character_repetition(text) for text in texts]
    of_words = np.zeros(len(texts), np.float32)
    encoded = captions.lower_words.dictionary_encode()
    empty = encoded.dictionary.index("").as_py()
    codes = encoded.indices.to_numpy(zero_copy_only=False)[captions.words.codes].tolist()  # [words]
    bounds = captions.words.bounds.tolist()
    for row in np.flatnonzero(np.diff(bounds) > _GRAM).tolist():
        of_words[row] = _word_repetition(codes[bounds[row] : bounds[row + 1]], empty)
    return [pa.array(of_characters, pa.float32()), _masked(of_words, captions)]


def digits(captions: Captions) -> list[pa.Array]:
    """Share of characters that are decimal digits in any script."""
    return [_share(captions, r"\p{Nd}+")]


def special(captions: Captions) -> list[pa.Array]:
    """Share of characters that are neither letters, marks, numbers nor spaces."""
    return [_share(captions, r"[^\pL\pM\pN ]+")]


def alphanumeric(captions: Captions) -> list[pa.Array]:
    """Share of characters that are letters, marks or numbers."""
    return [_share(captions, r"[\pL\pM\pN]+")]


def capitals(captions: Captions) -> list[pa.Array]:
    """Share of words whose first character, ignoring punctuation and symbols, is a capital letter: a proxy for the
    share of named entities."""
    is_capital = pc.match_substring_regex(captions.words.distinct, r"^[\pP\pS]*[\p{Lu}\p{Lt}]")
    counts = captions.words.totals(is_capital.to_numpy(zero_copy_only=False))
    return [_ratio(_masked(counts, captions), captions.num_words)]


def relations(captions: Captions) -> list[pa.Array]:
    """Number of English prepositions of place, direction and company: a proxy for the number of relations between
    objects, which CAT (arXiv 2301.02280) counts with a parser."""
    is_relation = pc.is_in(captions.lower_words, pa.array(_RELATIONS.split()))
    counts = captions.words.totals(is_relation.to_numpy(zero_copy_only=False))
    return [_masked(counts.astype(np.int32), captions)]


def boilerplate(captions: Captions) -> list[pa.Array]:
    """Share of word characters that belong to entries of the built-in boilerplate list.

    1 if a caption rule would drop the caption as boilerplate, a file name, a date, a hash or a URL. Otherwise, null if
    the caption has no word characters.
    """
    _, covered, total = _boilerplate_terms().find(captions.texts)
    with np.errstate(invalid="ignore"):
        share = np.minimum(covered / total, 1).astype(np.float32)
    is_dropped = _is_dropped(captions.texts)
    return [pa.array(np.where(is_dropped, 1, share).astype(np.float32), mask=(total == 0) & ~is_dropped)]


def toxic(terms: Iterable[str]) -> Measure:
    """A measure that counts occurrences of the terms in each caption. Both are case-folded: unlike in lower case, `ss`
    is then equal to a sharp s, and a Greek final sigma to any other."""
    found = TermList(unicodedata.normalize("NFC", term).casefold() for term in terms)

    def count(captions: Captions) -> list[pa.Array]:
        folded = pa.array([text and text.casefold() for text in captions.texts.to_pylist()], pa.string())
        return [_masked(found.find(folded)[0].astype(np.int32), captions)]

    return count


def _syllables(words: pa.Array) -> npt.NDArray[np.int64]:
    """The number of syllables of English words in lower-case letters, int64 [words]; at least 1."""
    groups = pc.count_substring_regex(words, "[aeiouy]+").to_numpy().astype(np.int64)
    ends_in_e = pc.match_substring_regex(words, "[^aeiouy](?:e|es|ed)$")
    is_spoken = pc.match_substring_regex(words, "(?:[^aeiouy]le|[^aeiouy]les|[csxzg]es|[cs]hes|[td]ed)$")
    silent = pc.and_not(ends_in_e, is_spoken).to_numpy(zero_copy_only=False)
    syllables: npt.NDArray[np.int64] = np.maximum(groups - silent, 1)
    return syllables


def _character_repetition(text: str) -> float:
    total = len(text) - _GRAM + 1
    if len({text[start : start + _GRAM] for start in range(total)}) == max(total, 0):
        return 0.0
    counts = sorted(Counter(text[start : start + _GRAM] for start in range(total)).values(), reverse=True)
    repeated = sum(count > 1 for count in counts)
    return sum(counts[: min(math.isqrt(len(counts)), repeated)]) / total


def _word_repetition(words: list[int], empty: int) -> float:
    if len(words) - len(set(words)) < _GRAM:  # each word of a repeated n-gram occurs at least twice
        return 0.0
    words = [word for word in words if word != empty]
    counts = Counter(tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1))
    return sum(count for count in counts.values() if count > 1) / max(counts.total(), 1)


def _share(captions: Captions, pattern: str) -> pa.Array:
    """Share of each caption's characters that belong to matches, float32 [captions]; null for an empty caption."""
    rest = pc.utf8_length(pc.replace_substring_regex(captions.texts, pattern, ""))
    return _ratio(pc.subtract(captions.num_characters, rest), captions.num_characters)


def _ratio(part: pa.Array, whole: pa.Array) -> pa.Array:
    """part / whole, float32; null where either is null or the whole is 0."""
    whole = pc.if_else(pc.equal(whole, 0), None, whole)
    return pc.divide(pc.cast(part, pa.float64()), pc.cast(whole, pa.float64())).cast(pa.float32())


def _masked(values: npt.NDArray[np.generic], captions: Captions) -> pa.Array:
    return pa.array(values, mask=captions.texts.is_null().to_numpy(zero_copy_only=False))


@cache
def _boilerplate_terms() -> TermList:
    return TermList(patterns.boilerplate(("default",)).to_pylist())


_DROPPING = SourceRules(
    caption_drop_file_names=True,
    caption_drop_dates=True,
    caption_drop_hashes=True,
    caption_drop_urls=True,
    caption_boilerplate=["default"],
)
_RULES = (
    patterns.caption_is_file_name,
    patterns.caption_is_date,
    patterns.caption_is_hash,
    patterns.caption_is_url,
    patterns.caption_is_boilerplate,
)


def _is_dropped(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """Whether a rule would drop each caption, bool [captions]; False for null."""
    rows = pa.table({"caption_clean": texts})
    is_dropped = np.zeros(len(texts), bool)
    for rule in _RULES:
        kept = rule(rows, _DROPPING)
        is_dropped |= ~np.asarray(pc.fill_null(kept, True), bool)
    return is_dropped
