"""Drops near duplicates by a perceptual hash. The result is exactly that of comparing all pairs, without doing so.

    find the best row of each hash      near_hashes.py   in partitions of the hash
    sort these rows, best first         near_hashes.py   into arrays that all tasks share
    find pairs within the distance      near_join.py     in tasks of a few keys each (hash_keys.py)
    decide which rows stay              near_greedy.py   with further rounds for undecided rows

The process that runs this module receives only counts and the sample from which the keys are chosen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pairmill.pipeline.select.filters import RowIndices
from pairmill.pipeline.select.hash_keys import U64, choose_keys, every_pair
from pairmill.pipeline.select.near_compare import Pairs
from pairmill.pipeline.select.near_greedy import conclude, decide, drop_near_new
from pairmill.pipeline.select.near_hashes import HashKeys, in_order, merge_equal
from pairmill.pipeline.select.near_join import (
    KEPT,
    LATER,
    MAX_ROWS,
    NEW,
    Question,
    States,
    merge_pairs,
    near_pairs,
)
from pairmill.pipeline.select.outputs import Array
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.tasks import Handle, Tasks
from pairmill.schemas.select_steps import Dedup

PARTITION_ROWS = 1_000_000
TASK_ROWS = 20_000_000
"""Approximate number of rows that a task compares at a time, at 50 bytes each."""
KEY_TASKS = 16
"""Approximate number of tasks among which the keys of a round are divided."""
FIRST_MOST = 4
"""Number of better rows to find for each row in the first round."""
FIRST_ROWS = 2_048
"""The second round settles about twice this many of the best undecided rows, the third about four times as many, and so
on."""
MAX_ALL_PAIRS = 8_192
"""A round that settles no more rows than about this compares all pairs."""
MAX_PAIRS = 1 << 22
"""Approximate maximum number of pairs to find in a round that settles more than MAX_ALL_PAIRS rows."""

Handles = Sequence[Handle[Array]]


def drop_near_duplicates(selector: Selector, number: int, step: Dedup) -> Array:
    """Find near duplicates and let the next scan drop them. Return the largest groups (DUPLICATE_GROUP)."""
    tasks, starts = selector.tasks, selector.chunk_starts
    best, groups, dropped = _equal_hashes(selector, step)
    [(sample, count, row_index, states, words)] = tasks.map_split(in_order, [best], outputs=5)
    del best
    [sampled, num_rows] = tasks.get([sample, count])
    keys = tuple(choose_keys(step.distance, sampled, num_rows))
    join = _Join(tasks, num_rows, words)
    question, first = Question(keys, step.distance, FIRST_MOST), MAX_ROWS
    rounds: list[Handle[Pairs]] = []
    undecided, later = num_rows, 0
    while undecided:
        pairs = join.pairs(question, states, undecided)
        [(states, _)] = tasks.map_split(decide, [(question.most, first, states, pairs)], outputs=2)
        rounds.append(pairs)
        near_new = join.pairs(Question(keys, step.distance, 1, offer=(NEW,)), states, undecided)
        [(states, *counts)] = tasks.map_split(drop_near_new, [(states, near_new)], outputs=3)
        [undecided, later] = tasks.get(counts)
        first = FIRST_ROWS << len(rounds)
        some = keys if first > MAX_ALL_PAIRS else (every_pair(step.distance),)
        most = max(FIRST_MOST, MAX_PAIRS // first) if first > MAX_ALL_PAIRS else first
        question = Question(some, step.distance, most, first=first)
    if later:
        last = Question(keys, step.distance, 1, LATER, (KEPT,))
        rounds.append(join.pairs(last, states, later))
    call = (starts, len(rounds), states, row_index, *rounds, *groups)
    [(clusters, *near)] = tasks.map_split(conclude, [call], outputs=1 + len(starts))
    selector.drop(number, [[*equal, rows] for equal, rows in zip(dropped, near, strict=True)])
    [found] = tasks.get([clusters])
    return np.asarray(found)


@dataclass(frozen=True)
class _Join:
    """Answers a `Question` in tasks, each of which covers some of the keys and some of the rows."""

    tasks: Tasks
    num_rows: int
    words: Handle[U64]

    def pairs(self, question: Question, states: Handle[States], asked: int) -> Handle[Pairs]:
        """The answer to a question about at most `asked` rows."""
        asked = min(asked, question.first)
        parts = math.ceil(min(self.num_rows, 8 * asked) / TASK_ROWS)
        each = math.ceil(len(question.keys) / KEY_TASKS)
        groups = [question.keys[at : at + each] for at in range(0, len(question.keys), each)]
        questions = [replace(question, keys=keys, part=part, parts=parts) for keys in groups for part in range(parts)]
        at_once = max(
            4, self.tasks.memory_bytes // (8 * asked * question.most // parts + 1)
        )  # as many as fit into memory if every row finds `most` pairs
        found: list[Handle[Pairs]] = []
        for start in range(0, len(questions), at_once):
            calls = [(some, states, self.words) for some in questions[start : start + at_once]]
            merging = (question.most, *found, *self.tasks.map(near_pairs, calls))
            [(merged, count)] = self.tasks.map_split(merge_pairs, [merging], outputs=2)
            list(self.tasks.get([count]))  # wait for the pairs
            found = [merged]
        return found[0]


def _equal_hashes(
    selector: Selector, step: Dedup
) -> tuple[Handles, Handles, list[list[Handle[RowIndices] | RowIndices]]]:
    """(the best row of each hash, the DUPLICATE_GROUPs of equal hashes, and for each chunk the other rows to drop)."""
    best: list[Handle[Array]] = []
    groups: list[Handle[Array]] = []
    dropped: list[list[Handle[RowIndices] | RowIndices]] = [[] for _ in selector.chunks]
    for keys in _partitions(selector, step):
        parts = selector.scan(keys)
        calls = [(selector.chunk_starts, *(part[index] for part in parts)) for index in range(len(keys.dtypes))]
        for some, group, *rows in selector.tasks.map_split(merge_equal, calls, outputs=2 + len(selector.chunks)):
            best.append(some)
            groups.append(group)
            for of_chunk, each in zip(dropped, rows, strict=True):
                of_chunk.append(each)
    return best, groups, dropped


def _partitions(selector: Selector, step: Dedup) -> Iterator[HashKeys]:
    """The hash partitions to collect in each scan: as many as fit into the memory of the tasks."""
    partitions = max(1, math.ceil(selector.num_rows / PARTITION_ROWS))
    row_bytes = HashKeys(step.by, step.best, 1, 0, 1).dtype.itemsize
    per_scan = max(1, int(partitions * selector.tasks.memory_bytes // max(1, selector.num_rows * row_bytes)))
    for first in range(0, partitions, per_scan):
        yield HashKeys(step.by, step.best, partitions, first, min(first + per_scan, partitions))
