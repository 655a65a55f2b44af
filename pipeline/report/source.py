"""Reads the columns of a sample of shards and summarizes them, with or without a subset."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.dataset.parquet import read_table
from pairmill.pipeline.dataset.subset import NOT_DROPPED, DropStep, Weights, current_generations, read_shards
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report.sample import Totals, sampled
from pairmill.pipeline.report.summary import PAIR_COLUMNS, REJECT_COLUMNS, Bools, Group, Ref, Summary, summarize
from pairmill.pipeline.select.subset_diff import NOT_SEEN
from pairmill.schemas.subset import Subset

MAX_SCORES = 8
"""Maximum number of score columns with charts."""
_LANGUAGES = ("language", "lang", "caption_language", "source_language", "source_lang")
_NO_SCORES = ("fetch_s",)


@dataclass(frozen=True)
class ScoreColumns:
    """The numeric columns for which a threshold makes sense."""

    shown: Sequence[str]
    """The models' similarities come first."""
    others: Sequence[str]
    """The columns beyond MAX_SCORES."""


@dataclass
class Source:
    """A dataset, and the shards of it that a report reads."""

    snapshot: Snapshot
    totals: Totals
    positions: Sequence[int]
    """Positions of the shards to read, in order."""
    subset: Subset | None = None
    other: Subset | None = None
    """The subset to compare with."""
    drop_steps: dict[str, dict[int, DropStep]] = field(default_factory=dict)
    """Name of a subset -> position of a shard -> DropStep. Shards that are newer than the subset are absent."""
    weights: list[Weights] = field(default_factory=list)
    """The weights of the rows of `subset` in the shards to read, if it has weights; parts of shape (rows,)."""

    @classmethod
    def of(
        cls, snapshot: Snapshot, max_rows: int, subset: Subset | None = None, other: Subset | None = None
    ) -> "Source":
        """Choose shards. Raises SubsetError if a subset is older than the dataset."""
        totals = Totals()
        source = cls(snapshot, totals, sampled(snapshot.manifests(), max_rows, totals), subset, other)
        for each in filter(None, (subset, other)):
            source.drop_steps[each.name] = source._drop_steps(each)
        return source

    def _drop_steps(self, subset: Subset) -> dict[int, DropStep]:
        store = self.snapshot.store
        current_generations(store, subset)
        wanted = {self.snapshot.chunk.shards[position].shard: position for position in self.positions}
        found = {}
        for each in read_shards(store, subset):
            if each.shard in wanted:
                found[wanted[each.shard]] = each.drop_step
                if subset is self.subset and each.weights is not None:
                    self.weights.append(each.weights)
        return found

    def is_chosen(self, ref: Ref) -> bool | None:
        """Whether a row is in the subset; None without a subset or for a reject."""
        if self.subset is None or ref.file == "rejects":
            return None
        steps = self.drop_steps[self.subset.name].get(ref.position)
        return steps is not None and bool(steps[ref.row] == NOT_DROPPED)

    def in_subset(self, subset: Subset, refs: Sequence[tuple[int, int]]) -> Bools:
        """Whether each pair is in the subset; shape (pairs,). `refs`: (position of a shard, number of its pairs)."""
        parts = [self._steps_of(subset, position, rows) == NOT_DROPPED for position, rows in refs]
        return np.concatenate([np.empty(0, np.bool_), *parts])

    @property
    def scores(self) -> ScoreColumns:
        """The score columns."""
        schema = self.snapshot.schema
        own = [name for name in schema.names if name.startswith("similarity_")]
        floats = [field.name for field in schema if pa.types.is_floating(field.type) and field.name not in _NO_SCORES]
        first = own or [name for name in floats if name == "similarity"]
        names = [*first, *(name for name in floats if name not in first and name != "similarity")]
        return ScoreColumns(names[:MAX_SCORES], names[MAX_SCORES:])

    @property
    def language(self) -> str | None:
        """The column with languages; None if there is none."""
        names = {name.lower(): name for name in self.snapshot.schema.names}
        found = (names[name] for name in _LANGUAGES if name in names)
        return next((name for name in found if pa.types.is_string(self.snapshot.schema.field(name).type)), None)

    def summary(self, on_step: OnStep = ignore_step) -> Summary:
        """The summary of all shards to read."""
        total = Summary()
        for number, part in enumerate(self.summaries()):
            on_step("reading shards", number + 1, len(self.positions))
            total.add(part)
        return total

    def summaries(self) -> Iterator[Summary]:
        """The summary of each shard to read."""
        scores, language = list(self.scores.shown), self.language

        def one(position: int) -> Summary:
            extra = [*scores, *filter(None, [language])]
            shard = self.snapshot.chunk.shards[position]
            pairs = self.snapshot.read(shard, list(dict.fromkeys([*PAIR_COLUMNS, *extra])))
            rejects = self._rejects(position, language)
            labels, chosen = self._labels(position, pairs.num_rows)
            return summarize(position, pairs, rejects, scores, language, chosen, labels, self.totals.custom_rules)

        return self.snapshot.map(one, self.positions)

    def _rejects(self, position: int, language: str | None) -> pa.Table | None:
        shard = self.snapshot.chunk.shards[position]
        manifest = self.snapshot.manifest((shard.shard, shard.generation))
        if "rejects" not in manifest.files:
            return None
        with self.snapshot.errors():
            columns = [*REJECT_COLUMNS, *filter(None, [language])]
            return read_table(self.snapshot.store, manifest.files["rejects"].path, columns)

    def _labels(self, position: int, rows: int) -> tuple[Mapping[Group, Bools], Bools | None]:
        """(group -> whether each pair of a shard belongs to it, whether each pair is in the subset)."""
        if self.subset is None:
            return {}, None
        mine = self._steps_of(self.subset, position, rows)
        chosen = mine == NOT_DROPPED
        labels = {Group("step", str(step)): mine == step for step in np.unique(mine[mine >= 0]).tolist()}
        if self.other is not None:
            theirs = self._steps_of(self.other, position, rows) == NOT_DROPPED
            labels[Group("only", self.subset.name)] = chosen & ~theirs
            labels[Group("only", self.other.name)] = theirs & ~chosen
            labels[Group("both")] = chosen & theirs
        return labels, chosen

    def _steps_of(self, subset: Subset, position: int, rows: int) -> DropStep:
        """The step that dropped each pair of a shard; NOT_SEEN for all pairs if the subset was made without the
        shard."""
        found = self.drop_steps[subset.name].get(position)
        return np.full(rows, NOT_SEEN, np.int8) if found is None else found
