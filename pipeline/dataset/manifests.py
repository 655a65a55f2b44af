"""Reads, lists and deletes manifests, which `commit.py` writes. THE place where all other records are written and read.

A record is a small JSON file that describes other files or the work that is left. Every record except a shard's
manifest contains a checksum of its own content: otherwise, a changed byte that leaves valid JSON would go unnoticed. A
shard's manifest has none, because `verify` counts and hashes the shard's files anyway, and because its remedy would
fetch the shard from the web again, even for a digit that nobody reads. Records from before 0.2 have no checksum.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import SCHEMA_VERSION, ColumnsManifest, ShardManifest, manifest_name, parse_manifest_name

_Record = TypeVar("_Record", bound=BaseModel)

_READERS, _READ_AHEAD = 32, 256

_CHECKSUM = "record_blake2b"
"""The key of a record's checksum: BLAKE2b-128 of its other values, as JSON with sorted keys."""


class ManifestError(PairmillError, RuntimeError):
    """A manifest cannot be read. The message names the manifest and says what to do."""

    kind = FailureKind.SHARD


class DamagedManifestError(ManifestError):
    """A file has the name of a record but the wrong content: it is damaged, a copy, or not pairmill's.

    It is impossible to tell which, so the message tells users to move the file, never to delete it.
    """


class SupersededError(PairmillError, RuntimeError):
    """The generation of a shard that a run reads has been replaced and deleted by another run. Nothing is damaged."""

    kind = FailureKind.INPUT


def record_bytes(record: BaseModel, exclude_none: bool = False) -> bytes:
    """The content of a file with a record, including its checksum."""
    values = json.loads(record.model_dump_json(exclude_none=exclude_none))
    return json.dumps({**values, _CHECKSUM: _digest(values)}, indent=1, ensure_ascii=False).encode()


def read_record(store: Store, name: str, model: type[_Record], remedy: str | Callable[[], str]) -> _Record:
    """Read a file that contains a record. Raises FileNotFoundError, or DamagedManifestError with a message that ends in
    `remedy`, or in the result of calling it."""
    data = store.read(name)
    try:
        values = _parsed(data)
        digest = values.pop(_CHECKSUM, None)
        if digest not in (None, _digest(values)):
            raise ValueError("its checksum differs")
        return model.model_validate_json(json.dumps(values))  # keys in the order of the file
    except (ValueError, AttributeError, TypeError, RecursionError):
        advice = remedy if isinstance(remedy, str) else remedy()
        raise DamagedManifestError(f"{store.path(name)} is damaged or not pairmill's; {advice}") from None


def _parsed(data: bytes) -> Any:
    """Parse JSON. Raises ValueError or RecursionError, also for what `json` accepts but pairmill never writes: other
    encodings than UTF-8, and repeated keys."""
    return json.loads(data.decode(), object_pairs_hook=_without_repeated_keys)


def _without_repeated_keys(items: list[tuple[str, object]]) -> dict[str, object]:
    if len(values := dict(items)) < len(items):
        raise ValueError("a key is repeated")
    return values


