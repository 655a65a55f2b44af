"""Writes a finished dataset of any size, with small photographs that repeat (see `tests/picture_dataset.py`).

    python -m bench.million_rows /tmp/million --rows 1000000 --pictures ../shared/data/pairs

Running it again with more rows adds shards. `pairmill verify --rescore 0` accepts the dataset. One million rows take
about 6.5 GB and 1.5 minutes.
"""

import argparse
import time
from pathlib import Path

from tests.picture_dataset import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=Path, help="a folder of JPEGs (default: generated drawings)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    write(options.folder, options.rows, options.pictures, options.seed)
    print(f"{options.rows:,} rows written in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
