"""Defines the settings of a PairDataset, and the contents of its checkpoints."""

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from pairmill.schemas.errors import PairmillError
from pairmill.schemas.s3 import FROM_ENVIRONMENT, S3Config

IMAGE = "image"
"""The column name for the picture itself, which is not a column in the files."""


class FeedError(PairmillError, ValueError):
    """The dataset cannot be read as requested, or a checkpoint belongs to another run; the message says why."""


class FeedState(TypedDict):
    """A checkpoint of one consumer. All keys except the first three must match the consumer that loads it."""

    epoch: int
    rows_done: int
    is_over: NotRequired[bool]
    """Whether a loop had just ended after all rows. Missing in checkpoints from before 0.2."""
    consumer: int
    consumers: int
    choice: str
    """Fingerprint of the selected rows and their order. The key's name dates from before the term "subset"."""
    rows: int
    seed: int
    shuffle: bool
    mix_shards: int
    even: bool
    batch_size: NotRequired[int | None]
    """Missing in checkpoints from before 0.2, when a rank's rows were divided among its workers differently."""
    drop_last: NotRequired[bool]
    captions: NotRequired[list[str]]
    """The columns of captions written by models from which each caption is chosen. Another score with captions, added
    after the checkpoint, would change what `best` chooses."""
    added: NotRequired[dict[str, str]]
    """The added models and scores that the samples are made from -> their fingerprints; in a mixture, each name follows
    that of its dataset. One that was deleted and added again can have other values."""


@dataclass(frozen=True)
class FeedConfig:
    """Which rows and columns a PairDataset yields, and in which order."""

    dataset: str | os.PathLike[str]
    """Output folder of a build or embed job, or folder of a mixture; local or s3://."""
    subset: str | None = None
    """Name of a subset. None: all kept rows, or the rows of the mixture."""
    columns: str | Iterable[str] = (IMAGE, "caption_clean")
    """`image`, and columns of `pairs/` and `columns/`; `uid` is always added. Without `image`, no pictures are read."""
    shuffle: bool = True
    seed: int = 0
    mix_shards: int = 4
    """Number of consecutive shards whose rows are shuffled together; in a mixture, the number for each dataset. The
    columns of these shards and of the next ones are in memory, but not the pictures."""
    batch_size: int | None = None
    """Rows per batch. None: one row per item."""
    drop_last: bool = False
    """With `batch_size`: leave out the rank's last batch if it is short."""
    even: bool = False
    """Give every rank the same number of rows; leave the remainder out of the epoch."""
    allow_uneven: bool = False
    """Allow ranks of torch.distributed to have different numbers of batches, for evaluation or with torch's Join."""
    tensor_transforms: bool = True
    """If `transform` is torchvision's, resize, crop and flip 8-bit tensors instead of PIL images, which is four times
    as fast. 1 to 2% of the values differ, nearly always by a single level of 255."""
    threads: int = 4
    """Number of threads per worker that read and decode pictures ahead."""
    rank: int | None = None
    world_size: int | None = None
    """The rows are divided among `world_size` processes, of which this is number `rank`, counted from 0. Set both or
    neither: None means all rows, and is an error if torch.distributed runs with several ranks."""
    s3: S3Config = FROM_ENVIRONMENT
    """Access to the dataset's bucket if the environment does not configure it."""
    caption: str = "original"
    """The captions in `caption` and `caption_clean`: `original`; the name of a score with captions written by a model;
    or `best`, the caption with the highest similarity."""

    def __post_init__(self) -> None:
        columns = (self.columns,) if isinstance(self.columns, str) else tuple(self.columns)
        object.__setattr__(self, "columns", columns)  # a generator could be read only once
        optional = ("batch_size", "rank", "world_size")
        for name in ("seed", "mix_shards", "threads", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            try:  # NumPy's integers overflow, and cannot be saved in a checkpoint
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise FeedError(f"{name} must be an integer, not {value!r}") from None
