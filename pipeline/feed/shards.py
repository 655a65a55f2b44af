"""The shards that a feed reads: which rows of each are chosen, and their columns and pictures."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.added_model import complete_models
from pairmill.pipeline.common.files import is_remote
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles, describe
from pairmill.pipeline.dataset.shards import committed
from pairmill.pipeline.dataset.subset import ALIVE, SubsetError, generations_of, read_subset, read_tables
from pairmill.pipeline.source.mapping import IndexedPictures, PairsPictures, WebPictures
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.pairs import KEPT_STATUS

_READERS = 16


@dataclass(frozen=True)
class FeedShards:
    """Shards in the dataset's order. In memory, a bit per row and some hundred bytes per shard."""

    chunk: Chunk
    chosen: tuple[npt.NDArray[np.uint8], ...]
    """Per shard a bit per row, packed."""
    counts: npt.NDArray[np.int64]
    """Chosen rows per shard."""
    schema: pa.Schema
    """All columns, added models' among them."""
    has_pictures: bool
    """Whether `image_tar` and its neighbours say where each picture is."""
    fingerprint: str
    """Of the choice: equal for the same rows in the same order."""

    @classmethod
    def of(cls, store: Store, subset: str | None) -> "FeedShards":
        """Those of a subset, or of all kept rows. Raises SubsetError where the subset is of another state."""
        plan, done = load_plan(store), committed(store)
        chunk = describe(store, sorted(done.items()), complete_models(store, done))
        chosen = _kept(chunk) if subset is None else _of_subset(chunk, subset)
        counts = np.array([int(np.bitwise_count(bits).sum()) for bits in chosen], np.int64)
        pictures = plan.mapping.pictures
        is_web = isinstance(pictures, WebPictures)
        is_ranged = isinstance(pictures, (IndexedPictures, PairsPictures))
        stored = plan.job.images.store != "none" if is_web else is_ranged
        fingerprint = generations_of([chunk]) if subset is None else read_subset(store, subset).attempt
        return cls(chunk, tuple(chosen), counts, chunk.schema(), stored, fingerprint)

    def read(self, index: int, columns: frozenset[str]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """One shard's rows, all of them, and which of them are chosen, in order."""
        shard = self.chunk.shards[index]
        chosen = np.flatnonzero(np.unpackbits(self.chosen[index], count=shard.num_rows))
        return self.chunk.read(shard, columns).replace_schema_metadata(None), chosen

    def picture(self, tar: str, offset: int, length: int) -> bytes:
        """The stored picture. Raises FileNotFoundError."""
        is_own = not tar.startswith("/") and not is_remote(tar)
        path = self.chunk.store.path(tar) if is_own else tar
        picture = self.chunk.store.files.read_range(path, offset, length)
        if len(picture) != length:
            raise OSError(f"{path} ends in the middle of a picture")
        return picture


def _kept(chunk: Chunk) -> list[npt.NDArray[np.uint8]]:
    def of(shard: ShardFiles) -> npt.NDArray[np.uint8]:
        status = chunk.read(shard, frozenset({"status"}))["status"].combine_chunks()
        return np.packbits(pc.equal(status, KEPT_STATUS).to_numpy(zero_copy_only=False))

    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(of, chunk.shards))


def _of_subset(chunk: Chunk, subset: str) -> list[npt.NDArray[np.uint8]]:
    """Shards that came after the choice have no chosen row."""
    shards = {shard.shard: shard for shard in chunk.shards}
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for table in read_tables(chunk.store, read_subset(chunk.store, subset), "shards"):
        for row in table.to_pylist():
            shard = shards.get(row["shard"])
            if shard is None or shard.pairs_blake2b != row["pairs_blake2b"]:
                raise SubsetError(
                    f"shard {row['shard']:09d} is another one than {subset!r} was chosen from; select again"
                )
            found[shard.shard] = np.packbits(np.frombuffer(row["fates"], np.int8) == ALIVE)
    return [found.get(shard.shard, np.zeros(-(-shard.num_rows // 8), np.uint8)) for shard in chunk.shards]
