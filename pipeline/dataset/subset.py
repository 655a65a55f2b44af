"""Reads and writes subsets. Each subset is stored in `subsets/NAME/`:

selection.json           the record, written last and create-only; names the other files
rows/00000.parquet       shard, row and uid of the selected rows of one chunk of shards, in dataset order
shards/00000.parquet     one row per shard: its generation, and the step that dropped each of its rows
overlaps/00000.parquet   one file per step `leak`: the evaluation pictures that it found in the dataset

If a step assigned weights, the files in rows/ have a column `weight`, and those in shards/ contain the same weights
(decision 024).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.files import file_checksum
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.integrity import DamagedFileError, check_file
from pairmill.pipeline.dataset.manifests import (
    DamagedManifestError,
    committed,
    read_manifest,
    read_record,
    record_bytes,
)
from pairmill.pipeline.dataset.output_folder import why_not_there
from pairmill.pipeline.dataset.parquet import read_table, write_rows
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import SCHEMA_VERSION, DataFile, manifest_name
from pairmill.schemas.subset import SUBSET_NAME, Subset, SubsetFiles

DropStep = npt.NDArray[np.int8]
"""For each row, the number of the step that dropped it, or NOT_DROPPED. Shape (rows,)."""
NOT_DROPPED = -1

ROWS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # index in the shard's pairs file
        pa.field("uid", pa.string(), nullable=False),
    ]
)
SHARDS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("pairs_blake2b", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("chosen", pa.int64(), nullable=False),  # number of selected rows
        pa.field("fates", pa.binary(), nullable=False),  # the bytes of a DropStep
    ]
)
WEIGHT = "weight"
"""The column of `rows/` that says how many times a row is shown per epoch, float32."""
WEIGHTS_FIELD = pa.field("weights", pa.binary(), nullable=False)
"""The field of `shards/` with the weights of a shard's selected rows, as little-endian bytes."""

Weights = npt.NDArray[np.float32]


class Weigher(Protocol):
    """Computes the weight of each row. Picklable."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `of` reads."""

    def of(self, table: pa.Table) -> Weights:
        """The weight of each row of a table."""


class SubsetError(PairmillError, ValueError):
    """A subset is missing, unreadable or older than its dataset. The message says what to do."""


@dataclass(frozen=True, slots=True)
class ShardSelection:
    """The rows of one shard that are in a subset."""

    shard: int
    generation: int
    pairs_blake2b: str
    """Checksum of the pairs file that the rows were selected from."""
    num_selected: int
    drop_step: DropStep
    path: str
    """The file in `shards/` that contains this record."""
    weights: Weights | None = None
    """Weights of the selected rows, shape (num_selected,), if a step assigned weights."""

    @property
    def rows(self) -> npt.NDArray[np.intp]:
        """Indices of the selected rows in the pairs file, ascending. Shape (num_selected,)."""
        return np.flatnonzero(self.drop_step == NOT_DROPPED)


def write_chunk(
    chunk: Chunk, drop_step: DropStep, folder: str, stem: str, weigher: Weigher | None = None
) -> SubsetFiles:
    """Write the two files of a chunk, `FOLDER/rows/STEM.parquet` and `FOLDER/shards/STEM.parquet`."""
    return write_tables(chunk.store, *chunk_tables(chunk, drop_step, weigher), folder, stem)


