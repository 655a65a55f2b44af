"""Defines the step `balance` and its report."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairmill.schemas.settings import Settings, Uri
from pairmill.schemas.share import Share

CONCEPT, HOST, HOST_OF_URL = "concept", "host", "host(url)"
"""Values of `by` that are not columns: list entries that captions contain, and the host of `url`. If there is a column
`host`, only HOST_OF_URL is unambiguous."""


DEFAULT_CAPTION, DEFAULT_REFERENCE = "caption_clean", "en"
_NAMED_LANGUAGES = 8
"""Languages whose t is named; further ones are counted."""


class Balance(Settings):
    """Thin out frequent entries: keep about t rows of each, where t is set by `curve`, and all rows of rare entries.

    An entry with c rows has the probability p = min(1, t / c), and a row is kept with the probability 1 - the product
    of 1 - p over its entries (MetaCLIP, https://arxiv.org/abs/2309.16671, algorithm 1). A hash of its uid decides.
    """

    by: Annotated[str, Field(min_length=1)]
    """`concept` (the entries of a list that the caption contains), `host` (the host of the URL), or a column whose
    values are the entries, such as a class, a language or a cluster. If a column is itself called `host`, write
    `host(url)` for the host of the URL and `col('host')` for the column; `col('concept')` is a column too."""
    curve: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Share
    """The t of the curve. `{fraction: 0.3}` or `{count: 1000000}`: the t that keeps about that many of the step's
    rows."""
    entries: Uri | None = None
    """For `by: concept`, the list: a UTF-8 text file (or .gz) with one entry per line, local or `s3://`."""
    caption: str = DEFAULT_CAPTION
    """For `by: concept`, the text column to search for entries. Entries match only as they are spelled."""
    language: str | None = None
    """For `by: concept`, a column of languages. Entries are counted separately in each language, and each language has
    its own t: the count below which the share of matches is the same as below t in `reference` (MetaCLIP 2,
    https://arxiv.org/abs/2507.22062)."""
    reference: str = DEFAULT_REFERENCE
    """With `language`, the language whose t is `curve`."""
    unmatched: Literal["drop", "keep"] | None = None
    """Whether to drop or keep rows without an entry. None: drop them with `by: concept`, as in MetaCLIP; otherwise keep
    them, because their column is null."""
    seed: int = 0
    """Seed of the draw. A row that is kept for one t is also kept for every higher one."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.by == CONCEPT) != (self.entries is not None):
            raise ValueError(
                "by: concept needs entries, a file with one entry per line; with any other by, leave entries out; a "
                "column of this name is col('concept')"
            )
        if self.by != CONCEPT and (self.language is not None or self.caption != DEFAULT_CAPTION):
            raise ValueError("caption and language work only with by: concept")
        if self.language is None and self.reference != DEFAULT_REFERENCE:
            raise ValueError("reference works only with language; add language: COLUMN")
        if self.language is not None and isinstance(self.curve, Share):
            raise ValueError("with language, curve must be a number")
        return self

    @property
    def keeps_unmatched(self) -> bool:
        """Whether rows without an entry are kept."""
        return self.unmatched == "keep" if self.unmatched else self.by != CONCEPT


class EntryRows(Settings):
    """The number of rows of one entry, before and after the step."""

    entry: str
    language: str | None = None
    rows: int
    """Rows with this entry before the step."""
    kept: int
    """Rows with this entry that were kept, for this or another entry."""


class BalanceReport(Settings):
    """The result of a step `balance`."""

    entries: int
    """Number of distinct entries in the rows. With `language`, an entry counts once per language."""
    head_entries: int
    """Entries with more rows than t."""
    matches: int
    """Number of matches, which are combinations of a row and one of its entries."""
    tail_matches: int
    """Matches whose entry has at most t rows. All of these rows are kept."""
    unmatched_rows: int
    """Rows without an entry."""
    keeps_unmatched: bool
    """Whether rows without an entry were kept."""
    curve: float
    """The t that was used. With `language`, the t of the reference language."""
    curves: dict[str, float] = {}
    """With `language`, the t of each language."""
    head: list[EntryRows]
    """The entries with the most rows, in descending order."""
    listed_entries: int | None = None
    """Number of entries in the file."""
    blake2b: str | None = None
    """BLAKE2b-128 of the file of entries."""
    earlier_blake2b: str | None = None
    """The `blake2b` of the previous selection of this subset, if it was different."""

    @property
    def threshold_text(self) -> str:
        """The t that was used, in words; with `language`, the t of each language, highest first."""
        if not self.curves:
            return f"t = {self.curve:,.6g}"
        languages = sorted(self.curves, key=lambda each: (-self.curves[each], each))
        named = [f"{each} {self.curves[each]:,.6g}" for each in languages[:_NAMED_LANGUAGES]]
        more = [f"{len(languages) - len(named):,} more"] if len(languages) > len(named) else []
        return f"t of their language ({', '.join(named + more)})"
