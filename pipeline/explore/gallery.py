"""Collects the content of the gallery page for the query in its address."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import yaml

from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.dataset.subset import read_subset, subset_names
from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.query import Query
from pairmill.pipeline.explore.row_lookup import Row
from pairmill.pipeline.explore.summary import BINS, Column
from pairmill.schemas.pairs import FETCHED, PICTURE
from pairmill.schemas.select_steps import SelectStep

PAGE_ROWS = 60

_CAPTION = ("caption_clean", "caption", "caption_index", "language")
_PICTURE = {*PICTURE.names, "original_width", "original_height", "original_format", "original_bytes", "sha256", "md5",
            "image_tar", "image_offset", "image_length", "image_crc32"}  # fmt: skip
_WEB = {"url", "final_url", *FETCHED.names} - _PICTURE
_OUTCOME = ("status", "status_detail", "kept")


@dataclass(frozen=True)
class Card:
    """One pair of a gallery."""

    uid: str
    picture: str
    """Address of the small copy of its picture."""
    caption: str | None
    status: str
    kept: bool
    value: str | None
    """The value that the rows are sorted by, as text."""
    label: bool | None


@dataclass(frozen=True)
class Group:
    """Filters that belong together."""

    title: str
    columns: Sequence[Column]
    is_open: bool


@dataclass(frozen=True)
class Gallery:
    """The content of the page."""

    query: Query
    count: int
    start_count: int
    """Number of rows before the filters."""
    num_pairs: int
    """Number of pairs in the part of the dataset that is shown."""
    expression: str
    command: str
    cards: Sequence[Card]
    pages: int
    groups: Sequence[Group]
    equal_columns: Sequence[Column]
    """The columns that have the same value, or none, in all rows."""
    sort_columns: Sequence[str]
    sort_column: str | None
    subsets: Sequence[str]
    steps: Sequence[str]
    """The steps that selected the subset, if one is shown."""
    error: str | None = None

    @property
    def order(self) -> str:
        """The order that is shown: random if there is no column to sort by."""
        return "random" if self.sort_column is None and self.error is None else self.query.order

    @property
    def first(self) -> int:
        """Number of the first row of the page, from 1."""
        return (self.query.page - 1) * PAGE_ROWS + 1

    @property
    def last(self) -> int:
        """Number of the last row of the page."""
        return self.first + len(self.cards) - 1


def gallery(explorer: Explorer, shown: Shown, query: Query, error: str | None = None) -> Gallery:
    """Collect the content of the page. If there is an `error`, shows no rows. Raises PairmillError."""
    view = shown.view
    groups, equal = filter_groups(view.columns, view.added_scores, query)
    count = 0 if error else view.count(query)
    rows: list[int] = []
    if not error:
        rows = view.order(query, query.page * PAGE_ROWS)[(query.page - 1) * PAGE_ROWS :].tolist()
    column = None if error else view.sort_column(query)
    where = "" if error else view.expression(query)
    return Gallery(
        query=query,
        count=count,
        start_count=int(view.start(query.rows, query.subset).sum()) if not error else view.num_rows,
        num_pairs=view.num_rows,
        expression=where,
        command=command(explorer, query, where),
        cards=cards(explorer, shown, rows, column),
        pages=max(1, -(-count // PAGE_ROWS)),
        groups=groups,
        equal_columns=equal,
        sort_columns=[name for name, each in view.columns.items() if each.kind == "number" and each.is_useful],
        sort_column=column,
        subsets=subset_names(explorer.store),
        steps=[str(step) for step in read_subset(explorer.store, query.subset).steps] if query.subset else [],
        error=error,
    )


def command(explorer: Explorer, query: Query, where: str) -> str:
    """The command that selects the same rows."""
    base = read_subset(explorer.store, query.subset) if query.subset else None
    steps = [*(base.steps if base else []), *([SelectStep(where=where)] if where else [])]
    words = ["select", explorer.store.root, "NAME"]
    words += [word for step in steps for word in ("--step", step_text(step))]
    words += ["--set", "partial=true"] if explorer.was_unfinished else []
    words += ["--all-pairs"] if (base.rows if base else query.rows) == "pairs" else []
    return pairmill_command(*words)


def step_text(step: SelectStep) -> str:
    """A step in the form that `--step` takes: YAML on one line."""
    value = getattr(step, step.kind)
    if isinstance(value, str):
        plain = f"{step.kind}: {value}"
        return plain if _reads_as(plain, {step.kind: value}) else json.dumps({step.kind: value}, ensure_ascii=False)
    options = value.model_dump(exclude_defaults=True)
    return f"{step.kind}: {json.dumps(options, ensure_ascii=False)}"


def _reads_as(text: str, expected: object) -> bool:
    try:
        return bool(yaml.safe_load(text) == expected)
    except yaml.YAMLError:
        return False


def cards(explorer: Explorer, shown: Shown, rows: Sequence[int], column: str | None = None) -> list[Card]:
    """The cards of some rows. Starts to read their pictures."""
    found = shown.view.lookup.rows(rows, [column] if column else [])
    shown.pictures.prefetch(row.ref for row in found)
    return [card(explorer, shown, row, column) for row in found]


def card(explorer: Explorer, shown: Shown, row: Row, column: str | None = None, value: str | None = None) -> Card:
    """The card of one row."""
    if column is not None:
        value = "none" if row[column] is None else shown.view.columns[column].text(row[column])
    picture = f"/picture/{row.shard}/{row.ref.row}?v={shown.version}"
    label = explorer.labels.get(row["uid"])
    return Card(row["uid"], picture, row["caption_clean"], row["status"], row["kept"], value, label)


def filter_groups(
    columns: Mapping[str, Column], added_scores: Collection[str], query: Query
) -> tuple[list[Group], list[Column]]:
    """The filters in groups, and the columns without a filter, because they have the same value in all rows."""
    titles: dict[str, list[Column]] = {
        name: [] for name in ("Scores", "Caption", "Picture", "Outcome", "Download", "Other columns")
    }
    equal = []
    for name, each in columns.items():
        if not each.is_useful and not query.is_set(name):
            equal.append(each)
        else:
            titles["Scores" if name in added_scores else _title(name)].append(each)
    is_first = True
    groups = []
    for title, found in titles.items():
        if found:
            groups.append(Group(title, found, is_first or any(query.is_set(each.name) for each in found)))
            is_first = False
    return groups, equal


def _title(name: str) -> str:
    if name.startswith("similarity"):
        return "Scores"
    if name in _CAPTION:
        return "Caption"
    if name in _PICTURE:
        return "Picture"
    if name in _OUTCOME:
        return "Outcome"
    return "Download" if name in _WEB else "Other columns"


def bars(column: Column) -> list[tuple[int, float, float]]:
    """The bars of a histogram, (index, top, height) in a box of BINS x 100. Heights are proportional to square roots of
    counts, so that rare values are visible."""
    tallest = max(column.histogram, default=0) or 1
    heights = [round(100 * (rows / tallest) ** 0.5, 1) for rows in column.histogram]
    return [(index, round(100 - height, 1), height) for index, height in enumerate(heights[:BINS]) if height]
