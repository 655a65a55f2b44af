"""A small dataset for tests of PairDataset, with two subsets."""

from pathlib import Path
from typing import Any

from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from tests.synthetic_dataset import write_dataset
from tests.unit.select.conftest import make_subset

ROWS = 113


def write_fed(folder: Path) -> Path:
    """300 rows in 8 shards; 113 of them are in the subset `some`, 128 in `many`."""
    write_dataset(folder, 300, shard_rows=40)
    make_subset(folder, "some", {"top": {"by": "similarity", "count": ROWS}})
    make_subset(folder, "many", {"top": {"by": "similarity", "count": 128}})
    return folder


def feed(folder: Path, **more: Any) -> PairDataset:
    return PairDataset(FeedConfig(str(folder), **{"subset": "some", "columns": ("row_id",), "batch_size": 8, **more}))


def rows_in(batches: Any) -> list[str]:
    return [row for batch in batches for row in batch["row_id"]]
