"""Lists the ways in which an overlap can be found, in order of precedence."""

from typing import NamedTuple

from pairmill.pipeline.leak.variants import VARIANTS
from pairmill.schemas.leak import LeakKind, Variant


class Way(NamedTuple):
    """The kind of value compared, and the variant of the evaluation picture."""

    by: LeakKind
    variant: Variant


_HASHES: tuple[LeakKind, ...] = ("phash", "pdq")

WAYS = (
    Way("sha256", "same"),
    *(Way(by, variant) for variant in VARIANTS for by in _HASHES),
    Way("embedding", "same"),
)
"""A row counts for the first way that finds it. Entries and matches store the index of a way."""


def way_number(by: LeakKind, variant: int = 0) -> int:
    """The index in WAYS. `variant`: index in VARIANTS."""
    return WAYS.index(Way(by, VARIANTS[variant]))
