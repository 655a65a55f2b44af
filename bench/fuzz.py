"""Feeds mutated pictures to the decoder, which must not crash or hang, and must give each picture a Status.

    python -m bench.fuzz --decodes 100000 --folder ../shared/data/awkward

Decodes in child processes, so that crashes can be counted. Pictures for which decoding raises an exception are kept in
`bench-out/fuzz`. The seeds are synthetic pictures in every format and, with `--folder`, real ones too.
"""

import argparse
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.mutated_pictures import decode_mutations, seeds_from

CHUNK = 500
OUT = Path("bench-out/fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seeds = seeds_from(arguments.folder)
    total: Counter[str] = Counter()
    slowest, crashes, started = 0.0, 0, time.perf_counter()
    pool: ProcessPoolExecutor | None = None
    for number in range(arguments.seed, arguments.seed + -(-arguments.decodes // CHUNK)):
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            found, longest = pool.submit(decode_mutations, seeds, number, CHUNK, OUT).result()
        except BrokenProcessPool:  # the pool is lost too
            crashes, pool = crashes + 1, None
            print(f"crash in chunk {number}: python -m bench.fuzz --decodes {CHUNK} --seed {number}")
            continue
        total.update(found)
        slowest = max(slowest, longest)
    for name, count in total.most_common():
        print(f"{count:>9,}  {name}")
    exceptions = sum(count for name, count in total.items() if name.startswith("exception"))
    print(
        f"{total.total():,} decodes of {len(seeds)} seeds in {time.perf_counter() - started:.0f} s: "
        f"{crashes} crashes, {exceptions} exceptions, slowest {slowest:.2f} s"
    )


if __name__ == "__main__":
    main()
