"""A choice on disk: `subsets/NAME/`.

selection.json           written last, create-only; names the files
rows/00000.parquet       shard, row, uid: the chosen rows of a stretch of shards, in their order
shards/00000.parquet     shard, generation, ...: every row's fate, which is what `compare` explains a change from
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile
from pairmill.schemas.subset import Subset

Fates = npt.NDArray[np.int8]
"""Per row of a chunk: the number of the step that dropped it, or ALIVE."""
ALIVE = -1

CHOSEN_ROWS = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # in the shard's pairs file
        pa.field("uid", pa.string(), nullable=False),
    ]
)
SHARD_FATES = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("pairs_blake2b", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("chosen", pa.int64(), nullable=False),
        pa.field("fates", pa.binary(), nullable=False),  # int8 per row: the step that dropped it, or -1
    ]
)


class SubsetError(PairmillError, ValueError):
    """The choice is not there, cannot be read, or does not fit the dataset any more; the message says what to do."""


def write_chunk(chunk: Chunk, fates: Fates, folder: str, stem: str) -> dict[str, DataFile]:
    """The two files of a chunk, under `FOLDER/rows/` and `FOLDER/shards/`."""
    chosen, shards = [CHOSEN_ROWS.empty_table()], []
    for shard, span in chunk.spans():
        rows = np.flatnonzero(fates[span] == ALIVE).astype(np.int32)
        if len(rows):
            uids = chunk.read(shard, frozenset({"uid"}))["uid"].take(pa.array(rows))
            numbers = pa.array(np.full(len(rows), shard.shard))
            chosen.append(pa.table([numbers, pa.array(rows), uids], schema=CHOSEN_ROWS))
        facts = (shard.shard, shard.generation, shard.pairs_blake2b, shard.num_rows, len(rows), fates[span].tobytes())
        shards.append(dict(zip(SHARD_FATES.names, facts, strict=True)))
    tables = {"rows": pa.concat_tables(chosen), "shards": pa.Table.from_pylist(shards, schema=SHARD_FATES)}
    return {name: _write(chunk.store, f"{folder}/{name}/{stem}.parquet", table) for name, table in tables.items()}


def _write(store: Store, name: str, table: pa.Table) -> DataFile:
    with store.new_file() as file:
        pq.write_table(table, file, compression="zstd")
        digest, num_bytes = file_checksum(file)
        store.create_from(name, file)  # the name carries the attempt: what stands there is this call's, made before
    return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)


def publish(store: Store, selection: Subset, replaced: Subset | None) -> bool:
    """Make the choice exist, in the place of `replaced` where that is given; False, and its files gone, where another
    run finished one of that name first."""
    name, data = f"subsets/{selection.name}/selection.json", selection.model_dump_json(indent=1).encode()
    if replaced is not None:
        store.replace(name, data)
        _remove_files(store, replaced)
    elif not store.create(name, data) and read_subset(store, selection.name).attempt != selection.attempt:
        _remove_files(store, selection)
        return False
    return True


def _remove_files(store: Store, selection: Subset) -> None:
    for files in selection.files:
        for file in files.values():
            store.delete(file.path)


def read_subset(store: Store, name: str) -> Subset:
    """The record of a choice. Raises SubsetError."""
    try:
        selection = Subset.model_validate_json(store.read(f"subsets/{name}/selection.json"))
    except FileNotFoundError:
        names = ", ".join(subsets(store)) or "none"
        raise SubsetError(f"{store.root} has no subset {name!r}; it has: {names}") from None
    except ValidationError as error:
        raise SubsetError(
            f"{store.path(f'subsets/{name}')}/selection.json is damaged ({error.errors()[0]['msg']}): delete it"
        ) from None
    if selection.schema_version > SCHEMA_VERSION:
        raise SubsetError(f"the subset {name!r} was written by a newer pairmill; update to read it")
    return selection


def subsets(store: Store) -> list[str]:
    """Names of the choices that were finished."""
    return [name for name in store.folders("subsets") if store.exists(f"subsets/{name}/selection.json")]


def read_tables(store: Store, selection: Subset, kind: Any) -> Iterator[pa.Table]:
    """The files of one kind (`rows` or `shards`), one at a time, in order of shard."""
    for files in selection.files:
        with store.open_arrow(files[kind].path) as file:
            yield pq.ParquetFile(file).read()


def generations_of(shards: Sequence[Chunk]) -> str:
    """BLAKE2b-128 over the state of every shard, in order."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for chunk in shards:
        for shard in chunk.shards:
            digest.update(f"{shard.shard} {shard.generation} {shard.pairs_blake2b}\n".encode())
    return digest.hexdigest()
