"""Captures the state of an output folder when it is opened: committed shards, each in its newest generation."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import AddedColumns, added_columns
from pairmill.pipeline.columns.pairs_reader import PairsReader
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.chunks import Chunk, ShardFiles, describe
from pairmill.pipeline.dataset.integrity import DamagedFileError, MissingFileError
from pairmill.pipeline.dataset.manifests import SupersededError, committed, read_manifest
from pairmill.pipeline.dataset.withdrawn import readable_shards
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.manifest import Shard, ShardManifest, manifest_name, shards_from_table

_REMOTE_READERS, _LOCAL_READERS = 16, 2
"""Arrow has its own threads; for local files, additional threads would only wait for each other."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class DatasetError(PairmillError, LookupError):
    """The dataset has changed, or has no such column, row, picture or subset. The message says what to do."""

    kind = FailureKind.INPUT


@dataclass(frozen=True)
class Snapshot:
    """The shards of an output folder, and how to read them."""

    store: Store
    plan: Plan
    generations: Sequence[tuple[int, int]]
    """(shard, generation) in shard order; at least one."""
    added: AddedColumns

    @classmethod
    def of(cls, store: Store) -> "Snapshot":
        """Take a snapshot. Raises PlanError if there is no plan, DatasetError if no shard is committed, and
        UnfinishedPurgeError if a purge has not finished."""
        return cls._of(store, readable_shards(store))

    @classmethod
    def for_purge(cls, store: Store) -> "Snapshot":
        """Like `of`, but works during an unfinished purge."""
        return cls._of(store, committed(store))

    @classmethod
    def _of(cls, store: Store, generations: Mapping[int, int]) -> "Snapshot":
        plan = load_plan(store)
        if not generations:
            raise DatasetError(f"{store.root} has no finished shard yet")
        return cls(store, plan, sorted(generations.items()), added_columns(store, generations))

    def of_shards(self, numbers: Collection[int]) -> "Snapshot":
        """A snapshot of only some of the shards, which can have models and scores that the others lack."""
        generations = [each for each in self.generations if each[0] in numbers]
        if not generations:
            return self  # a subset of other shards, which is outdated
        return replace(self, generations=generations, added=added_columns(self.store, dict(generations)))

    @property
    def unfinished_shards(self) -> int:
        """The number of planned shards that are not committed."""
        return self.plan.num_shards - len(self.generations)

    @cached_property
    def schema(self) -> pa.Schema:
        """All columns: those of `pairs/`, then those of added models and scores."""
        with self.errors():
            chunks = (describe(self.store, self.generations[:1], names) for names in ((), self.added.names))
            return pa.unify_schemas([chunk.schema().remove_metadata() for chunk in chunks])

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """The schema of some columns."""
        return pa.schema([self.schema.field(name) for name in columns])

    @cached_property
    def chunk(self) -> Chunk:
        """The files of all shards."""
        with self.errors():
            return describe(self.store, self.generations, self.added.names)

    def manifests(self) -> Iterator[ShardManifest]:
        """The manifests of all shards, in order."""
        yield from self.map(self.manifest, self.generations)

    def manifest(self, shard: tuple[int, int]) -> ShardManifest:
        """The manifest of one (shard, generation)."""
        with self.errors():
            return read_manifest(self.store, manifest_name(*shard))

    def planned(self, shard: ShardFiles) -> Shard:
        """The input rows that a shard was made from."""
        return shards_from_table(self.plan.shards.slice(shard.shard, 1))[0]

    def read(self, shard: ShardFiles, columns: Sequence[str]) -> pa.Table:
        """These columns of all rows of a shard."""
        with self.errors():
            table = self.chunk.read(shard, frozenset(columns))
        return pa.Table.from_arrays([table[name] for name in columns], schema=self.schema_of(columns))

    def pairs_reader(self) -> PairsReader:
        """A reader of the pictures. Close it after use."""
        return PairsReader(self.store, self.plan.mapping, self.plan.job)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The result for each item, in order. Only a few calls run ahead, so memory use stays small."""
        readers = _REMOTE_READERS if self.store.remote else _LOCAL_READERS
        remaining = iter(items)
        with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
            pending = deque(pool.submit(function, item) for item in islice(remaining, readers))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors about missing or damaged files into a DatasetError."""
        try:
            yield
        except (DamagedFileError, MissingFileError) as error:
            raise DatasetError(str(error)) from error
        except SupersededError as error:
            raise DatasetError(f"{self.store.root} has changed since it was opened; try again") from error
        except PairmillError:
            raise
        except FileNotFoundError as error:
            name = error.filename or ("a file" if error.errno else error)  # Arrow sets the errno, but no file name
            raise DatasetError(
                f"{name} is gone: {self.store.root} has changed since it was opened; try again"
            ) from error
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(
                f"{self.store.root} cannot be read ({error}); for details, run "
                f"`{pairmill_command('verify', self.store.root)}`"
            ) from error
