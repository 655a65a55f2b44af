"""Keeps the columns of a dataset as Arrow files in a cache folder, one file per column, mapped into memory.

A column is read from the Parquet files once, when it is first needed. The folder is named after the output and the
exact files that the columns came from, so a changed dataset never uses an old cache.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.reader.snapshot import DatasetError, Snapshot

_MAX_OUTPUTS = 8
"""Maximum number of outputs with columns in the cache folder."""


def cache_home() -> Path:
    """The folder with the caches of all outputs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairmill" / "explore"


def cache_folder(snapshot: Snapshot, home: Path) -> Path:
    """The cache folder for one state of one output."""
    state = hashlib.blake2b(repr(list(snapshot.added.names)).encode(), digest_size=16)
    for shard in snapshot.chunk.shards:
        state.update(f"{shard.shard} {shard.generation} {shard.pairs_blake2b} {shard.columns_blake2b}\n".encode())
    output = hashlib.blake2b(snapshot.store.root.encode(), digest_size=8)
    return home / f"{output.hexdigest()}-{state.hexdigest()}"


def remove_old(folder: Path) -> None:
    """Delete the caches of earlier states of the same output, and of the least recently opened outputs."""
    output = folder.name.partition("-")[0]
    others = [each for each in folder.parent.iterdir() if each != folder and each.is_dir()]
    mine = [each for each in others if each.name.partition("-")[0] == output]
    rest = sorted((each for each in others if each not in mine), key=lambda each: -each.stat().st_mtime)
    for each in [*mine, *rest[_MAX_OUTPUTS - 1 :]]:
        shutil.rmtree(each, ignore_errors=True)


class ColumnCache:
    """The columns of a snapshot's pairs, in dataset order. Thread-safe."""

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self._snapshot = snapshot
        self._folder = folder
        self._open: dict[str, pa.ChunkedArray] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.touch()

    @property
    def folder(self) -> Path:
        """The folder with the files."""
        return self._folder

    def table(self, names: Iterable[str], on_step: OnStep = ignore_step) -> pa.Table:
        """These columns of all rows. Columns that are not in the cache are read first. Raises DatasetError."""
        wanted = list(names)
        if not self._open.keys() >= set(wanted):
            with self._lock:
                missing = [name for name in dict.fromkeys(wanted) if name not in self._open and not self._mapped(name)]
                if missing:
                    self._read(missing, on_step)
        return pa.table({name: self._open[name] for name in wanted})

    def derived(self, name: str, compute: Callable[[], pa.Array]) -> pa.ChunkedArray:
        """A column computed from other columns and stored like them, under a name that no other column has."""
        key = f"\0{name}"
        if key not in self._open and not self._mapped(key):
            array = compute()
            with self._lock:
                self._write(key, array)
        return self._open[key]

    def _path(self, name: str) -> Path:
        """The path of a column's file. Column names are untrusted, so the file is named after a hash of the name."""
        return self._folder / f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.arrow"

    def _mapped(self, name: str) -> bool:
        """Map a column's file. Returns False if there is none."""
        return self._map(name, self._path(name))

    def _map(self, name: str, path: Path) -> bool:
        try:
            with pa.memory_map(str(path)) as source:
                self._open[name] = pa.ipc.open_file(source).read_all().column(0)
        except (FileNotFoundError, pa.ArrowInvalid):
            return False
        return True

    def _read(self, names: Sequence[str], on_step: OnStep) -> None:
        """Read columns from all shards in one pass, with only a few shards in memory at once."""
        shards = self._snapshot.chunk.shards
        types = {name: _plain(self._snapshot.schema.field(name).type) for name in names}
        with self._new_files() as new, ExitStack() as stack:
            writers = {name: stack.enter_context(self._writer(new, name, types[name])) for name in names}
            tables = self._snapshot.map(lambda shard: self._snapshot.read(shard, names), shards)
            for number, table in enumerate(tables):
                on_step("reading columns", number, len(shards))
                for name in names:
                    for chunk in table[name].cast(types[name]).chunks:
                        writers[name].write_batch(pa.record_batch([chunk], names=["value"]))

    def _write(self, name: str, array: pa.Array) -> None:
        with self._new_files() as new, self._writer(new, name, array.type) as writer:
            writer.write_batch(pa.record_batch([array], names=["value"]))

    @contextmanager
    def _writer(self, new: dict[str, Path], name: str, kind: pa.DataType) -> Iterator[pa.ipc.RecordBatchFileWriter]:
        """Write one column to a temporary file. Adds its path to `new` at the end."""
        path = self._folder / f"{uuid4().hex}.tmp"
        try:
            with (
                pa.OSFile(str(path), "wb") as sink,
                pa.ipc.new_file(sink, pa.schema([pa.field("value", kind)])) as writer,
            ):
                yield writer
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        new[name] = path

    @contextmanager
    def _new_files(self) -> Iterator[dict[str, Path]]:
        """Map the files that were written in the block, then give them their final names. Meanwhile, another process
        that shows a newer state of the output may have deleted the folder; mapped files stay readable."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new: dict[str, Path] = {}
        yield new
        for name, path in new.items():
            if not self._map(name, path):
                raise DatasetError(f"{path} is gone; open the dataset again")
            with suppress(FileNotFoundError):
                path.replace(self._path(name))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
