"""Defines the caption rules that count characters and words, search for terms, detect languages, or read the license.

Rules see whole captions: `encode/truncate_caption.py` is THE place where captions are truncated, only for the models.
"""

import functools
import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.rules.base import SourceRules, Verdict, rule
from pairmill.pipeline.rules.language import detect_languages
from pairmill.pipeline.source.files import decode_lossy
from pairmill.schemas.status import Status

_TERMS_PER_REGEX = 1_000
"""Measured on 4,096 captions of 10 words and 5,000 terms: 221 ms as one regex, 43 ms as five, 58 ms as ten."""

# A term is a whole word if no letter, mark, digit or underscore is next to it. In scripts without spaces between words,
# word boundaries cannot be detected, so a term matches anywhere.
_BEFORE, _AFTER = r"(?:^|[^\pL\pM\pN_])", r"(?:$|[^\pL\pM\pN_])"
UNSPACED_SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


@rule(Status.CAPTION_MISSING)
def caption_missing(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The caption is null or has no visible character."""
    if not rules.require_caption:
        return None
    return pc.greater(pc.utf8_length(rows["caption_clean"]), 0)


@rule(Status.CAPTION_TOO_SHORT)
def caption_too_short(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Fewer Unicode characters than `caption_min_chars`; a null caption has none."""
    if rules.caption_min_chars is None:
        return None
    return _between(pc.utf8_length(rows["caption_clean"]), rules.caption_min_chars, None)


@rule(Status.CAPTION_TOO_LONG)
def caption_too_long(rows: pa.Table, rules: SourceRules) -> Verdict:
    """More Unicode characters than `caption_max_chars`."""
    if rules.caption_max_chars is None:
        return None
    return _between(pc.utf8_length(rows["caption_clean"]), None, rules.caption_max_chars)


@rule(Status.CAPTION_TOO_FEW_WORDS)
def caption_too_few_words(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Fewer words, separated by spaces, than `caption_min_words`."""
    if rules.caption_min_words is None:
        return None
    return _between(_count_words(rows), rules.caption_min_words, None)


@rule(Status.CAPTION_TOO_MANY_WORDS)
def caption_too_many_words(rows: pa.Table, rules: SourceRules) -> Verdict:
    """More words, separated by spaces, than `caption_max_words`."""
    if rules.caption_max_words is None:
        return None
    return _between(_count_words(rows), None, rules.caption_max_words)


@rule(Status.CAPTION_BLOCKED_TERM)
def caption_blocked_term(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Contains one of `caption_blocked_terms` as whole words, ignoring case. Detail: the term as the caption spells
    it."""
    if not rules.caption_blocked_terms:
        return None
    captions = rows["caption_clean"].combine_chunks()
    terms = pa.nulls(len(captions), pa.string())
    for pattern in blocked_term_patterns(tuple(rules.caption_blocked_terms)):
        found = pc.match_substring_regex(captions, pattern).fill_null(False)
        if found.true_count:  # matching alone is several times as fast as capturing
            captured = pc.struct_field(pc.extract_regex(captions.filter(found), pattern), "term")
            terms = pc.replace_with_mask(terms, found, captured)
    return pc.is_null(terms), terms


@rule(Status.CAPTION_LANGUAGE)
def caption_language(rows: pa.Table, rules: SourceRules) -> Verdict:
    """Not in one of `caption_languages`, or detected with a score below `caption_min_language_score`. Detail: "de
    0.93"."""
    if not rules.caption_languages:
        return None
    languages, scores = detect_languages(rows["caption_clean"])
    is_listed = pc.is_in(languages, pa.array([code.lower() for code in rules.caption_languages], pa.string()))
    keep = pc.and_(is_listed, pc.greater_equal(scores, rules.caption_min_language_score))
    detail = pc.binary_join_element_wise(languages, pc.cast(pc.round(scores, 2), pa.string()), " ")
    return keep, detail


@rule(Status.LICENSE_NOT_ALLOWED)
def license_not_allowed(rows: pa.Table, rules: SourceRules) -> Verdict:
    """The license is null or not in `license_allow`, ignoring case and outer white space. Detail: the license."""
    if not rules.license_allow:
        return None
    name = rules.license_column
    if name is None:
        raise ValueError("rules.license_allow needs a license column: set source.license_column")
    licenses = decode_lossy(rows[name].combine_chunks())
    allowed = pa.array([_plain_license(value) for value in rules.license_allow], pa.string())
    return pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(licenses)), allowed), licenses


def _plain_license(value: str) -> str:
    return str(pc.utf8_lower(value.strip()).as_py())


def _between(counts: pa.ChunkedArray, minimum: int | None, maximum: int | None) -> Verdict:
    """Keep rows whose count is within bounds; the count of a null caption is 0. Detail: the count."""
    counts = pc.fill_null(counts, 0)
    keep = pc.greater_equal(counts, minimum) if minimum is not None else pc.less_equal(counts, maximum)
    return keep, pc.cast(counts, pa.string())


def _count_words(rows: pa.Table) -> pa.ChunkedArray:
    return pc.count_substring_regex(rows["caption_clean"], r"[^ ]+")  # clean captions have no other white space


@functools.lru_cache(maxsize=8)
def blocked_term_patterns(terms: tuple[str, ...]) -> tuple[str, ...]:
    """RE2 patterns, each with a group `term`, that together find any of the terms as whole words.

    Raises ValueError for an empty term.
    """
    by_edges: dict[tuple[str, str], list[str]] = {}
    for term in terms:
        clean = " ".join(unicodedata.normalize("NFC", term).split())
        if not clean:
            raise ValueError("a term is empty")
        edges = ("" if _starts_unspaced(clean) else _BEFORE, "" if _starts_unspaced(clean[::-1]) else _AFTER)
        by_edges.setdefault(edges, []).append(re.escape(clean))
    return tuple(
        f"(?i){before}(?P<term>{'|'.join(escaped[i : i + _TERMS_PER_REGEX])}){after}"
        for (before, after), escaped in by_edges.items()
        for i in range(0, len(escaped), _TERMS_PER_REGEX)
    )


def _starts_unspaced(term: str) -> bool:
    return bool(pc.match_substring_regex(pa.scalar(term), f"^{UNSPACED_SCRIPTS}").as_py())
