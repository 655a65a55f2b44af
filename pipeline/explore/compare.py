"""Compares two subsets side by side: how many pairs are in only one of them, why, and what they look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.gallery import Card, cards
from pairmill.pipeline.select import subset_diff

SHOWN_ROWS = 12


@dataclass(frozen=True)
class Side:
    """One part of the comparison: the pairs in one subset only, or in both."""

    title: str
    count: int
    reasons: Mapping[str, int]
    """Reason why the other subset lacks these pairs -> number of rows."""
    cards: Sequence[Card]


@dataclass(frozen=True)
class Compared:
    """The content of the page."""

    one: str
    other: str
    sides: Sequence[Side]
    outdated: Sequence[str]
    """Names of the subsets that are outdated: one of their shards was rebuilt after they were selected."""


def compare(explorer: Explorer, shown: Shown, one: str, other: str) -> Compared:
    """Compare two subsets. Counts are exact even if only a sample is shown; pictures come from the shards shown. Raises
    SubsetError."""
    found = subset_diff.compare(explorer.store, one, other).as_dict()
    view = shown.view
    if found["outdated"]:
        masks = [np.zeros(view.num_rows, bool)] * 2
    else:
        masks = [view.start("kept", name) for name in (one, other)]
    parts = [
        (f"Only in {one}", found["only_in"].get(one, {}), masks[0] & ~masks[1]),
        ("In both", {}, masks[0] & masks[1]),
        (f"Only in {other}", found["only_in"].get(other, {}), masks[1] & ~masks[0]),
    ]
    sides = []
    for title, reasons, mask in parts:
        rows = view.random(mask, SHOWN_ROWS).tolist()
        count = found["both"] if title == "In both" else sum(reasons.values())
        reasons = dict(sorted(reasons.items(), key=lambda reason: -reason[1]))
        sides.append(Side(title, count, reasons, cards(explorer, shown, rows)))
    return Compared(one, other, sides, found["outdated"])
