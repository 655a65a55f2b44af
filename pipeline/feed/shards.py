"""Reads the shards of a PairDataset: their selected rows, columns and pictures."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.added_columns import AddedColumns, added_columns
from pairmill.pipeline.columns.caption_choice import CaptionChoice, caption_choice
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles, describe
from pairmill.pipeline.dataset.integrity import DamagedFileError, is_intact
from pairmill.pipeline.dataset.mixture import outdated_error
from pairmill.pipeline.dataset.subset import (
    generations_digest,
    read_shards,
    read_subset,
    selected_bits,
    selected_rows,
    shard_numbers,
)
from pairmill.pipeline.dataset.withdrawn import readable_shards
from pairmill.pipeline.feed.config import FeedError
from pairmill.pipeline.feed.repeats import Repeats
from pairmill.pipeline.reader.weights import read_weighted, renamed_weight, with_weight
from pairmill.pipeline.source.corpus.image_refs import picture_file
from pairmill.pipeline.source.mapping import IndexedPictures, PairsPictures, WebPictures
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.mixture import Mixture
from pairmill.schemas.pairs import CHECKSUM, KEPT_STATUS, STORED
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.subset import Subset

_READERS = 16

PackedBits = npt.NDArray[np.uint8]
"""One bit per row of a shard, packed by np.packbits."""


@dataclass(frozen=True)
class FeedShards:
    """All finished shards, in order. Takes one bit of memory per row and a few hundred bytes per shard."""

    chunk: Chunk
    selected: tuple[PackedBits, ...]
    """For each shard, a bit for each row: whether it is selected."""
    counts: npt.NDArray[np.int64]
    """(shards,): number of selected rows."""
    schema: pa.Schema
    """All columns, including those of added models, and the weight if there are `repeats`."""
    added: AddedColumns
    has_pictures: bool
    """Whether each picture can be read with a single range read, from the tar and offset in its row."""
    check: str | None
    """The column with a checksum of each picture; None if there is none."""
    max_pixels: int
    """Maximum number of pixels of a picture, as in the job."""
    aliases: tuple[str, ...]
    """Aliases of all models of the dataset."""
    fingerprint: str
    """Identifies the selected rows: datasets with equal fingerprints have the same rows in the same order."""
    repeats: Repeats | None = None
    """How often each row is shown, if the subset has weights."""
    own_weight: str | None = None
    """With `repeats`, the name in `schema` of the dataset's own column `weight`. None: it has none."""

    @classmethod
    def open(cls, store: Store, subset: str | None) -> "FeedShards":
        """The shards with the rows of a subset, or with all kept rows. Raises SubsetError for an outdated subset, and
        UnfinishedPurgeError if a purge is not finished."""
        plan, done = load_plan(store), readable_shards(store)
        added, record = added_columns(store, done), None if subset is None else read_subset(store, subset)
        if record is not None and added.incomplete:  # perhaps only shards newer than the subset lack columns
            numbers = shard_numbers(store, record)
            done = {shard: generation for shard, generation in done.items() if shard in numbers}
            added = added_columns(store, done)
        chunk = describe(store, sorted(done.items()), added.names)
        if record is None:
            return cls._of(chunk, _kept(chunk), plan, added, generations_digest([chunk]))
        shards = cls._of(chunk, selected_rows(chunk, record), plan, added, record.attempt)
        return shards._with_repeats(store, record)

    @classmethod
    def of_mixture(cls, mixture: Store, record: Mixture, number: int, s3: S3Config) -> "FeedShards":
        """The shards of one dataset of a mixture. Raises SubsetError if a shard has been rebuilt since it was mixed."""
        source = record.sources[number]
        store = Store(source.dataset, s3)
        store.check_access()
        plan, done = load_plan(store), readable_shards(store)
        numbers = shard_numbers(mixture, source.rows)
        done = {shard: generation for shard, generation in done.items() if shard in numbers}
        added = added_columns(store, done)
        chunk = describe(store, sorted(done.items()), added.names)
        outdated = partial(outdated_error, mixture, record, number)
        selected = selected_bits(chunk, read_shards(mixture, source.rows), outdated)
        return cls._of(chunk, selected, plan, added, source.rows.attempt)._with_repeats(mixture, source.rows)

    @classmethod
    def _of(
        cls, chunk: Chunk, selected: Sequence[PackedBits], plan: Plan, added: AddedColumns, fingerprint: str
    ) -> "FeedShards":
        counts = np.array([int(np.bitwise_count(bits).sum()) for bits in selected], np.int64)
        pictures = _has_pictures(plan), _check_column(plan), plan.job.images.max_pixels
        aliases = (*(model.alias for model in plan.job.models), *added.models)
        return cls(chunk, tuple(selected), counts, chunk.schema(), added, *pictures, aliases, fingerprint)

    def _with_repeats(self, store: Store, record: Subset) -> "FeedShards":
        """The same shards, with the weights of the selected rows if they have any."""
        repeats = Repeats.of(store, record, self.counts)
        if repeats is None:
            return self
        return replace(self, repeats=repeats, schema=with_weight(self.schema), own_weight=renamed_weight(self.schema))

    @property
    def image_columns(self) -> Sequence[str]:
        """The columns whose values are the arguments of `picture`."""
        return [*STORED.names, *([self.check] if self.check else [])]

    def counts_in(self, epoch: int) -> npt.NDArray[np.int64]:
        """(shards,): number of rows shown in an epoch, including repetitions."""
        return self.counts if self.repeats is None else self.repeats.counts(epoch)

    def choice(self, caption: str) -> CaptionChoice | None:
        """The choice of captions; None: the original captions. Raises CaptionChoiceError if it is not possible."""
        return caption_choice(self.chunk.store, self.added, caption, self.aliases)

    def read(self, index: int, columns: frozenset[str], epoch: int) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """(all rows of a shard, ascending indices of the rows shown in an epoch, each as often as it is shown). Raises
        DamagedFileError, and FeedError if the shard has been rebuilt in the meantime."""
        shard = self.chunk.shards[index]
        selected = np.flatnonzero(np.unpackbits(self.selected[index], count=shard.num_rows))
        try:
            self.chunk.check(shard)
            if self.repeats is None:
                return self._read(shard, columns), selected
            weights = np.zeros(shard.num_rows, np.float32)
            weights[selected] = self.repeats.weights_in(index)
            table = read_weighted(partial(self._read, shard), sorted(columns), weights, self.own_weight)
            return table, np.repeat(selected, self.repeats.times(index, epoch))
        except FileNotFoundError as error:
            raise _gone(error, self.chunk.store.path(shard.pairs)) from error

    def _read(self, shard: ShardFiles, columns: Iterable[str]) -> pa.Table:
        return self.chunk.read(shard, frozenset(columns)).replace_schema_metadata(None)

    def picture(self, tar: str, offset: int, length: int, check: int | str | None = None) -> bytes:
        """The stored picture of a row. `tar`, `offset` and `length`: its location; `check`: the checksum in the row's
        column `self.check`.

        Raises DamagedFileError, and OSError, which is also raised if the file does not belong to the dataset.
        """
        store = self.chunk.store
        if (path := picture_file(tar, store.root, store.files)) is None:
            raise OSError(f"{tar} is neither a tar of {store.root} nor one of the tars it was made from")
        try:
            picture = store.files.read_range(path, offset, length)
        except FileNotFoundError as error:
            raise _gone(error, path) from error
        if len(picture) != length:
            raise DamagedFileError(f"{path} has changed: it ends in the middle of a picture")
        is_same = is_intact(picture, check) if not isinstance(check, str) else sha256(picture).hexdigest() == check
        if not is_same:
            raise DamagedFileError(f"{path} has changed: the picture at byte {offset:,} is not the one that was scored")
        return picture


def _gone(error: FileNotFoundError, path: str) -> FeedError:
    return FeedError(
        f"{error.filename or path} is missing; if a retry or purge has rebuilt its shard, create the PairDataset again"
    )


def _check_column(plan: Plan) -> str | None:
    """The column with the checksums: CHECKSUM or, in older datasets of a corpus, the SHA-256 of the original bytes,
    which takes longer to compute. None if there are no checksums."""
    if plan.mapping.has_checksums:
        return str(CHECKSUM.name)
    return "sha256" if plan.job.source.is_corpus else None


def _has_pictures(plan: Plan) -> bool:
    if isinstance(plan.mapping.pictures, WebPictures):
        return plan.job.images.store != "none"
    return isinstance(plan.mapping.pictures, IndexedPictures | PairsPictures)


def _kept(chunk: Chunk) -> list[PackedBits]:
    def read(shard: ShardFiles) -> PackedBits:
        status = chunk.read(shard, frozenset({"status"}))["status"].combine_chunks()
        return np.packbits(pc.equal(status, KEPT_STATUS).to_numpy(zero_copy_only=False))

    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(read, chunk.shards))
