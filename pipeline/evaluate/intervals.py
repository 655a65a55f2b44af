"""Computes confidence intervals of shares, and the binomial test."""

import math
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


class Interval(NamedTuple):
    """The ends of a confidence interval, 95 % unless stated otherwise."""

    low: float
    high: float


def wilson(hits: int, total: int) -> Interval:
    """The 95 % score interval of a share of independent trials (E. B. Wilson, JASA 22, 1927). (0, 1) without trials.

    It lies inside [0, 1] and makes sense at 0 and at 100 %; its actual coverage is close to 95 % even for a few trials
    (Brown, Cai and DasGupta, Statistical Science 16, 2001).
    """
    if not total:
        return Interval(0.0, 1.0)
    share, square = hits / total, _Z * _Z
    center = share + square / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    scale = 1 + square / total
    low = 0.0 if hits == 0 else (center - half) / scale
    return Interval(low, 1.0 if hits == total else (center + half) / scale)


def percent(hits: int, total: int) -> str:
    """`83.0 % (79.5 to 86.1)`: a share with its interval."""
    if not total:
        return "none"
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def binomial_tail(hits: int, total: int, share: float) -> float:
    """The probability of at least `hits` successes in `total` trials with success probability `share`: the p-value of
    a one-tailed binomial test."""
    if hits <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    counts = np.arange(1, total + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((total - counts + 1) / counts))])  # log of total choose k
    successes = np.arange(total + 1)
    logs = ways + successes * math.log(share) + (total - successes) * math.log1p(-share)
    return min(1.0, float(np.exp(logs[hits:]).sum()))


def clopper_pearson(hits: int, total: int, confidence: float) -> Interval:
    """The exact interval of a share (Clopper and Pearson, Biometrika 26, 1934), by bisection. (0, 1) without trials."""
    if not total:
        return Interval(0.0, 1.0)
    tail = (1 - confidence) / 2
    low = 0.0 if not hits else _share_with_tail(hits, total, tail)
    return Interval(low, 1.0 if hits == total else 1 - _share_with_tail(total - hits, total, tail))


def _share_with_tail(hits: int, total: int, tail: float) -> float:
    """The share for which at least `hits` successes have the probability `tail`, which grows with the share."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(hits, total, middle) < tail else (low, middle)
    return (low + high) / 2
