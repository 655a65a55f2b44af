"""Defines the step `balance`, and what it reports."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairmill.schemas.settings import Settings, Uri
from pairmill.schemas.share import Share

CONCEPT, HOST = "concept", "host"
"""What `by` means beside columns: entries of a list that captions contain, and the host of `url`."""


DEFAULT_CAPTION, DEFAULT_REFERENCE = "caption_clean", "en"


class Balance(Settings):
    """Thin out what is frequent: of each entry, about as many rows stay as the curve says, and all rows of rare ones.

    An entry with c rows has the probability p = min(1, t / c), and a row stays with the probability 1 - the product of
    1 - p over its entries (MetaCLIP, https://arxiv.org/abs/2309.16671, algorithm 1), by a hash of its uid.
    """

    by: Annotated[str, Field(min_length=1)]
    """`concept` (entries of a list that are in the caption), `host` (of the URL), or a column whose values are the
    entries, such as a class, a language or a cluster."""
    curve: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Share
    """The t of the curve. `{fraction: 0.3}` or `{count: 1000000}`: the t that keeps about so many of the step's
    rows."""
    entries: Uri | None = None
    """For `by: concept`, the list: a text file (or .gz) in UTF-8 with an entry per line, local or `s3://`."""
    caption: str = DEFAULT_CAPTION
    """For `by: concept`, the column of text in which entries are looked for, as they are spelled."""
    language: str | None = None
    """For `by: concept`, a column of languages. Entries are counted in each language by itself, and each has its own t:
    the count with as large a share of the matches below it as t has in `reference` (MetaCLIP 2,
    https://arxiv.org/abs/2507.22062)."""
    reference: str = DEFAULT_REFERENCE
    """With `language`, the language that `curve` is the t of."""
    unmatched: Literal["drop", "keep"] | None = None
    """What happens to rows without an entry. None: for `by: concept` they are dropped, as in MetaCLIP; for a column,
    where they are those with null, they are kept."""
    seed: int = 0
    """Seed of the draw. A row that stays for one t also stays for each higher one."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.by == CONCEPT) != (self.entries is not None):
            raise ValueError("by: concept needs entries, a file with an entry per line, and nothing else takes them")
        if self.by != CONCEPT and (self.language is not None or self.caption != DEFAULT_CAPTION):
            raise ValueError("caption and language work only with by: concept")
        if self.language is None and self.reference != DEFAULT_REFERENCE:
            raise ValueError("reference is one of the values of a language; add language: COLUMN")
        if self.language is not None and isinstance(self.curve, Share):
            raise ValueError("with a language, give curve as a number")
        return self

    @property
    def keeps_unmatched(self) -> bool:
        """Whether rows without an entry stay."""
        return self.unmatched == "keep" if self.unmatched else self.by != CONCEPT


class EntryRows(Settings):
    """The rows of one entry."""

    entry: str
    language: str | None = None
    rows: int
    """Rows with this entry before the step."""
    kept: int
    """Those that stayed, for this or another entry."""


class BalanceReport(Settings):
    """What a step `balance` found."""

    entries: int
    """Number of different entries in the rows. With a language, an entry counts once in each."""
    head_entries: int
    """Those with more rows than t."""
    matches: int
    """Pairs of a row and one of its entries."""
    tail_matches: int
    """Those whose entry is not among the head: these rows all stay."""
    unmatched_rows: int
    """Rows without an entry."""
    keeps_unmatched: bool
    """Whether they stayed."""
    curve: float
    """The t that was used."""
    curves: dict[str, float] = {}
    """With a language, the t of each."""
    head: list[EntryRows]
    """The entries with the most rows, most first."""
    listed_entries: int | None = None
    """Number of entries in the file."""
    blake2b: str | None = None
    """BLAKE2b-128 of the file of entries."""
    earlier_blake2b: str | None = None
    """That of the file when the subset was selected before, if it was another one."""
