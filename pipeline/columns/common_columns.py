"""Finds the columns that all datasets of a mixture have in common, with the same type and meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.columns.added_columns import AddedColumns
from pairmill.pipeline.columns.score_card import read_score_card
from pairmill.pipeline.dataset.chunks import Chunk
from pairmill.pipeline.dataset.footers import read_footer
from pairmill.schemas.pairs import score_column_names

DATASET = "dataset"
"""The column of a mixture that contains the name of each row's dataset."""
DATASET_FIELD = pa.field(DATASET, pa.string(), nullable=False)


@dataclass(frozen=True)
class NamedColumns:
    """The columns of one dataset of a mixture."""

    name: str
    """Name of the dataset."""
    schema: pa.Schema
    meanings: Mapping[str, str]
    """Column -> digest of the weights or the score on which its values depend, in addition to the row."""


@dataclass(frozen=True)
class CommonColumns:
    """The columns of a mixture."""

    schema: pa.Schema
    """The columns that all datasets have, in the order of the first dataset, then DATASET."""
    left_out: Mapping[str, str]
    """Column of some datasets -> why the mixture does not have it. A column DATASET of the datasets is always here,
    although the mixture has its own."""


def common_columns(sources: Sequence[NamedColumns]) -> CommonColumns:
    """The columns of a mixture of these datasets."""
    left_out: dict[str, str] = {}
    names = dict.fromkeys(name for source in sources for name in source.schema.names)
    for name in names:
        if (why := _problem(name, sources)) is not None:
            left_out[name] = why
    fields = [sources[0].schema.field(name) for name in names if name not in left_out]
    plain = [pa.field(field.name, field.type) for field in fields]  # nullable: other datasets may have nulls
    return CommonColumns(pa.schema([*plain, DATASET_FIELD]), left_out)


def _problem(name: str, sources: Sequence[NamedColumns]) -> str | None:
    if name == DATASET:
        return "a mixture has its own column with this name"
    without = [source.name for source in sources if name not in source.schema.names]
    if without:
        return f"{without[0]} does not have it"
    first = sources[0]
    for other in sources[1:]:
        types = [source.schema.field(name).type for source in (first, other)]
        if types[0] != types[1]:
            return f"it is {types[0]} in {first.name}, but {types[1]} in {other.name}"
        if first.meanings.get(name) != other.meanings.get(name):
            return f"{first.name} and {other.name} have it from different models or scores"
    return None


def meanings(chunk: Chunk, added: AddedColumns, first_alias: str | None) -> dict[str, str]:
    """The `meanings` for NamedColumns. `first_alias`: the model whose similarity is also the column `similarity`."""
    shard, found = chunk.shards[0], dict[str, str]()
    for path in (shard.pairs, *shard.columns):
        for model in read_footer(chunk.store, path).models:
            found |= dict.fromkeys(score_column_names(model.alias), model.space)
            if model.alias == first_alias:
                found["similarity"] = model.space
    for score in added.scores:
        found |= dict.fromkeys(score.columns, read_score_card(chunk.store, score.name).fingerprint)
    return found
