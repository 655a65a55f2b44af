"""Writes a dataset of generated metadata, for benchmarks of `select` and `PairDataset`.

python -m bench.metadata OUT --rows 10000000 --seed 1
"""

import argparse
from pathlib import Path

from tests.synthetic_dataset import write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_dataset(options.out, options.rows, options.seed)


if __name__ == "__main__":
    main()
