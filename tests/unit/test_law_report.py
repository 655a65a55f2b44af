"""Invariant: every count in a report is what DuckDB finds in the Parquet files of the shards that the report read."""

import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report import funnel, sections
from pairmill.pipeline.report.source import Source
from pairmill.pipeline.report.summary import Summary
from pairmill.schemas.subset import SelectJob
from tests.committed_shards import pair, reject, write_dataset

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
EXTRA = pa.schema([("language", pa.string()), ("score", pa.float32()), ("exact", pa.float64())])
SERIES = ("kept", "dropped")


@given(seed=st.integers(0, 2**32), max_rows=st.sampled_from([10**6, 40, 0]))
# smaller seeds are not simpler, so shrinking gains nothing
@settings(max_examples=max(1, settings.default.max_examples // 25), deadline=None, phases=[Phase.generate])
def test_counts_match_duckdb(tmp_path_factory: Any, seed: int, max_rows: int) -> None:
    store = random_dataset(tmp_path_factory.mktemp("report"), Random(seed))
    source = Source.of(Snapshot.of(store), max_rows)
    check(store, source, source.summary(), "kept")
    steps = [{"where": "similarity >= 0.2 and score >= -1"}, {"dedup": {"by": "sha256"}}, {"sample": {"count": 12}}]
    values = {"dataset": store.root, "name": "some", "rows": "pairs", "steps": steps}
    select(SelectJob.model_validate(values))
    source = Source.of(Snapshot.of(store), max_rows, read_subset(store, "some"))
    check(store, source, source.summary(), "uid in (select uid from chosen)")
    check_steps(source)


def random_dataset(root: Path, rng: Random) -> Store:
    """Shards with every kind of row that a report counts."""
    shards = [[random_row(rng) for _ in range(rng.randrange(1, 40))] for _ in range(rng.randrange(1, 6))]
    shards[0].append(pair("every subset has this", 0.9, score=0.0))
    return write_dataset(root, shards, extra=EXTRA, rules={"min_similarity": 0.5})


def random_row(rng: Random) -> dict[str, object]:
    caption = " ".join(rng.choice(["a", "käse", "日本", "dog"]) for _ in range(rng.randrange(1, 9)))
    host = rng.choice(["A.example", "a.example.", "u:p@b.example:80", "[::1]:8", "c.example"])
    columns = {
        "url": rng.choice([f"http://{host}/{rng.random()}", f"HTTPS://{host}?x", "nonsense", None]),
        "language": rng.choice(["de", "en", None]),
        "fetched_at": rng.choice([None, START + timedelta(seconds=rng.randrange(1000))]),
    }
    if rng.random() < 0.4:
        return reject(caption, rng.choice(["http_4xx", "timeout", "image_corrupt"]), **columns)
    score = rng.choice([None, 0.5, round(rng.uniform(-1, 1), 2)])
    status, detail = ("ok", None) if (score or 0) >= 0.5 else ("low_similarity", None)
    if status == "ok" and rng.random() < 0.2:
        status, detail = "custom_rule", rng.choice(["no_cats: a cat", "no_dogs: a: dog"])
    return pair(
        caption, score, status=status, status_detail=detail,
        score=rng.choice([None, math.nan, math.inf, 1e30, rng.gauss(0, 1)]),

        exact=rng.choice([0.5, 0.5 - 1e-12, 0.3, 1.7e9, rng.random()]),
        original_format=rng.choice(["JPEG", "PNG", None]), original_width=rng.randrange(1, 900),
        original_height=rng.randrange(1, 900), sha256=rng.choice("0123456789abcdef") * 64, **columns,
    )  # fmt: skip


def check(store: Store, source: Source, summary: Summary, chosen: str) -> None:
    """Compare all parts of the report that are about more than one row."""
    query = database(store, source)
    exact = funnel.of_dataset(source.totals)
    reasons = {reason.name.partition(":")[0]: 0 for stage in exact.stages for reason in stage.reasons}
    for stage in exact.stages:
        for reason in stage.reasons:
            reasons[reason.name.partition(":")[0]] += reason.rows
    assert reasons == dict(query("select status, count(*) from all_rows where status <> 'ok' group by 1"))
    assert exact.left == query("select count(*) from all_rows where status = 'ok'")[0][0]
    rules = query(
        "select split_part(status_detail, ':', 1), count(*) from all_rows where status = 'custom_rule' group by 1"
    )
    assert {name: count.rows for name, count in source.totals.custom_rules.items()} == dict(rules)

    assert (summary.rows, summary.pairs) == (
        query("select count(*) from rows")[0][0],
        query("select count(*) from pairs")[0][0],
    )
    check_scores(query, source, summary, chosen)
    check_shapes(query, summary, chosen)
    assert dict(summary.formats) == dict(
        query("select original_format, count(*) from pairs where original_format is not null group by 1")
    )
    assert dict(summary.languages) == dict(
        query("select language, count(*) from rows where language is not null group by 1")
    )
    check_hosts(query, summary, chosen)
    if line := sections.time_line(summary):
        assert sum(sum(bar.counts) for bar in line.chart.bars) == query("select count(fetched_at) from rows")[0][0]


def check_hosts(query: Callable[[str], list[Any]], summary: Summary, chosen: str) -> None:
    host = r"trim(lower(regexp_extract(url, '^[A-Za-z]+://([^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)', 2)), '[].')"
    counts = f"count(*), count(*) filter (where is_pair and {chosen})"
    expected = query(f"select {host}, {counts} from rows where {host} <> '' group by 1")
    found = {row.name: row for row in sections.hosts(summary)}
    assert [(row.name, row.rows, row.chosen) for row in found.values()] == sorted(
        expected, key=lambda row: (-row[1], row[0])
    )
    for name, row in found.items():
        lost = f"from rows where {host} = '{name}' and status <> 'ok'"
        most = query(f"select count(*) {lost} group by status order by 1 desc limit 1")
        assert [(row.main_loss_rows,)] == (most or [(0,)])
        assert not most or query(f"select count(*) {lost} and status = '{row.main_loss}'") == most


def check_scores(query: Callable[[str], list[Any]], source: Source, summary: Summary, chosen: str) -> None:
    names = source.scores.shown
    assert list(names) == ["similarity_tiny", "score", "exact"]
    for panel in sections.score_panels(summary, names, {}, source.totals.pairs, SERIES):
        name = panel.name
        scored = f"from pairs where isfinite({name})"
        assert panel.scored == query(f"select count(*) {scored}")[0][0]
        assert panel.scored + panel.unscored == query("select count(*) from pairs")[0][0]
        if panel.chart is None or panel.curve is None:
            assert not panel.scored
            continue
        bars = [sum(bar.counts[series] for bar in panel.chart.bars) for series in (0, 1)]
        assert bars == [query(f"select count(*) {scored} and {part}")[0][0] for part in (chosen, f"not ({chosen})")]
        for point in panel.curve.points:
            kind, threshold = (
                "double" if name == "exact" else "float",
                point.threshold.replace("−", "-").replace(",", ""),
            )
            share = query(
                f"select count(*) filter (where not isnan({name}) and {name} >= {threshold}::{kind}) / count(*) "
                f"from pairs"
            )[0][0]
            assert abs(point.share - share) < 1e-9, point
            assert point.count == round(share * source.totals.pairs)


def check_shapes(query: Callable[[str], list[Any]], summary: Summary, chosen: str) -> None:
    sides = [f"coalesce(original_{side}, {side})" for side in ("width", "height")]
    words = r"len(regexp_extract_all(caption_clean, '\S+'))"
    expressions = (f"greatest({', '.join(sides)})", "length(caption_clean)", words)
    for chart, expression in zip(sections.shape_charts(summary, SERIES), expressions, strict=summary.pairs > 0):
        values: list[Counter[int]] = [Counter(), Counter()]
        for value, is_chosen in query(f"select {expression}, {chosen} from pairs"):
            values[not is_chosen][value] += 1
        if any("," not in bar.label and " to " not in bar.label for bar in chart.bars) and not chart.note:
            for bar in chart.bars:
                assert list(bar.counts) == [each[int(bar.label)] for each in values]
        assert [sum(bar.counts[series] for bar in chart.bars) for series in (0, 1)] == [each.total() for each in values]


def check_steps(source: Source) -> None:
    """Check the number of rows that each step dropped in the shards that were read."""
    assert source.subset is not None
    dropped = Counter(step for steps in source.drop_steps["some"].values() for step in steps.tolist() if step >= 0)
    summary = source.summary()
    assert {int(group.name): rows for group, rows in summary.group_rows.items() if group.kind == "step"} == dict(
        dropped
    )
    if source.totals.rows == summary.rows:
        lost = {number: report.rows_in - report.rows_out for number, report in enumerate(source.subset.reports)}
        assert {number: rows for number, rows in lost.items() if rows} == dict(dropped)
        assert summary.is_chosen().sum() == source.subset.rows_out


def database(store: Store, source: Source) -> Callable[[str], list[Any]]:
    """DuckDB with `all_rows` of the dataset, `rows` and `pairs` of the shards that were read, and `chosen` uids.

    Uses tables, not views: on Parquet files, DuckDB treats NaN as finite if the statistics, which ignore NaN, are
    finite.
    """
    connection, shards = (
        duckdb.connect(),
        [source.snapshot.chunk.shards[position].shard for position in source.positions],
    )
    names = {kind: store.list(kind) for kind in ("pairs", "rejects")}
    columns = "uid, url, caption_clean, status, status_detail, fetched_at, language"

    def files(kind: str) -> str:
        return str([store.path(f"{kind}/{name}") for name in names[kind]])

    read = "read_parquet({}, union_by_name=true, filename=true)"
    parts = [f"select {columns}, {kind == 'pairs'} as is_pair, {'kept' if kind == 'pairs' else 'false'} as kept, "
             f"regexp_extract(filename, '([0-9]{{9}})[^/]*$', 1)::int as shard from {read.format(files(kind))}"
             for kind in names if names[kind]]  # fmt: skip
    connection.execute("create table all_rows as " + " union all ".join(parts))
    wanted = ", ".join(map(str, shards))
    connection.execute(f"create table rows as select * from all_rows where shard in ({wanted})")
    connection.execute(f"create table pairs as select * from {read.format(files('pairs'))} "
                       f"where regexp_extract(filename, '([0-9]{{9}})[^/]*$', 1)::int in ({wanted})")  # fmt: skip
    if source.subset is not None:
        connection.execute(f"create table chosen as select uid from '{store.path('subsets/some/rows')}/*.parquet'")
    return lambda sql: connection.execute(sql).fetchall()
