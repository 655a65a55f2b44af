"""Tests the step `balance` against a direct count in Python, with the rows divided in different ways."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod, sqrt
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.job_file import load_select_job
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.pipeline.select.balance import word_list
from pairmill.pipeline.select.balance.counts import ENTRY_COUNT
from pairmill.pipeline.select.balance.curve import Thresholds, head, language_thresholds, probabilities, solve
from pairmill.pipeline.select.keys import BALANCE, uid_hashes
from pairmill.pipeline.select.step_error import StepError
from pairmill.schemas.balance import BalanceReport
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import StepReport, Subset
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select import whole_set
from tests.unit.select.conftest import make_subset

Row = dict[str, object]
ENTRIES = [
    "cat",
    "dog",
    "a",
    "A",
    "of",
    "in the",
    "man",
    "woman",
    "猫",
    "St. Louis",
    "grass ,",
    "zebra",
    "cat",
    "",
    "frisbee",
]


@pytest.fixture(scope="module")
def columns() -> dict[str, pa.Array]:
    return whole_set.columns()


@pytest.fixture(scope="module")
def dataset(columns: dict[str, pa.Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8,000 rows in 8 shards."""
    return whole_set.write(tmp_path_factory.mktemp("balance"), columns, 1_000)


@pytest.fixture(scope="module")
def rows(columns: dict[str, pa.Array]) -> list[Row]:
    """The first row of each uid, with the number that decides whether it is drawn."""
    names = ["uid", "caption_clean", "url", "original_format", "content_type", "width"]
    table = pa.table({name: columns[name] for name in names})
    draws = (uid_hashes(table["uid"], BALANCE, 0) >> np.uint64(11)) * 2.0**-53
    first = {row["uid"]: row | {"draw": draw} for row, draw in reversed([*zip(table.to_pylist(), draws, strict=True)])}
    return list(first.values())


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\ufeff" + "\n".join(ENTRIES) + "\n", encoding="utf-8")
    return str(path)


def spaced(text: str) -> str:
    text = text.replace("\t", " ").replace("\n", " ")
    return "".join(f" {letter} " if letter in ",.;:?!`" else letter for letter in text)


NEEDLES = {entry: entry if entry == "猫" else f" {spaced(entry).strip()} " for entry in ENTRIES if entry}


def concepts(caption: str | None) -> set[str]:
    """MetaCLIP's substring test, with the differences described in `word_list.py`."""
    text = f" {spaced(caption or '')} "
    return {entry for entry, needle in NEEDLES.items() if needle in text}


def host(url: str | None) -> str | None:
    parts = urlsplit(url or "")
    found = parts.netloc.rpartition("@")[2]
    found = found[1 : found.index("]")] if found.startswith("[") else found.partition(":")[0].rstrip(".")
    return found.lower().encode("idna").decode() if parts.scheme and found else None


def column(name: str) -> Callable[[Row], set[str]]:
    return lambda row: {str(row[name])} if row[name] is not None else set()


BY: dict[str, Callable[[Row], set[str]]] = {
    "concept": lambda row: concepts(row["caption_clean"]),
    "host": lambda row: {found} if (found := host(row["url"])) else set(),
    "original_format": column("original_format"),
    "width": column("width"),
}


def expected(
    rows: Iterable[Row], of: Callable[[Row], set[Any]], t: float, keeps: bool
) -> tuple[set[str], Counter[Any]]:
    """The uids of the rows that the definition keeps, and the number of rows of each entry."""
    entries = {row["uid"]: of(row) for row in rows}
    counts = Counter(entry for each in entries.values() for entry in each)

    def chance(row: Row) -> float:
        if not entries[row["uid"]]:
            return float(keeps)
        return 1 - prod(1 - min(1, t / counts[entry]) for entry in entries[row["uid"]])

    return {row["uid"] for row in rows if row["draw"] < chance(row)}, counts


def uids(dataset: Path, name: str) -> list[str]:
    store = Store(str(dataset))
    return [uid for table in read_rows(store, read_subset(store, name)) for uid in table["uid"].to_pylist()]


def found_by(subset: Subset) -> BalanceReport:
    report = subset.reports[-1].balance
    assert report is not None
    return report


def step(by: str, words: str, curve: Any, **more: Any) -> Row:
    return {"balance": {"by": by, "curve": curve, **({"entries": words} if by == "concept" else {}), **more}}


