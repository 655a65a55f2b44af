"""Checks that each rank of torch.distributed gets a share of its own, and that none would wait forever."""

import json
import os
from collections import Counter
from typing import NamedTuple

from pairmill.pipeline.feed.config import FeedConfig, FeedError, FeedState
from pairmill.pipeline.feed.epoch_order import Batches

_times_opened = Counter[str]()
"""How often each rank of this process has opened the same rows and columns."""


class Rank(NamedTuple):
    """One of the processes that divide the rows among themselves."""

    number: int
    total: int


def rank_of(config: FeedConfig) -> Rank:
    """The rank that the config gives. Raises FeedError if it gives none although torch.distributed has several, because
    every rank would get all rows. This is not decided here: Accelerate, for one, wants all rows and divides batches."""
    if config.rank is None and config.world_size is None:
        if is_distributed():
            raise FeedError(
                "torch.distributed runs with several ranks: in FeedConfig, set rank=torch.distributed.get_rank() and "
                "world_size=torch.distributed.get_world_size() for a share of the rows per rank, or rank=0 and "
                "world_size=1 for all rows in every rank (for Accelerate, which divides the batches itself)"
            )
        return Rank(0, 1)
    if config.rank is None or config.world_size is None:
        raise FeedError("set both rank and world_size, or neither for all rows")
    if not 0 <= config.rank < config.world_size:
        raise FeedError(f"rank {config.rank} does not exist in a world of {config.world_size}")
    return Rank(config.rank, config.world_size)


def check_ranks(config: FeedConfig, batches: Batches, num_rows: int, has_weights: bool) -> None:
    """Raise FeedError if ranks of torch.distributed would get different numbers of batches, because ranks with more
    batches would wait forever for the others.

    `num_rows`: rows in the epoch. `has_weights`: whether epochs have different numbers of rows.
    """
    rank = rank_of(config)
    if config.even or config.allow_uneven or rank.total == 1 or not is_distributed():
        return
    if has_weights:
        raise FeedError(
            "epochs of a weighted subset have different numbers of rows, so in some epochs, ranks would have different "
            "numbers of batches and wait for each other forever: set even=True"
        )
    least, most = num_rows // rank.total, -(-num_rows // rank.total)
    if (fewest := batches.count(least)) != (highest := batches.count(most)):
        unit = "rows" if config.batch_size is None else "batches"
        raise FeedError(
            f"ranks would have {fewest:,} or {highest:,} {unit}, and those with more would wait for the others "
            "forever: set even=True (for an evaluation without collective calls: allow_uneven=True)"
        )


def check_same_values(config: FeedConfig, state: FeedState) -> None:
    """Raise FeedError if another rank of torch.distributed reads the same rows with other captions or other values,
    because a model or score was added or replaced after it had started.

    The first rank stores what it reads, so no rank waits for another. Ranks compare their first opening, their second
    and so on, because all ranks may open the dataset again after a score was replaced.
    """
    rank, values = rank_of(config), {name: state[name] for name in ("captions", "added")}
    if rank.total == 1 or not any(values.values()) or not is_distributed():
        return
    from torch.distributed.distributed_c10d import _get_default_store

    rows = [os.fspath(config.dataset), config.subset, state["choice"], config.caption, sorted(config.columns)]
    of_rank = json.dumps([rank.number, *rows])
    _times_opened[of_rank] += 1
    key = json.dumps([_times_opened[of_rank], *rows])
    mine = json.dumps(values, sort_keys=True)
    theirs = _get_default_store().compare_set(f"pairmill {key}", "", mine).decode()
    if theirs != mine:
        raise FeedError(
            f"a rank that started earlier reads other captions or scores ({theirs}) than this one ({mine}): they were "
            "added or replaced in the meantime; start all ranks again"
        )


def is_distributed() -> bool:
    """Whether torch.distributed runs with several ranks."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
