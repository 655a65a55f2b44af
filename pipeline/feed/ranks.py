"""Checks that no rank of torch.distributed would wait for the others forever."""

from pairmill.pipeline.feed.config import FeedConfig, FeedError
from pairmill.pipeline.feed.epoch_order import Batches


def check_ranks(config: FeedConfig, batches: Batches, num_rows: int, has_weights: bool) -> None:
    """Raise FeedError if ranks of torch.distributed would get different numbers of batches, because ranks with more
    batches would wait forever for the others.

    `num_rows`: rows in the epoch. `has_weights`: whether epochs have different numbers of rows.
    """
    if config.even or config.allow_uneven or config.world_size == 1 or not is_distributed():
        return
    if has_weights:
        raise FeedError(
            "epochs of a weighted subset have different numbers of rows, so in some epochs, ranks would have different "
            "numbers of batches and wait for each other forever: set even=True"
        )
    least, most = num_rows // config.world_size, -(-num_rows // config.world_size)
    if (fewest := batches.count(least)) != (highest := batches.count(most)):
        unit = "rows" if config.batch_size is None else "batches"
        raise FeedError(
            f"ranks would have {fewest:,} or {highest:,} {unit}, and those with more would wait for the others "
            "forever: set even=True (for an evaluation without collective calls: allow_uneven=True)"
        )


def is_distributed() -> bool:
    """Whether torch.distributed runs with several ranks."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