def chunk_tables(chunk: Chunk, drop_step: DropStep, weigher: Weigher | None = None) -> tuple[pa.Table, pa.Table]:
    """The content of the two files of a chunk."""
    rows_schema, shards_schema = ROWS_SCHEMA, SHARDS_SCHEMA
    if weigher is not None:
        rows_schema = ROWS_SCHEMA.append(pa.field(WEIGHT, pa.float32(), nullable=False))
        shards_schema = SHARDS_SCHEMA.append(WEIGHTS_FIELD)
    columns = frozenset({"uid"}) | (weigher.columns if weigher else frozenset())
    selected, shards = [rows_schema.empty_table()], []
    for shard, span in chunk.spans():
        rows = np.flatnonzero(drop_step[span] == NOT_DROPPED).astype(np.int32)
        weights = np.zeros(0, np.float32)
        if len(rows):
            table = chunk.read(shard, columns).take(pa.array(rows))
            arrays = [pa.array(np.full(len(rows), shard.shard)), pa.array(rows), table["uid"]]
            if weigher is not None:
                weights = weigher.of(table)
                arrays.append(pa.array(weights))
            selected.append(pa.table(arrays, schema=rows_schema))
        values: list[object] = [shard.shard, shard.generation, shard.pairs_blake2b, shard.num_rows, len(rows)]
        values += [drop_step[span].tobytes(), *([weights.astype("<f4").tobytes()] if weigher else [])]
        shards.append(dict(zip(shards_schema.names, values, strict=True)))
    return pa.concat_tables(selected), pa.Table.from_pylist(shards, shards_schema)


def write_tables(store: Store, rows: pa.Table, shards: pa.Table, folder: str, stem: str) -> SubsetFiles:
    """Write the two files of a chunk: ROWS_SCHEMA and SHARDS_SCHEMA."""
    return SubsetFiles(
        rows=_write(store, f"{folder}/rows/{stem}.parquet", rows),
        shards=_write(store, f"{folder}/shards/{stem}.parquet", shards),
    )


def _write(store: Store, name: str, table: pa.Table) -> DataFile:
    with store.new_file() as file:
        write_rows(table, file)
        digest, num_bytes = file_checksum(file)
        store.create_from(name, file)  # the name contains the attempt, so an existing file is ours
    return DataFile(path=name, num_bytes=num_bytes, blake2b=digest)


def write_overlap(store: Store, overlap: pa.Table, name: str, stem: str) -> DataFile:
    """Write the evaluation pictures that a step `leak` found, `subsets/NAME/overlaps/STEM.parquet`."""
    return _write(store, f"subsets/{name}/overlaps/{stem}.parquet", overlap)


def publish(store: Store, subset: Subset, replaced: Subset | None) -> bool:
    """Write the record, which makes the subset exist, and delete all other files in its folders: of the subset that it
    replaces, and of interrupted runs. Otherwise, tools that read `rows/*.parquet` would get rows twice.

    Returns False if another run finished a subset of this name first, or at the same time and deleted these files.
    """
    name, data = f"subsets/{subset.name}/selection.json", record_bytes(subset)
    if replaced is None:
        is_first = store.create(name, data) or read_subset(store, subset.name).attempt == subset.attempt
    elif is_first := read_subset(store, subset.name).attempt == replaced.attempt:
        store.replace(name, data)
    if not is_first:
        delete_files(store, subset)
        return False
    found, own = set(files_in(store, f"subsets/{subset.name}")), paths_of(subset)
    for path in found - own if own <= found else ():
        store.delete(path)
    if not own <= found and replaced is None:
        store.delete(name)
    return own <= found


def files_of(subset: Subset) -> list[DataFile]:
    """All files of a subset except its record."""
    return [*(file for each in subset.files for file in (each.rows, each.shards)), *subset.overlaps]


def paths_of(subset: Subset) -> frozenset[str]:
    """The paths of `files_of`."""
    return frozenset(file.path for file in files_of(subset))


def stray_files(store: Store, name: str, paths: Set[str]) -> Iterator[str]:
    """The files in a subset's folders that are not in `paths`. They are from an interrupted run, or from one in
    progress."""
    return (path for path in files_in(store, f"subsets/{name}") if path not in paths)


def files_in(store: Store, folder: str) -> Iterator[str]:
    """All files in the folder of a subset, or of a source of a mixture, except the record."""
    for each in (f"{folder}/{kind}" for kind in ("rows", "shards", "overlaps")):
        yield from (f"{each}/{file}" for file in store.list(each) if file.endswith(".parquet"))


