"""Computes the byte-pair encoding of a word (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) in n log n steps.
The result is the same as open_clip's, but open_clip takes n² steps: seconds for a caption with one long word.
"""

import heapq
from collections.abc import Mapping

MAX_CACHED_CHARS = 64
"""Maximum length of words for which open_clip's own merging is faster, because it caches the results."""

_END = "</w>"

Pair = tuple[str, str]


def merged(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """The tokens of a non-empty word. `ranks`: pair of tokens -> its position in the list of merges.

    In each round, all pairs with the lowest rank are merged, from left to right.
    """
    parts: list[str | None] = [*word[:-1], word[-1] + _END]
    after = [*range(1, len(parts)), -1]
    before = [*range(-1, len(parts) - 1)]
    waiting: list[tuple[int, int, Pair]] = []

    def consider(left: int) -> None:
        if left < 0 or (right := after[left]) < 0:
            return
        one, other = parts[left], parts[right]
        assert one is not None and other is not None
        if (rank := ranks.get((one, other))) is not None:
            heapq.heappush(waiting, (rank, left, (one, other)))

    for left in range(len(parts) - 1):
        consider(left)
    while waiting:
        rank, changed = waiting[0][0], []
        while waiting and waiting[0][0] == rank:
            _, left, pair = heapq.heappop(waiting)
            right = after[left]
            if right < 0 or (parts[left], parts[right]) != pair:  # one of the two tokens has since been merged
                continue
            parts[left], parts[right] = "".join(pair), None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            changed.append(left)
        for left in changed:  # only now, because these pairs belong to later rounds, whatever their ranks
            if parts[left] is not None:
                consider(left)
                consider(before[left])
    return [part for part in parts if part is not None]
