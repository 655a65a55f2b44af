"""Chooses a sample of whole shards, for pages that cannot show every row."""

import hashlib
from collections.abc import Iterable
from itertools import accumulate


def sample_shards(sizes: Iterable[tuple[int, int]], max_rows: int) -> list[int]:
    """Positions of the chosen shards, in order: as many as have at most `max_rows` rows together, and at least one.

    The shards whose numbers have the lowest hashes come first, so the choice does not depend on the order of the input,
    and new shards of a growing dataset replace few others. Shards without rows are not chosen.

    Args:
        sizes: (number of the shard, its rows), all numbers different.
        max_rows: Rows of all chosen shards together. A single shard may have more.
    """
    ordered = sorted((_hash(shard), rows, position) for position, (shard, rows) in enumerate(sizes) if rows)
    together = accumulate(rows for _, rows, _ in ordered)
    fitting = sum(rows <= max_rows for rows in together)
    return sorted(position for _, _, position in ordered[: max(fitting, 1)])


def _hash(shard: int) -> bytes:
    return hashlib.blake2b(b"%d" % shard, digest_size=8).digest()