def delete_files(store: Store, subset: Subset) -> None:
    """Delete all files, except the record, of a subset that is not the current one."""
    for file in files_of(subset):
        store.delete(file.path)


def read_subset(store: Store, name: str) -> Subset:
    """The record of a subset. Raises SubsetError."""
    folder = f"subsets/{name}"
    remedy = f"restore it from a copy, or move {folder} elsewhere and select again"
    try:
        if not re.fullmatch(SUBSET_NAME, str(name)):  # `../other` is not the name of a subset
            raise FileNotFoundError(name)
        subset = read_record(store, f"{folder}/selection.json", Subset, remedy)
    except FileNotFoundError:
        if why := why_not_there(store):
            raise SubsetError(why) from None
        names = ", ".join(subset_names(store)) or "none"
        raise SubsetError(f"{store.root} has no subset {name!r}; it has: {names}") from None
    except DamagedManifestError as error:
        raise SubsetError(str(error)) from None
    if subset.schema_version > SCHEMA_VERSION:
        raise SubsetError(f"subset {name!r} was written by a newer pairmill; update to read it")
    return subset


def subset_names(store: Store) -> list[str]:
    """Names of the finished subsets, sorted."""
    return [name for name in store.folders("subsets") if store.exists(f"subsets/{name}/selection.json")]


def read_rows(store: Store, subset: Subset) -> Iterator[pa.Table]:
    """The selected rows in dataset order, one table per chunk: ROWS_SCHEMA, plus `weight` if rows have weights. Raises
    SubsetError if a file is missing or damaged."""
    for files in subset.files:
        with _intact(store, files.rows):
            table = read_table(store, files.rows.path)
        yield table


def read_shards(store: Store, subset: Subset) -> Iterator[ShardSelection]:
    """One record per shard, in order. At most one chunk's records are in memory at a time. Raises SubsetError if a file
    is missing or damaged."""
    for files in subset.files:
        with _intact(store, files.shards):
            table = read_table(store, files.shards.path)
        yield from _records(table, files.shards.path)


