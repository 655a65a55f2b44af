"""Defines the batch that stages pass on: a shard's rows, plus information about the whole shard."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import pyarrow as pa

from pairmill.schemas.manifest import Shard, manifest_name, shards_from_table


@dataclass(frozen=True, slots=True)
class ScoreContract:
    """How one model's scores were computed, in enough detail to reproduce them. Stored in every Parquet footer."""

    alias: str
    name: str
    pretrained: str | None
    weights_sha256: str
    preprocessing: dict[str, object]
    """open_clip's settings: size, mean, std, interpolation, resize_mode."""
    dtype: str
    context_length: int
    """Captions are truncated to this many tokens."""
    pixels: str = ""
    """Which version of the picture the model saw."""
    quick_gelu: bool = False
    """As in ModelConfig. In files from before 0.2, False whatever the tag of the weights says."""

    @property
    def space(self) -> str:
        """Equal for models whose embeddings can be compared: the digest of their weights, and their activation."""
        is_quick = self.quick_gelu or self.name.endswith("-quickgelu")  # open_clip's names for it
        return f"{self.weights_sha256}{' with QuickGELU' if is_quick else ''}"


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """Information about a shard that is being processed."""

    shard: Shard
    generation: int | None = None
    """Generation that a retry or an added model is based on. None: the shard is built for the first time."""
    rows_in: int = 0
    """Number of rows that the read stage returned. Later stages must not change the number of rows."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage -> wall seconds."""
    contracts: tuple[ScoreContract, ...] = ()

    @property
    def base_manifest(self) -> str:
        """File name of the manifest that a retry or an added model is based on."""
        if self.generation is None:
            raise ValueError(f"shard {self.shard.shard} does not build on a committed generation")
        return manifest_name(self.shard.shard, self.generation)

    def to_json(self) -> str:
        """Serialize for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse the result of `to_json`. Raises TypeError or ValueError for anything else."""
        values = json.loads(text)
        shard = Shard(**values.pop("shard"))
        contracts = tuple(ScoreContract(**contract) for contract in values.pop("contracts"))
        return cls(shard, contracts=contracts, **values)


@dataclass(frozen=True)
class ShardBatch:
    """A shard's rows. After the read stage, their number and order never change: rejected rows stay in the table."""

    info: BatchInfo
    table: pa.Table
    """Empty before the read stage."""

    def with_table(self, table: pa.Table) -> Self:
        """The same shard with another table."""
        return replace(self, table=table)

    def updated(self, changes: Self) -> Self:
        """This batch, updated with the columns and the info of `changes`, which has the same rows in the same order."""
        table = self.table
        for field_, column in zip(changes.table.schema, changes.table.columns, strict=True):
            index = table.schema.get_field_index(field_.name)
            table = table.append_column(field_, column) if index < 0 else table.set_column(index, field_, column)
        return replace(self, info=changes.info, table=table)

    def with_info(self, **changes: Any) -> Self:
        """The same rows with some of the info changed."""
        return replace(self, info=replace(self.info, **changes))


def planned_batches(shards: pa.Table) -> Iterator[ShardBatch]:
    """One empty batch per shard. `shards`: PLAN_SCHEMA, plus `generation` for a retry or an added model."""
    generations = shards["generation"].to_pylist() if "generation" in shards.column_names else [None] * shards.num_rows
    for row, generation in enumerate(generations):
        (shard,) = shards_from_table(shards.slice(row, 1))
        yield ShardBatch(BatchInfo(shard, generation), pa.table({}))
