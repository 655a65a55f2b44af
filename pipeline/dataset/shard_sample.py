"""Chooses a sample of whole shards, for pages that cannot show every row."""

import hashlib
from collections.abc import Iterable
from itertools import accumulate


def sample_shards(sizes: Iterable[tuple[int, int]], max_rows: int) -> list[int]:
    """Positions of the chosen shards in `sizes`, in order. Chooses at least one shard.

    The shards whose numbers have the lowest hashes are chosen, so the choice does not depend on the order of the input,
    and new shards of a growing dataset replace only a few chosen ones. Shards without rows are not chosen.

    Args:
        sizes: (shard number, number of rows) of each shard. All shard numbers must differ.
        max_rows: Maximum number of rows in all chosen shards together. A single chosen shard may have more.
    """
    ordered = sorted((_hash(shard), rows, position) for position, (shard, rows) in enumerate(sizes) if rows)
    together = accumulate(rows for _, rows, _ in ordered)
    fitting = sum(rows <= max_rows for rows in together)
    return sorted(position for _, _, position in ordered[: max(fitting, 1)])


def _hash(shard: int) -> bytes:
    return hashlib.blake2b(b"%d" % shard, digest_size=8).digest()