@contextmanager
def _intact(store: Store, file: DataFile) -> Iterator[None]:
    """Check a file of a subset before the block reads it. Raises SubsetError with the remedy."""
    try:
        check_file(store, file.path, file.blake2b)
        yield
    except (FileNotFoundError, DamagedFileError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        again = select_again(store, file.path)
        raise SubsetError(f"{store.path(file.path)} {what}; select again: {again}") from error


def select_again(store: Store, path: str) -> str:
    """The command that selects the subset or mixture again to which a file belongs."""
    name = [path.split("/")[1]] if path.startswith("subsets/") else []
    return pairmill_command("select", store.root, "--refresh", *name)


def shard_numbers(store: Store, subset: Subset) -> set[int]:
    """The shards that the subset was selected from."""
    tables = [read_table(store, files.shards.path, ["shard"]) for files in subset.files]
    return {number for table in tables for number in table["shard"].to_pylist()}


def read_shard(store: Store, path: str, shard: int) -> ShardSelection:
    """The record of one shard, from the given file in `shards/`."""
    return next(record for record in _records(read_table(store, path), path) if record.shard == shard)


def _records(table: pa.Table, path: str) -> Iterator[ShardSelection]:
    weights = table[WEIGHTS_FIELD.name] if WEIGHTS_FIELD.name in table.column_names else [None] * table.num_rows
    narrow = [name for name in SHARDS_SCHEMA.names if name != "fates"]
    for shard, drop_step, each in zip(table.select(narrow).to_pylist(), table["fates"], weights, strict=True):
        identity = (shard["shard"], shard["generation"], shard["pairs_blake2b"])
        of_rows = None if each is None else np.frombuffer(each.as_buffer(), "<f4").astype(np.float32)
        yield ShardSelection(*identity, shard["chosen"], np.frombuffer(drop_step.as_buffer(), np.int8), path, of_rows)


def selected_rows(chunk: Chunk, subset: Subset) -> list[npt.NDArray[np.uint8]]:
    """For each shard of the chunk, a packed bit mask of the rows of its pairs file that are in the subset.

    Shards added after the subset was made have no rows in it. Raises SubsetError if a shard has been rebuilt since, or
    if the chunk is older than the subset.
    """
    return selected_bits(chunk, read_shards(chunk.store, subset), partial(_other_shard_error, chunk, subset.name))


def selected_bits(
    chunk: Chunk, selections: Iterable[ShardSelection], outdated: Callable[[int], SubsetError]
) -> list[npt.NDArray[np.uint8]]:
    """Compute `selected_rows` from the records of the shards. `outdated` makes the error for a rebuilt shard."""
    shards = {shard.shard: shard for shard in chunk.shards}
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for selection in selections:
        shard = shards.get(selection.shard)
        if shard is None or shard.pairs_blake2b != selection.pairs_blake2b:
            raise outdated(selection.shard)
        found[shard.shard] = np.packbits(selection.drop_step == NOT_DROPPED)
    return [found.get(shard.shard, np.zeros(-(-shard.num_rows // 8), np.uint8)) for shard in chunk.shards]


def selected_weights(chunk: Chunk, subset: Subset) -> list[Weights] | None:
    """For each shard of the chunk, the weights of the rows in the subset. None if the subset has no weights."""
    if subset.weight_sum is None:
        return None
    empty = np.zeros(0, np.float32)
    found = {each.shard: empty if each.weights is None else each.weights for each in read_shards(chunk.store, subset)}
    return [found.get(shard.shard, empty) for shard in chunk.shards]


def current_generations(store: Store, subset: Subset) -> dict[int, int]:
    """Shard -> newest generation of every committed shard. Raises SubsetError if the pairs of a shard have changed
    since the subset was selected."""
    return newest_generations(store, read_shards(store, subset), partial(_outdated_error, store, subset.name))


def newest_generations(
    store: Store, selections: Iterable[ShardSelection], outdated: Callable[[int], SubsetError]
) -> dict[int, int]:
    """Shard -> newest generation of every committed shard. Raises the error from `outdated` if the pairs of a shard in
    `selections` have changed.

    A retry that recovers nothing in a shard leaves a subset valid. Reads one listing, and the manifest of each selected
    shard with a new generation.
    """
    newest = committed(store)
    for shard in selections:
        generation = newest.get(shard.shard)
        if generation == shard.generation:
            continue
        if generation is None or _pairs_digest(store, shard.shard, generation) != shard.pairs_blake2b:
            raise outdated(shard.shard)
    return newest


def _other_shard_error(chunk: Chunk, name: str, shard: int) -> SubsetError:
    """The error for a shard that is not the one in the chunk: which of the two is older decides the remedy."""
    store, opened = chunk.store, {each.shard: each.generation for each in chunk.shards}
    if committed(store).get(shard) == opened.get(shard):
        return _outdated_error(store, name, shard)
    return SubsetError(f"{store.root} has changed since it was opened, before {name!r} was selected; open it again")


def _outdated_error(store: Store, name: str, shard: int) -> SubsetError:
    again = pairmill_command("select", store.root, "--refresh", name)
    return SubsetError(f"shard {shard:09d} was rebuilt after {name!r} was made; select again: {again}")


def _pairs_digest(store: Store, shard: int, generation: int) -> str:
    return read_manifest(store, manifest_name(shard, generation)).files["pairs"].blake2b


def generations_digest(chunks: Sequence[Chunk]) -> str:
    """BLAKE2b-128 of the state of every shard, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        for shard in chunk.shards:
            digest.update(f"{shard.shard} {shard.generation} {shard.pairs_blake2b}\n".encode())
    return digest.hexdigest()