def _canonical(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def _digest(values: Mapping[str, object]) -> str:
    """BLAKE2b-128 of the values of a record."""
    return hashlib.blake2b(_canonical(values), digest_size=16).hexdigest()


def read_columns_manifest(store: Store, alias: str, name: str) -> ColumnsManifest:
    """Read the record of an added model's columns for one shard. Raises ManifestError or FileNotFoundError."""
    path = f"columns/{alias}/manifests/{name}"
    return read_record(store, path, ColumnsManifest, see_verify(store))


def see_verify(store: Store) -> str:
    """Advice for a problem with added columns, whose remedy is a command that only `verify` can name."""
    return f"to see the command that repairs it, run: {pairmill_command('verify', store.root)}"


def read_manifest(store: Store, name: str) -> ShardManifest:
    """Read a manifest by its file name. Raises ManifestError if it is damaged or has a newer schema version."""
    try:
        data = _parsed(store.read(f"manifests/{name}"))
        return _checked_manifest(store, name, data)
    except (ValueError, AttributeError, RecursionError):
        where = store.path(f"manifests/{name}")
        remedy = "move it elsewhere, and the next build rebuilds its shard"
        raise DamagedManifestError(f"{where} is damaged or not pairmill's; {remedy}") from None


def _checked_manifest(store: Store, name: str, data: Mapping[str, object]) -> ShardManifest:
    version = data.get("schema_version", 0)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ManifestError(f"{store.path(f'manifests/{name}')} was written by a newer pairmill; update to read it")
    manifest = ShardManifest.model_validate(data)
    if manifest.name != name:  # otherwise another shard's files would be deleted
        where = store.path(f"manifests/{name}")
        raise DamagedManifestError(f"{where} is a copy of the manifest {manifest.name}; move the copy elsewhere")
    return manifest


def committed(store: Store, folder: str = "manifests") -> dict[int, int]:
    """Shard -> highest generation, from the names of the manifests in the folder."""
    return dict(sorted(_generations(store, folder)))  # the last generation of each shard wins


def manifests_of(store: Store, folder: str = "manifests") -> dict[int, list[int]]:
    """Shard -> all generations that have a manifest in the folder, ascending."""
    found: dict[int, list[int]] = {}
    for shard, generation in sorted(_generations(store, folder)):
        found.setdefault(shard, []).append(generation)
    return found


def _generations(store: Store, folder: str) -> Iterator[tuple[int, int]]:
    """(shard, generation) of every manifest in the folder."""
    for name in store.list(folder):
        with suppress(ValueError):  # not a manifest; perhaps a file that a file browser created
            yield parse_manifest_name(name)


def read_manifests(store: Store) -> Iterator[ShardManifest]:
    """The newest manifest of every committed shard, in shard order. On S3, reads are concurrent to hide latency."""
    shards = sorted(committed(store).items())
    with ThreadPoolExecutor(_READERS if store.remote else 1) as readers:
        for start in range(0, len(shards), _READ_AHEAD):
            yield from readers.map(partial(_read_newest, store), shards[start : start + _READ_AHEAD])


def superseding(store: Store, shard: int, generation: int) -> ShardManifest | None:
    """The newest manifest of a shard; None if that is this generation. Another run may have committed a newer
    one, and dropped this one, at any time."""
    newest = committed(store).get(shard, generation)
    return _read_newest(store, (shard, newest)) if newest > generation else None


@contextmanager
def may_be_superseded(store: Store, shard: int, generation: int) -> Iterator[None]:
    """Raise SupersededError instead of FileNotFoundError if a file of this generation is missing because a newer one
    exists: a retry may run beside a command that adds columns."""
    try:
        yield
    except FileNotFoundError:
        if superseding(store, shard, generation) is None:
            raise
        raise SupersededError(
            f"another run, such as a retry, has replaced shard {shard} since this run began; when it has ended, run "
            "the same command again"
        ) from None


def _read_newest(store: Store, found: tuple[int, int]) -> ShardManifest:
    """The manifest that was found for a (shard, generation), or the one that has superseded it since."""
    try:
        return read_manifest(store, manifest_name(*found))
    except FileNotFoundError:
        if (newer := superseding(store, *found)) is None:
            raise
        return newer


def drop_superseded(store: Store) -> None:
    """Delete superseded generations, manifests last. Files that the newest generation still uses are kept.

    Another run may do the same at the same time.
    """
    newest = committed(store)
    for shard, generation in _generations(store, "manifests"):
        if generation == newest[shard]:
            continue
        name = manifest_name(shard, generation)
        with suppress(FileNotFoundError):  # the other run has dropped this generation
            files = {file.path for file in read_manifest(store, name).files.values()}
            kept = {file.path for file in _read_newest(store, (shard, newest[shard])).files.values()}
            for path in files - kept:
                store.delete(path)
            store.delete(f"manifests/{name}")