@pytest.mark.parametrize("by", BY)
def test_balance_equals_a_direct_count(dataset: Path, rows: list[Row], words: str, by: str) -> None:
    t, keeps = 30, by != "concept"
    subset = make_subset(dataset, "direct", step(by, words, t))
    kept, counts = expected(rows, BY[by], t, keeps)
    assert set(uids(dataset, "direct")) == kept
    report, kept_rows = found_by(subset), [row for row in rows if row["uid"] in kept]
    after = Counter(entry for row in kept_rows for entry in BY[by](row))
    heads = {entry: number for entry, number in counts.items() if number > t}
    assert (report.entries, report.head_entries) == (len(counts), len(heads))
    assert report.matches - report.tail_matches == sum(heads.values())
    assert report.unmatched_rows == sum(not BY[by](row) for row in rows) > 0 or by == "width"
    assert [each.rows for each in report.head] == [number for _, number in counts.most_common(20)]
    assert all((each.rows, each.kept) == (counts[each.entry], after[each.entry]) for each in report.head)
    for entry in heads:  # each keeps about t rows, or more if its rows also have other entries
        assert after[entry] > t - 6 * sqrt(t)
    assert all(after[entry] == number for entry, number in counts.items() if entry not in heads)


def test_the_curve_matches_the_paper() -> None:
    counts = np.array([(0, 10), (1, 200), (2, 1000)], ENTRY_COUNT)
    heads = head(Thresholds(100.0), counts[1:], counts[:1])
    entries = np.array([0, 1, 2, 1, 2], np.uint64)
    chance = probabilities(np.array([0, 1, 2, 3, 3]), entries, 5, heads)
    assert chance == pytest.approx([1, 0.5, 0.1, 0.55, 0], abs=1e-15)
    german = np.array([((7 << 24) + number, rows) for number, rows in enumerate([1, 1, 2, 5, 991])], ENTRY_COUNT)
    t = language_thresholds(
        100.0, 0, counts, german
    )  # cumulative shares: .001 .002 .004 .009 1; in the reference: .00826
    assert t == {0: 100.0, 7: 5.0}


