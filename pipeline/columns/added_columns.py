"""Lists the models and scores that were added to a dataset in `columns/`, and which shards have them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pairmill.pipeline.columns.commands import command_to_continue, without_card
from pairmill.pipeline.columns.score_card import SCORE_CARD, read_score_card
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed
from pairmill.schemas.pairs import score_column_names

MODEL_CARD = "model.json"


@dataclass(frozen=True, slots=True)
class ColumnSet:
    """The columns in one folder of `columns/`."""

    store: Store
    name: str
    """Name of the folder: the alias of a model or the name of a score."""
    kind: Literal["model", "score"]
    columns: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that adds the columns to the shards that lack them. May read the card."""
        return command_to_continue(self.store, self.name, self.kind)


@dataclass(frozen=True, slots=True)
class AddedColumns:
    """The models and scores that were added to a dataset."""

    complete: tuple[ColumnSet, ...]
    """Models and scores whose columns exist for the current generation of every shard."""
    incomplete: tuple[ColumnSet, ...]
    """Models and scores that some shards lack, because those shards are newer or the command was interrupted."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the complete models and scores."""
        return tuple(each.name for each in self.complete)

    @property
    def models(self) -> tuple[str, ...]:
        """Aliases of the complete models, which have embeddings."""
        return tuple(each.name for each in self.complete if each.kind == "model")

    @property
    def scores(self) -> tuple[ColumnSet, ...]:
        """The complete scores."""
        return tuple(each for each in self.complete if each.kind == "score")

    def with_columns(self, columns: Collection[str]) -> tuple[str, ...]:
        """Names of the complete models and scores that have any of these columns."""
        return tuple(each.name for each in self.complete if not set(columns).isdisjoint(each.columns))

    def missing(self, column: str) -> str | None:
        """Why a column of an incomplete model or score cannot be read. None for any other column."""
        for each in self.incomplete:
            if column in each.columns:
                return f"some shards lack the {each.kind} {each.name!r}; run: {each.command}"
        return None


NOTHING_ADDED = AddedColumns((), ())


def columns_done(store: Store, name: str) -> dict[int, int]:
    """Shard -> highest generation with the columns of this model or score."""
    return committed(store, f"columns/{name}/manifests")


def added_columns(store: Store, generations: Mapping[int, int]) -> AddedColumns:
    """The models and scores that were added to these shards (shard -> generation). Raises ManifestError if the card of
    a score is damaged."""
    added = list(column_sets(store))
    is_complete = [generations.items() <= columns_done(store, each.name).items() for each in added]
    return AddedColumns(
        tuple(each for each, complete in zip(added, is_complete, strict=True) if complete),
        tuple(each for each, complete in zip(added, is_complete, strict=True) if not complete),
    )


def column_sets(store: Store) -> Iterator[ColumnSet]:
    """The columns of every folder in `columns/` that has the card of a model or a score. Raises ManifestError if the
    card of a score is damaged."""
    for name in store.folders("columns"):
        if store.exists(f"columns/{name}/{MODEL_CARD}"):
            yield ColumnSet(store, name, "model", tuple(score_column_names(name)))
        elif store.exists(f"columns/{name}/{SCORE_CARD}"):
            columns = tuple(column.name for column in read_score_card(store, name).columns)
            yield ColumnSet(store, name, "score", columns)


def lost_cards(store: Store) -> Iterator[str]:
    """The problem with each folder in `columns/` that has values but no card, so that nothing can read them, with its
    remedy."""
    for name in store.folders("columns"):
        if any(store.exists(f"columns/{name}/{card}") for card in (MODEL_CARD, SCORE_CARD)):
            continue
        if store.list(f"columns/{name}/manifests"):  # the card was written before them
            where = store.path(f"columns/{name}")
            yield f"{where} has neither {MODEL_CARD} nor {SCORE_CARD}; {without_card(store, name)}"
