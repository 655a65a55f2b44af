"""Gathers the training data of a probe: the embeddings and labels of the labeled rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labeled_rows import Booleans, RowFilter, labeled_rows
from pairmill.pipeline.evaluate.labels import Labels
from pairmill.pipeline.evaluate.lowest_hashes import LowestHashes
from pairmill.pipeline.reader.embeddings import Embeddings, Halves
from pairmill.pipeline.score.embeddings import float32_blocks, read_vectors
from pairmill.pipeline.select.keys import SAMPLE, U64, uid_hashes

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Labeled rows with embeddings, in an order that does not depend on the shards: by a hash of the uid."""

    hashes: U64
    """Hashes of the uids [n]."""
    labels: pa.Array
    """bool, int64 or string [n], without nulls."""
    vectors: Halves
    """The embeddings as stored, float16 [n, dim]."""
    facts: Sequence[str]
    """Lines that say what was left out."""

    def unit_vectors(self) -> Doubles:
        """The embeddings [n, dim], L2-normalized in float32 as for scores of the kind `head`."""
        made = np.empty(self.vectors.shape, np.float64)
        for rows, block in float32_blocks(self.vectors):
            made[rows] = block.numpy()
        return made


def distinct(examples: Examples, is_positive: Booleans) -> tuple[Examples, Booleans]:
    """The examples [n] and their labels [n], reduced to one example per embedding. All captions of a picture share its
    embedding, which would otherwise count several times and appear both inside and outside a fold. Leaves out
    embeddings with both labels."""
    digests = np.array([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in examples.vectors], "V16")
    first, groups = np.unique(digests, return_index=True, return_inverse=True)[1:]
    is_contradictory = np.zeros(len(first), np.bool_)
    is_contradictory[groups[is_positive != is_positive[first[groups]]]] = True
    used = np.sort(first[~is_contradictory])
    facts = [*examples.facts]
    if repeats := len(digests) - len(first):
        facts.append(f"{counted(repeats, 'labeled row')} left out: another row has the same embedding")
    if both := int(is_contradictory.sum()):
        facts.append(f"{counted(both, 'embedding')} left out: rows with different labels")
    labels = examples.labels.take(pa.array(used))
    return Examples(examples.hashes[used], labels, examples.vectors[used], facts), is_positive[used]


def gather(
    embeddings: Embeddings, labels: Labels, limit: int, subset: str | None = None, on_step: OnStep = ignore_step
) -> Examples:
    """The labeled rows of a dataset or of a subset of it; if there are more than `limit`, those whose uids have the
    lowest hashes. Memory is bounded by `limit`. Raises EvaluateError, DatasetError and SubsetError."""
    kept, num_without = LowestHashes(limit), 0
    rows = RowFilter(embeddings.snapshot, subset)
    for part in labeled_rows(rows, labels, [embeddings.column], on_step):
        vectors, is_valid = read_vectors(part.rows[embeddings.column])
        is_valid &= vectors.any(axis=1)
        num_without += int((~is_valid).sum())
        kept.add(
            uid_hashes(part.rows["uid"], SAMPLE, 0)[is_valid], part.labels.filter(pa.array(is_valid)), vectors[is_valid]
        )
    facts = labels.facts()
    if num_without:
        what = "picture" if embeddings.kind == "image" else "caption"
        facts.append(f"{counted(num_without, 'labeled row')} left out: no embedding of the {what}")
    if not kept.num_added:
        raise EvaluateError("\n".join(["no labeled row of the dataset has an embedding", *facts]))
    return Examples(*kept.rows(), [*facts, *kept.facts()])
