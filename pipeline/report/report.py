"""Makes a report: reads a sample of shards, chooses rows, reads their pictures and renders the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.losses import in_words
from pairmill.pipeline.dataset.manifests import committed
from pairmill.pipeline.dataset.subset import read_subset, subset_names
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import about, funnel, grids, sections
from pairmill.pipeline.report.axis import four_digits
from pairmill.pipeline.report.balances import balance_tables
from pairmill.pipeline.report.clusters import largest_clusters
from pairmill.pipeline.report.comparison import Summarized, compare_datasets, compare_subsets
from pairmill.pipeline.report.grids import Grid
from pairmill.pipeline.report.leaks import leak_groups
from pairmill.pipeline.report.page import Fact, GridGroup, Page, render
from pairmill.pipeline.report.rows import Rows, read_rows
from pairmill.pipeline.report.sample import MAX_ROWS, sample_note
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Group, Summary
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.source.planned import Plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import Subset

MAX_REASONS = 30
"""Maximum number of grids under one heading."""
MAX_PAGE_BYTES = 9_900_000
_ROOM_FOR_REMARKS = 100_000
"""Bytes reserved for the remarks that replace pictures."""


@dataclass(frozen=True)
class Report:
    """A finished page."""

    html: str
    rows: int
    """Number of rows in the dataset, without withdrawn ones."""
    rows_read: int
    """Number of rows in the shards that were read."""


def make_report(
    store: Store,
    subset: str | None = None,
    other: str | Store | None = None,
    max_rows: int = MAX_ROWS,
    on_step: OnStep = ignore_step,
    now: datetime | None = None,
) -> Report:
    """Make the report of an output folder, finished or not.

    Args:
        store: The output folder.
        subset: Name of a subset to report on.
        other: Another subset, or another output folder, to compare with.
        max_rows: Maximum number of rows to read; at least one shard is always read.
        on_step: Called with the number of shards that have been read.
        now: The time to print.

    Raises:
        PlanError: The folder is not the output of a job.
        SubsetError: There is no such subset, or it is older than the dataset.
        JobError: `other` is a subset, but `subset` is None.
    """
    store.check_access()
    written = (now or datetime.now(UTC)).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
    plan = load_plan(store)
    if not committed(store):
        return Report(render(_empty_page(store, plan, written)), 0, 0)
    one = read_subset(store, subset) if subset else None
    two = read_subset(store, other) if isinstance(other, str) else None
    if two and one is None:
        raise JobError(f"compare: {other} is a subset; also specify the subset to compare it with (--subset NAME)")
    source = Source.of(Snapshot.of(store), max_rows, one, two)
    return _Maker(source, source.summary(on_step), written).report(
        other if isinstance(other, Store) else None, max_rows
    )


def compared_with(store: Store, name: str) -> str | Store:
    """What `--compare NAME` means: the subset of the dataset with this name, or else another output folder.

    Raises JobError if it is neither.
    """
    names = subset_names(store)
    if name in names:
        return name
    other = Store(name, store.files.s3)
    other.check_access()
    if not other.list("plan"):
        has = ", ".join(names) or "none"
        raise JobError(f"compare: {name!r} is neither a subset of {store.root} (it has: {has}) nor an output folder")
    return other


class _Maker:
    """Makes a page from a summary."""

    def __init__(self, source: Source, summary: Summary, written: str) -> None:
        self._source, self._summary, self._written = source, summary, written
        self._snapshot, self._subset, self._totals = source.snapshot, source.subset, source.totals
        self._scores = [name for name in source.scores.shown if np.isfinite(summary.number(name)).any()]
        self._score = next((name for name in self._scores if name.startswith("similarity")), None)
        self._models = about.models_of(self._snapshot)
        self._thresholds = self._find_thresholds()
        self._time_line = sections.time_line(summary)
        subset = self._subset
        self._series = ("kept", "dropped") if subset is None else (f"in {subset.name}", f"not in {subset.name}")

    def _find_thresholds(self) -> dict[str, float]:
        if self._subset is not None:
            return about.subset_thresholds(self._subset, self._scores)
        return about.build_thresholds(self._snapshot.plan.job.rules, self._snapshot.added.models, self._scores)

    def report(self, other: Store | None, max_rows: int) -> Report:
        groups = list(self._grid_groups())
        comparison = None
        if self._source.other is not None:
            comparison = compare_subsets(self._source, self._summary, self._score)
        elif other is not None:
            comparison = compare_datasets(
                Summarized(self._source, self._summary, self._score, self._series), other, max_rows
            )
        shown = [grid for group in groups for grid in group.grids] + list(comparison.grids if comparison else [])
        leaks = list(leak_groups(self._source)) if self._subset else []
        refs = [ref for grid in shown for ref in grid.refs] + [twins.ref for leak in leaks for twins in leak.pairs]
        rows = read_rows(self._snapshot, refs, self._source.is_chosen)
        page = replace(self._page(groups), comparison=comparison, leaks=leaks)
        return Report(_within_limit(page, rows), self._totals.stored, self._summary.rows)

    def _page(self, groups: Sequence[GridGroup]) -> Page:
        summary, totals, subset = self._summary, self._totals, self._subset
        funnels = [funnel.of_dataset(totals), *([funnel.of_subset(subset)] if subset else [])]
        tables = [
            sections.aspects(summary),
            sections.counts("Format of the original file", summary.formats),
            sections.counts(f"Language, from the column {self._source.language}", summary.languages),
        ]
        more = len(summary.hosts) - sections.MAX_HOSTS
        return Page(
            eyebrow="pairmill report",
            title=_title(self._snapshot.store, subset),
            written=self._written,
            facts=list(self._facts()),
            details=list(self._details()),
            notes=list(self._notes()),
            sampled=sample_note(summary.rows, totals),
            funnels=funnels,
            series=self._series,
            score=self._score,
            scores=sections.score_panels(summary, self._scores, self._thresholds, totals.pairs, self._series),
            grid_groups=groups,
            shapes=[*sections.weight_chart(self._source.weights), *sections.shape_charts(summary, self._series)],
            counts=[table for table in tables if table],
            balances=list(balance_tables(subset)) if subset else [],
            hosts=sections.hosts(summary),
            more_hosts=("at least " if summary.names_forgotten else "") + counted(more, "more host")
            if more > 0
            else "",
            time_line=self._time_line,
            no_scores="No pair has a score." if self._models else "No model ran, so there are no scores to show.",
            empty="" if totals.rows else "The finished shards have no rows.",
        )

    def _facts(self) -> Iterator[Fact]:
        totals, subset = self._totals, self._subset
        yield Fact("rows in", f"{totals.rows:,}")
        yield Fact("pairs", f"{totals.pairs:,}")
        yield Fact("kept", f"{totals.kept:,}")
        yield Fact("share kept", f"{totals.kept / max(totals.rows, 1):.1%}")
        if subset is not None:
            yield Fact(f"in {subset.name}", f"{subset.rows_out:,}")
            if subset.weight_sum is not None:
                yield Fact("samples per epoch", f"{subset.weight_sum:,.0f}")
            for repeat in filter(None, (report.repeat for report in subset.reports)):
                yield Fact("highest weight", f"{repeat.highest:,.4g}")
                yield Fact("rows below weight 1", f"{repeat.rows_below_one:,}")
        for name, threshold in self._thresholds.items():
            yield Fact(f"threshold of {name.removeprefix('similarity_')}", four_digits(threshold))

    def _details(self) -> Iterator[Fact]:
        plan, totals = self._snapshot.plan, self._totals
        yield from _source_facts(self._snapshot.store, plan)
        for model in self._models:
            weights = f", weights {model.weights_sha256[:12]}" if model.weights_sha256 else ""
            yield Fact(f"model {model.alias}", f"{model.name}{weights}{f', {model.dtype}' if model.dtype else ''}")
        if not self._models:
            yield Fact("model", "none")
        yield Fact("shards", f"{totals.shards:,} of {plan.num_shards:,} finished")
        if line := self._time_line:
            yield Fact("fetched", f"{line.first} to {line.last}")
        if totals.versions:
            yield Fact("made with", "pairmill " + ", ".join(sorted(totals.versions)))
        if self._subset is not None:
            yield Fact("starts from", "kept rows" if self._subset.rows == "kept" else "all pairs")

    def _notes(self) -> Iterator[str]:
        missing = self._snapshot.plan.num_shards - self._totals.shards
        if missing:
            yield f"{counted(missing, 'planned shard')} not finished yet: the report shows the finished ones."
        if others := self._source.scores.others:
            yield f"{counted(len(others), 'more numeric column')} without a chart: {', '.join(others)}."
        if self._summary.names_forgotten:
            yield "There are too many hosts or languages to count all of the rare ones."

    def _grid_groups(self) -> Iterator[GridGroup]:
        chosen = list(grids.by_score(self._summary, self._score, self._threshold, only_chosen=self._subset is not None))
        yield GridGroup("Pairs", "Select a picture to see it larger, with all its columns.", _with_rows(chosen))
        if self._subset is not None:
            yield GridGroup("What each step dropped", "Chosen by a hash.", _with_rows(self._steps(self._subset)))
            found = _with_rows(list(largest_clusters(self._source)))
            about_them = "Counts are exact; pictures come from the shards that were read."
            yield GridGroup("Largest groups of duplicates", about_them, found)
        reasons = _with_rows(self._reasons())
        yield GridGroup(
            "Why rows were lost", "A few rows for each reason, chosen by a hash, with the evidence.", reasons
        )

    @property
    def _threshold(self) -> float | None:
        return self._thresholds.get(self._score) if self._score else None

    def _steps(self, subset: Subset) -> Iterator[Grid]:
        for number, report in enumerate(subset.reports):
            dropped = report.rows_in - report.rows_out
            if number and dropped:
                refs = grids.random_refs(self._summary, Group("step", str(number)), grids.PER_STEP)
                yield Grid(report.step, f"dropped {counted(dropped, 'row')} of {report.rows_in:,}", refs)

    def _reasons(self) -> Iterator[Grid]:
        for stage in funnel.of_dataset(self._totals).stages:
            for reason in stage.reasons:
                refs = grids.random_refs(self._summary, Group("reason", reason.name), grids.PER_REASON)
                share = reason.rows / max(self._totals.rows, 1)
                yield Grid(in_words(reason.name), f"{counted(reason.rows, 'row')}, {share:.1%}", refs)


def _with_rows(found: Iterator[Grid] | Sequence[Grid]) -> list[Grid]:
    return [grid for grid in found if grid.refs][:MAX_REASONS]


def _within_limit(page: Page, rows: Rows) -> str:
    """The page, in at most MAX_PAGE_BYTES. The text of each row is limited, so there is always room for some
    pictures."""
    html = _with_rows_shown(page, rows)
    excess = len(html.encode()) - MAX_PAGE_BYTES
    if excess > 0:
        html = _with_rows_shown(page, rows.within(rows.picture_bytes - excess - _ROOM_FOR_REMARKS))
    return html


def _with_rows_shown(page: Page, rows: Rows) -> str:
    return render(replace(page, rows=rows, notes=[*page.notes, *_picture_notes(rows)]))


def _picture_notes(rows: Rows) -> Iterator[str]:
    if rows.left_out:
        yield f"{counted(rows.left_out, 'picture')} left out to keep the page below 10 MB."


def _title(store: Store, subset: Subset | None) -> str:
    name = store.root.rstrip("/").rpartition("/")[2]
    return f"{subset.name}, a subset of {name}" if subset else name


def _source_facts(store: Store, plan: Plan) -> Iterator[Fact]:
    yield Fact("output", store.root)
    paths = plan.job.source.paths
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    yield Fact("source", ", ".join(paths[:3]) + more)


def _empty_page(store: Store, plan: Plan, written: str) -> Page:
    return Page(
        eyebrow="pairmill report",
        title=_title(store, None),
        written=written,
        facts=[Fact("rows planned", f"{plan.num_rows:,}"), Fact("shards", f"0 of {plan.num_shards:,}")],
        details=list(_source_facts(store, plan)),
        notes=[],
        sampled="",
        funnels=[],
        series=("kept", "dropped"),
        score=None,
        empty="No shard is finished yet. Make the report again once the first one is finished.",
    )