@pytest.mark.parametrize(
    ("by", "shard_rows", "chunk_rows"),
    [("concept", 1_000, 4_000), ("concept", 1_000, 1_000), ("host", 1_000, 1_000), ("concept", 360, 1_600)],
)
def test_the_selected_rows_do_not_depend_on_shards_or_chunks(
    columns: dict[str, pa.Array],
    dataset: Path,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    shard_rows: int,
    chunk_rows: int,
) -> None:
    """Two or eight workers, or different shards, give the same rows as one worker."""
    steps = [step(by, words, {"fraction": 0.3}), step("original_format", words, 50.5)]
    one = make_subset(dataset, "one", *steps)
    other = dataset if shard_rows == 1_000 else whole_set.write(tmp_path, columns, shard_rows)
    monkeypatch.setattr("pairmill.jobs.select.CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr("pairmill.pipeline.select.balance.balancer.PARTITION_ROWS", 1_200)
    monkeypatch.setattr("pairmill.pipeline.select.balance.balancer.KEPT_BYTES", 1 << 40)  # no entries are kept
    found = make_subset(other, "other", *steps)
    assert [each.balance for each in found.reports] == [each.balance for each in one.reports]
    assert uids(other, "other") == uids(dataset, "one")


@pytest.mark.parametrize(
    ("by", "keeps", "share"),
    [
        ("concept", False, {"fraction": 0.25}),
        ("concept", True, {"fraction": 0.6}),  # more than the share of rows without an entry
        ("width", False, {"count": 1_200}),
    ],
)
def test_a_share_keeps_about_that_share_of_the_rows(
    dataset: Path, words: str, monkeypatch: pytest.MonkeyPatch, by: str, keeps: bool, share: Row
) -> None:
    monkeypatch.setattr("pairmill.pipeline.select.balance.balancer.SAMPLED_ROWS", 2_000)
    more = {"unmatched": "keep"} if keeps else {}
    subset = make_subset(dataset, "share", step(by, words, share, **more))
    rows_in = subset.reports[-1].rows_in
    wanted = share.get("count") or share["fraction"] * rows_in
    assert subset.rows_out == pytest.approx(wanted, abs=6 * sqrt(wanted) * sqrt(1 + rows_in / 2_000) / 2)


def test_solve_agrees_with_a_direct_sum() -> None:
    rng = np.random.default_rng(3)
    counts = np.rint(rng.pareto(1, 3_000) * 50 + 1)
    starts = np.flatnonzero(np.concatenate([[True], rng.random(2_999) < 0.4]))
    for wanted in (10.0, 300.0, len(starts) - 1.0):
        t = solve(starts, counts, wanted)
        rows = np.split(np.minimum(1, t / counts), starts[1:])
        assert sum(1 - np.prod(1 - row) for row in rows) == pytest.approx(wanted, rel=1e-9)
    assert solve(starts, counts, len(starts)) == counts.max()


def test_each_language_has_its_own_counts_and_t(dataset: Path, rows: list[Row], words: str) -> None:
    subset = make_subset(dataset, "l", step("concept", words, 60, language="content_type"))
    entries = {row["uid"]: {(row["content_type"], entry) for entry in concepts(row["caption_clean"])} for row in rows}
    counts = Counter(entry for each in entries.values() for entry in each)
    of = {name: sorted(n for (language, _), n in counts.items() if language == name) for name in ("en", "de", "fr")}
    tail = sum(n for n in of["en"] if n < 60) / sum(of["en"])
    shares = {name: np.cumsum(numbers) / sum(numbers) for name, numbers in of.items()}
    t = {name: float(of[name][np.argmin(abs(shares[name] - tail))]) for name in of} | {"en": 60.0}
    assert found_by(subset).curves == t
    highest_first = sorted(t, key=lambda language: (-t[language], language))
    named = ", ".join(f"{language} {t[language]:,.6g}" for language in highest_first)
    assert found_by(subset).threshold_text == f"t of their language ({named})"
    assert found_by(subset).entries == len(counts)

    def chance(row: Row) -> float:
        return 1 - prod(1 - min(1, t[entry[0]] / counts[entry]) for entry in entries[row["uid"]])

    assert set(uids(dataset, "l")) == {row["uid"] for row in rows if row["draw"] < chance(row)}
    printed = CliRunner().invoke(app, ["select", str(dataset), "--refresh", "l"]).output
    listed = found_by(subset).listed_entries
    assert f"{len(counts)} entries ({listed} in the file; counted once per language)" in printed
    assert f"with more rows than the threshold t of their language ({named})" in printed


def test_a_reference_without_matches_is_refused() -> None:
    with pytest.raises(StepError, match="no row of the reference language has an entry"):
        language_thresholds(60.0, 1, np.zeros(0, ENTRY_COUNT))


def test_rows_without_an_entry_are_kept_or_dropped_as_configured(dataset: Path, rows: list[Row], words: str) -> None:
    for by, unmatched in [("concept", "keep"), ("original_format", "drop")]:
        make_subset(dataset, "u", step(by, words, 1e9, unmatched=unmatched))
        kept = expected(rows, BY[by], 1e9, unmatched == "keep")[0]
        assert set(uids(dataset, "u")) == kept
        assert (len(kept) == len(rows)) == (unmatched == "keep")


def test_a_share_that_leaves_room_for_no_row_with_an_entry_is_refused(dataset: Path, words: str) -> None:
    without = found_by(make_subset(dataset, "nulls", step("original_format", words, 30))).unmatched_rows
    for by, curve in [("original_format", {"count": without}), ("host", {"count": 1}), ("host", {"fraction": 1e-4})]:
        with pytest.raises(JobError, match=r"no other row than the \d+ without an entry.*add `unmatched: drop`"):
            make_subset(dataset, "refused", step(by, words, curve))
    for curve, more in [({"count": without + 50}, {}), ({"count": without}, {"unmatched": "drop"})]:
        assert found_by(make_subset(dataset, "room", step("original_format", words, curve, **more))).head[0].kept > 0


def test_a_second_step_draws_independently(dataset: Path, words: str) -> None:
    """With the same draw, rows drawn by the first step would be likelier to be drawn by the second."""
    steps = [step("concept", words, {"fraction": 0.2}), step("content_type", words, {"fraction": 0.5})]
    subset = make_subset(dataset, "twice", *steps)
    assert subset.rows_out == pytest.approx(subset.reports[-1].rows_in / 2, rel=0.1)


def test_a_higher_t_keeps_all_rows_that_a_lower_t_keeps(dataset: Path, words: str) -> None:
    for name, t in [("low", 20), ("high", 40)]:
        make_subset(dataset, name, step("host", words, t))
    assert set(uids(dataset, "low")) < set(uids(dataset, "high"))


def test_the_file_of_entries_is_identified_and_changes_are_reported(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt.gz"
    path.write_bytes(gzip.compress(b"cat\ndog\n"))
    make_subset(dataset, "g", step("concept", str(path), 50))
    path.write_bytes(gzip.compress(b"cat\ndog\nman\n"))
    result = CliRunner().invoke(app, ["select", str(dataset), "--refresh", "g"])
    assert "the file of entries has changed since" in result.output
    assert "3 entries (3 in the file)" in result.output and "without an entry: dropped" in result.output
    report = found_by(read_subset(Store(str(dataset)), "g"))
    assert report.earlier_blake2b and report.earlier_blake2b != report.blake2b


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
        (b"\n \n", "has no entries"),
        (b"a\n" * 40, "has 41 lines; at most 30"),
        (b"x" * 2_000, "is larger than"),
    ],
)
def test_a_file_that_is_not_a_list_of_entries_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    monkeypatch.setattr(word_list, "MAX_ENTRIES", 30)
    monkeypatch.setattr(word_list, "MAX_FILE_BYTES", 1_000)
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(JobError, match=f"step 1, balance: .*{says}"):
        make_subset(dataset, "refused", step("concept", str(tmp_path / "list"), 1))


