"""Reads the pictures and captions for a retrieval test, or a sample of them, from a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pairmill.pipeline.common.arrow import take_rows
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labeled_rows import Booleans, RowFilter
from pairmill.pipeline.evaluate.retrieval import RetrievalSet
from pairmill.pipeline.reader.picture_ids import ID_COLUMNS, picture_ids
from pairmill.pipeline.score.embeddings import embedding_column, read_vectors

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Retrieval:
    """The data to compare, and notes about it."""

    data: RetrievalSet
    facts: Sequence[str]
    """Lines that say what was sampled and left out."""


def read_retrieval(rows: RowFilter, alias: str, limit: int, on_step: OnStep = ignore_step) -> Retrieval:
    """The pictures with their captions; if there are more than `limit` pictures, those with the lowest hashes. Needs
    memory for the embeddings of `limit` pictures and their captions, as float16.

    Raises DatasetError and SubsetError, and EvaluateError if there is nothing to compare.
    """
    ids = _pictures(rows, limit, on_step)
    if len(ids) < 2:
        raise EvaluateError(f"retrieval needs at least two pictures; found {len(ids):,}")
    gathered = _gather(rows, alias, ids[:limit], on_step)
    facts = []
    if len(ids) > limit:
        facts.append(
            f"sampled {limit:,} of about {_estimated(ids):,} pictures, with all their captions, by a hash; among more "
            "pictures, fewer captions would find their picture"
        )
    return _retrieval(gathered, facts)


def _pictures(rows: RowFilter, limit: int, on_step: OnStep) -> U64:
    """The lowest `limit` + 1 picture ids, or all of them if there are fewer, in ascending order."""
    snapshot, shards = rows.snapshot, list(rows.masks())

    def read(shard: tuple[ShardFiles, Booleans]) -> U64:
        return picture_ids(snapshot.read(shard[0], ID_COLUMNS))[shard[1]]

    lowest: U64 = np.zeros(0, np.uint64)
    for number, found in enumerate(snapshot.map(read, shards)):
        on_step("reading pictures", number, len(shards))
        if len(lowest) > limit:
            found = found[found < lowest[-1]]
        lowest = np.union1d(lowest, found)[: limit + 1]
    return lowest


def _estimated(lowest: U64) -> int:
    """The number of distinct ids, estimated from the sorted lowest ones (Bar-Yossef et al., RANDOM 2002)."""
    return round((len(lowest) - 1) / ((float(lowest[-1]) + 1) / 2.0**64))


@dataclass
class _Gathered:
    picture: list[U64]
    uid: list[npt.NDArray[np.bytes_]]
    image: list[npt.NDArray[np.float16]]
    text: list[npt.NDArray[np.float16]]
    num_without_text: int = 0
    num_without_image: int = 0


def _gather(rows: RowFilter, alias: str, ids: U64, on_step: OnStep) -> _Gathered:
    """The embeddings of the rows of these pictures."""
    made, shards = _Gathered([], [], [], []), list(rows.masks())
    image, text = (embedding_column(alias, of) for of in ("image", "text"))
    for number, (shard, mask) in enumerate(shards):
        on_step("reading embeddings", number, len(shards))
        found = picture_ids(rows.snapshot.read(shard, ID_COLUMNS))
        used = np.flatnonzero(mask & np.isin(found, ids))
        if not len(used):
            continue
        table = take_rows(rows.snapshot.read(shard, ["uid", image, text]), used)
        images, has_image = read_vectors(table[image])
        texts, has_text = read_vectors(table[text])
        has_image, has_text = has_image & images.any(axis=1), has_text & texts.any(axis=1)
        good = has_image & has_text
        made.num_without_image += int((~has_image).sum())
        made.num_without_text += int((has_image & ~has_text).sum())
        made.picture.append(found[used][good])
        made.uid.append(np.asarray(table["uid"].to_pylist(), "S32")[good])
        made.image.append(images[good])
        made.text.append(texts[good])
    return made


def _retrieval(gathered: _Gathered, facts: list[str]) -> Retrieval:
    lines = (
        (gathered.num_without_image, "no embedding of the picture"),
        (gathered.num_without_text, "no embedding of the caption"),
    )
    facts += [f"{counted(number, 'row')} left out: {why}" for number, why in lines if number]
    ids, uids = np.concatenate(gathered.picture), np.concatenate(gathered.uid)
    _, first = np.unique(uids, return_index=True)
    if repeats := len(uids) - len(first):
        facts.append(f"{counted(repeats, 'row')} left out: another row has the same uid")
    ids = ids[first]
    pictures, example, picture_of = np.unique(ids, return_index=True, return_inverse=True)
    if len(pictures) < 2:
        raise EvaluateError("\n".join(["retrieval needs at least two pictures with embeddings", *facts]))
    images, texts = np.concatenate(gathered.image), np.concatenate(gathered.text)
    return Retrieval(RetrievalSet(images[first[example]], texts[first], picture_of.astype(np.int64)), facts)
