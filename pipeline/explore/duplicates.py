"""Finds groups of duplicate pairs: with equal files (sha256), similar pictures (equal phash) or equal captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.gallery import Card, cards
from pairmill.pipeline.explore.page import PageError
from pairmill.pipeline.explore.view import View

GROUPS_PER_PAGE = 10
SHOWN_ROWS = 12
BY = {"sha256": "equal files", "phash": "equal perceptual hashes", "caption_clean": "equal captions"}


@dataclass(frozen=True)
class Group:
    """Pairs with the same value."""

    value: str
    rows: int
    captions: int
    """Number of distinct captions."""
    cards: Sequence[Card]


@dataclass(frozen=True)
class Duplicates:
    """The content of the page."""

    by: str
    groups: Sequence[Group]
    num_groups: int
    num_rows: int
    """Number of rows in all groups."""
    extra_rows: int
    """Number of rows that a dedup would drop."""
    page: int
    pages: int
    choices: Sequence[tuple[str, str]]


def duplicates(explorer: Explorer, shown: Shown, by: str, page: str) -> Duplicates:
    """The largest groups of pairs, after dedup by uid. Raises PageError."""
    if by not in BY or by not in shown.view.snapshot.schema.names:
        raise PageError(f"by must be one of {', '.join(BY)}, and the dataset must have that column")
    if not (page.isascii() and page.isdigit() and 0 < len(page) < 7 and int(page)):
        raise PageError("page must be a page number")
    number = int(page)
    rows, starts = _groups(shown.view, by)
    sizes = np.diff(starts)
    largest = np.lexsort((rows[starts[:-1]], -sizes))
    found = []
    for group in largest[(number - 1) * GROUPS_PER_PAGE : number * GROUPS_PER_PAGE].tolist():
        members = rows[starts[group] : starts[group + 1]]
        some = shown.view.lookup.rows(members[:1], [by])[0]
        captions = shown.view.cache.table(["caption_clean"])["caption_clean"].take(pa.array(members))
        shown_cards = cards(explorer, shown, members[:SHOWN_ROWS].tolist())
        found.append(Group(str(some[by]), len(members), len(pc.unique(captions)), shown_cards))
    return Duplicates(by, found, len(sizes), len(rows), len(rows) - len(sizes), number,
                      max(1, -(-len(sizes) // GROUPS_PER_PAGE)), list(BY.items()))  # fmt: skip


def _groups(view: View, by: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(rows of all groups of two or more, group after group; the start of each group, then the end of the last)."""

    def compute() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        column = view.cache.table([by])[by]
        encoded = pc.dictionary_encode(column).combine_chunks()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        codes[~view.start("pairs", None)] = -1
        rows = np.flatnonzero(codes >= 0)
        rows = rows[np.argsort(codes[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(codes[rows], prepend=-2, append=-2))
        sizes = np.diff(edges)
        repeats = np.repeat(sizes > 1, sizes)
        return rows[repeats], np.concatenate([[0], np.cumsum(sizes[sizes > 1])]).astype(np.int64)

    return view.memory.remember(("groups", by), compute)