@pytest.mark.parametrize(
    ("balance", "says"),
    [
        ({"by": "concept", "curve": 1}, "by: concept needs entries"),
        ({"by": "url", "curve": 1, "entries": "x"}, "with any other by, leave entries out"),
        ({"by": "url", "curve": 1, "language": "x"}, "only with by: concept"),
        ({"by": "concept", "entries": "x", "language": "y", "curve": {"count": 3}}, "curve must be a number"),
        ({"by": "url", "curve": {}}, "either a fraction or a count"),
        ({"by": "url", "curve": 0}, "greater than 0"),
        ({"by": "url", "curve": float("inf")}, "finite"),
        ({"by": "url", "curve": 1, "reference": "de"}, "add language: COLUMN"),
    ],
)
def test_a_contradictory_step_is_refused(balance: Row, says: str) -> None:
    with pytest.raises(JobError, match=says):
        load_select_job(None, {"dataset": "out", "name": "n", "steps": [{"balance": balance}]})


def test_a_column_called_like_a_word_of_the_step_needs_a_spelling_of_its_own(tmp_path: Path) -> None:
    def columns(shard: int, first: int, count: int, seed: int) -> dict[str, pa.Array]:
        names = {"host": pa.array(["mine"] * count), "concept": pa.array(["all"] * count)}
        return default_columns(shard, first, count, seed) | names

    write_dataset(tmp_path, 60, columns=columns)
    with pytest.raises(JobError, match=r"by: host is the host of the URL, but also a column .* by: col\('host'\)"):
        make_subset(tmp_path, "refused", step("host", "", 5))
    for by, entry in [("host(url)", "pictures.example"), ("col('host')", "mine"), ('col("concept")', "all")]:
        assert [each.entry for each in found_by(make_subset(tmp_path, "b", step(by, "", 5))).head] == [entry]


def test_unsuitable_columns_are_refused(dataset: Path, words: str) -> None:
    for settings, says in [
        (step("hots", words, 1), "there is no column 'hots'; `by` also accepts"),
        (step("concept", words, 1, caption="width"), "column 'width' is int32, not text"),
        (step("concept", words, 1, language="lang"), "there is no column 'lang'"),
    ]:
        with pytest.raises(JobError, match=says):
            make_subset(dataset, "refused", settings)
    with pytest.raises(ValueError, match="'eng'; the languages in content_type include de, en, fr; set"):
        make_subset(dataset, "refused", step("concept", words, 1, language="content_type", reference="eng"))


def test_earlier_versions_can_read_reports_of_other_steps() -> None:
    assert not {"balance", "repeat"} & StepReport(step="s", rows_in=1, rows_out=1).model_dump().keys()
