"""Chooses the caption of each pair for exports and the feed: the original, a model's caption, or the better of both."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.columns.added_columns import AddedColumns
from pairmill.pipeline.columns.score_card import read_score_card
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import FailureKind, PairmillError
from pairmill.schemas.pairs import score_column_names

ORIGINAL, BEST = "original", "best"
CAPTIONS = ("caption", "caption_clean")
"""The columns into which the chosen caption is written."""
_SCORE = "'caption_model: {model: ..., similarity: ALIAS}'"


class CaptionChoiceError(PairmillError, ValueError):
    """The dataset does not have the chosen captions. The message says what to do."""

    kind = FailureKind.JOB


def similarity_column(name: str) -> str:
    """Name of the column with the similarities of the captions in the column `name`."""
    return f"{name}_similarity"


@dataclass(frozen=True)
class WrittenCaptions:
    """A column of captions written by a model."""

    column: str
    alias: str | None
    """Alias of the model that computed their similarities. None: they have no similarities."""


@dataclass(frozen=True)
class CaptionChoice:
    """Replaces original captions with written ones. Contains only plain values."""

    written: tuple[WrittenCaptions, ...]
    """The captions of one score. With `is_best`, the captions of all scores that have similarities, all computed by the
    same model."""
    is_best: bool
    aliases: tuple[str, ...]
    """The aliases of all models of the dataset, in order."""
    ignored: tuple[str, ...] = ()
    """The columns that `best` does not compare, because they were added after the output was begun."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that `apply` needs in addition to `caption` and `caption_clean`."""
        names = {each.column for each in self.written}
        for each in self.written:
            if each.alias is not None:
                names |= {similarity_column(each.column), score_column_names(each.alias).similarity}
        return frozenset(names)

    def apply(self, rows: pa.Table) -> pa.Table:
        """The rows with the chosen captions in `caption` and `caption_clean`, if the table has these columns.

        A written caption replaces the original if it is not null. With `is_best`, it must also have a higher similarity
        than the original, and neither similarity may be null. In rows with a new caption, the similarity column of the
        model that scored the caption gets the new similarity, and the similarity columns of other models become null.
        """
        best = rows[score_column_names(self.written[0].alias or "").similarity] if self.is_best else None
        for each in self.written:
            caption = rows[each.column]
            similarity = rows[similarity_column(each.column)] if each.alias is not None else None
            is_taken = pc.is_valid(caption)
            if best is not None:
                is_taken = pc.and_(is_taken, pc.fill_null(pc.greater(similarity, best), False))
                best = pc.if_else(is_taken, similarity, best)
            changed = dict.fromkeys(CAPTIONS, caption) | self._similarities(each, similarity)
            for index, name in enumerate(rows.column_names):
                if name in changed:
                    field = rows.schema.field(index)
                    new = pa.scalar(None, field.type) if changed[name] is None else changed[name].cast(field.type)
                    rows = rows.set_column(index, field.with_nullable(True), pc.if_else(is_taken, new, rows[name]))
        return rows

    def _similarities(
        self, written: WrittenCaptions, similarity: pa.ChunkedArray | None
    ) -> dict[str, pa.ChunkedArray | None]:
        """Similarity column -> its values for these captions, or None if they are unknown."""
        known = {alias: similarity if alias == written.alias else None for alias in self.aliases}
        columns = {score_column_names(alias).similarity: values for alias, values in known.items()}
        return {**columns, "similarity": known.get(self.aliases[0])} if self.aliases else columns


def caption_choice(
    store: Store, added: AddedColumns, caption: str, aliases: Sequence[str], begun_with: Collection[str] = ()
) -> CaptionChoice | None:
    """The choice that `caption` names: a score or `best`; None for `original`. `begun_with`: the columns that `best`
    compared when the output was begun; if there are any, `best` ignores others. Raises CaptionChoiceError if the
    dataset does not have these captions."""
    if caption == ORIGINAL:
        return None
    known = {each.column: each for each in _written(store, added)}
    if caption != BEST:
        if caption not in known:
            problem = added.missing(caption) or f"{store.root} has no captions {caption!r}"
            raise CaptionChoiceError(f"caption: {problem}; it has: {', '.join([ORIGINAL, *known])}")
        return CaptionChoice((known[caption],), False, tuple(aliases))
    scored = tuple(each for each in known.values() if each.alias is not None)
    compared = tuple(each for each in scored if each.column in begun_with) or scored
    if len({each.alias for each in compared}) != 1:
        found = ", ".join(f"{each.column} by {each.alias}" for each in compared)
        add = f"{pairmill_command('score', store.root)} NAME --score {_SCORE}"
        raise CaptionChoiceError(
            f"caption: best compares similarities by one model, but {store.root} has "
            + (f"{found}; choose one of them" if found else f"no written captions with a similarity; run `{add}`")
        )
    ignored = tuple(each.column for each in scored if each not in compared)
    return CaptionChoice(compared, True, tuple(aliases), ignored)


def _written(store: Store, added: AddedColumns) -> list[WrittenCaptions]:
    cards = [read_score_card(store, each.name) for each in added.scores]
    return [
        WrittenCaptions(card.name, card.score.caption_model.similarity)
        for card in cards
        if card.score.caption_model is not None
    ]
