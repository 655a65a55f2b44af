"""Defines the files of an index's parts, and which shards belong to which part.

index/clip_b32-image/000000000.DIGEST.ATTEMPT.faiss       the vectors of consecutive shards
index/clip_b32-image/manifests/000000000.DIGEST.json      written last, create-only; names the shards it covers

The names begin with the number of the part's first shard. DIGEST depends only on the part's shards, their generations
and their embeddings, so an index that grew with its dataset has the same parts as one that was built all at once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.schemas.index import IndexPart
from pairmill.schemas.manifest import shard_name

PART_ROWS = 1 << 20
"""Number of planned rows that a part spans, and maximum number of its pairs. Building a part takes about twice the
memory of its vectors."""
_READERS = 32
_LAYOUT = 1


def index_folder(embeddings: Embeddings) -> str:
    """The folder of the index of these embeddings, relative to the dataset."""
    return f"index/{embeddings.alias}-{embeddings.kind}"


def shards_of_parts(embeddings: Embeddings) -> Iterator[list[int]]:
    """For each part, the positions of its shards in the snapshot.

    The plan only grows at its end, so a shard always belongs to the same span of the plan.
    """
    snapshot = embeddings.snapshot
    sizes = snapshot.plan.shards["num_rows"].to_pylist()
    starts = dict(zip(snapshot.plan.shards["shard"].to_pylist(), accumulate([0, *sizes]), strict=False))
    shards = snapshot.chunk.shards
    for _, span in groupby(range(len(shards)), lambda position: starts[shards[position].shard] // PART_ROWS):
        part: list[int] = []
        rows = 0
        for position in span:
            if part and rows + shards[position].num_rows > PART_ROWS:
                yield part
                part, rows = [], 0
            part.append(position)
            rows += shards[position].num_rows
        yield part


def stem_of(embeddings: Embeddings, positions: Sequence[int]) -> str:
    """The stem that the names of a part's files share."""
    shards = [embeddings.snapshot.chunk.shards[position] for position in positions]
    digest = hashlib.blake2b(f"{_LAYOUT} {embeddings.column}\n".encode(), digest_size=8)
    for shard in shards:
        digest.update(f"{shard.shard} {shard.generation} {embeddings.blake2b(shard)}\n".encode())
    return f"{shard_name(shards[0].shard)}.{digest.hexdigest()}"


def read_parts(store: Store, folder: str) -> dict[str, IndexPart]:
    """Stem -> record of each finished part. Raises ManifestError."""
    names = [name for name in store.list(f"{folder}/manifests") if name.endswith(".json")]
    remedy = "move it elsewhere and run `pairmill index` again"

    def read(name: str) -> IndexPart:
        return read_record(store, f"{folder}/manifests/{name}", IndexPart, remedy)

    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        return dict(zip((name.removesuffix(".json") for name in names), readers.map(read, names), strict=True))
