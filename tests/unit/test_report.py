"""Tests reports on small output folders that are committed by hand."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import typer

from pairmill.jobs import report as reporting
from pairmill.jobs.cli.report import write_report
from pairmill.jobs.report import report, report_after_run
from pairmill.jobs.select import select
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.pipeline.reader.thumbnails import Thumbnails
from pairmill.pipeline.report import summary as report_summary
from pairmill.pipeline.report.about import build_thresholds, minimums
from pairmill.pipeline.report.grids import EXTREMES
from pairmill.pipeline.report.report import compared_with, make_report
from pairmill.pipeline.report.rows import text_of
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.status import Status
from pairmill.schemas.subset import SelectJob
from tests.committed_shards import pair, reject, write_dataset

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Parsed(HTMLParser):
    """A parsed page: all tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        self.in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.in_style else data

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]


def scored(similarities: Sequence[float], threshold: float = 0.5, **columns: Any) -> list[dict[str, object]]:
    return [
        pair(f"caption {score}", score, status="ok" if score >= threshold else "low_similarity", **columns)
        for score in similarities
    ]


def page(store: Store, *arguments: Any, **keywords: Any) -> str:
    return make_report(store, *arguments, now=NOW, **keywords).html


def section(html: str, title: str) -> str:
    """The HTML of the cards under a title."""
    return re.split(rf"<h3>{re.escape(title)} <small>", html, maxsplit=1)[1].split("</ul>", 1)[0]


def shown(html: str, title: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"<b>(−?[\d.]+)</b>", section(html, title))]


def subset(store: Store, name: str, *steps: dict[str, object]) -> None:
    select(SelectJob.model_validate({"dataset": store.root, "name": name, "steps": list(steps)}))


def test_best_worst_and_borderline_pairs_are_chosen_from_all_shards(tmp_path: Path) -> None:
    rng = Random(1)
    scores = [round(rng.uniform(-0.5, 0.99), 3) for _ in range(90)]
    shards = [scored(scores[number::3]) for number in range(3)]
    html, half = page(write_dataset(tmp_path, shards, rules={"min_similarity": 0.5})), EXTREMES // 2
    ordered = sorted(scores)
    assert shown(html, "Best") == ordered[::-1][:EXTREMES]
    assert shown(html, "Worst") == ordered[:EXTREMES]
    kept = [score for score in ordered if score >= 0.5][:half]
    dropped = [score for score in ordered if score < 0.5][-half:]
    assert shown(html, "Around the threshold") == [*kept[::-1], *dropped[::-1]]


def test_without_a_threshold_pairs_from_high_to_low_scores_are_shown(tmp_path: Path) -> None:
    scores = [round(n / 100 + 0.005, 3) for n in range(90)]
    html = page(write_dataset(tmp_path, [scored(scores, 0)]))
    steps = shown(html, "From high to low")
    assert len(steps) == EXTREMES and steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (scores[-1], scores[0]) and 'class="threshold"' not in html


def test_the_funnel_lists_every_reason_and_custom_rules_by_name(tmp_path: Path) -> None:
    custom = pair("a", 0.9, status="custom_rule", status_detail="no_cats: it is a cat")
    rows = [*scored([0.9, 0.1]), custom, reject("dead", http_status=404), reject("b", "timeout")]
    html = page(write_dataset(tmp_path, [rows]))
    text = " ".join(Parsed(html).text.split())
    for reason in (
        "http 4xx −1 20.0%",
        "timeout −1 20.0%",
        "low similarity −1",
        "custom rule: no_cats −1",
        "kept 20.0% 1",
    ):
        assert reason in text, reason
    assert ">custom rule: no_cats <small>1 row, 20.0%" in html and "<span>HTTP 404</span>" in html


def test_each_picture_is_read_once_and_is_on_the_page_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    of = Thumbnails.of
    monkeypatch.setattr(Thumbnails, "of", lambda self, rows: read.append(list(rows)) or of(self, read[-1]))
    html = page(write_dataset(tmp_path, [scored([0.9, 0.8, 0.1])]))
    assert len(read) == 1 and len(set(read[0])) == len(read[0]) == 3
    assert html.count("data:image/jpeg") == 3
    assert section(html, "Best").count("<li") == section(html, "Worst").count("<li") == 3
    ids = Parsed(html).ids()
    assert len(ids) == len(set(ids)) == 3
    opened = re.findall(r'popovertarget="([^"]+)" aria-label', html)
    assert set(opened) == set(ids)


def test_a_picture_opens_with_all_columns_of_its_row_and_the_url_is_not_a_link(tmp_path: Path) -> None:
    rows = [pair("a cat", 0.9, mood="calm", url="https://host/a.jpg?b=1")]
    html = page(write_dataset(tmp_path, [rows], extra=pa.schema([("mood", pa.string())])))
    opened = html.split('<div popover id="row-0-0"')[1].split("</div>\n</body>")[0]
    for name, value in (
        ("mood", "calm"),
        ("url", "https://host/a.jpg?b=1"),
        ("similarity_tiny", "0.9"),
        ("status", "ok"),
    ):
        assert f'<th scope="row">{name}</th><td>{value}</td>' in opened
    assert "<a" not in html


HOSTILE = [
    "<script>alert(1)</script>",
    "\" onerror='x' onload=\"y",
    "</style></title></svg><img src=x onerror=alert(1)>",
    "a\u202egpj.exe\u200b\u2066x",
    "&lt;b&gt; {{ title }} {% raw %} %s",
    "../../etc/passwd",
    "\x1b[31mred\x1b]8;;http://evil\x07",
    "=cmd()|' /C calc'!A0",
    "javascript:alert(1)",
    "x" * 10_000,
]


def test_hostile_text_is_shown_as_plain_text_everywhere(tmp_path: Path) -> None:
    extra = pa.schema([('"><script>', pa.string()), ("language", pa.string())])
    hostile = {'"><script>': "'><img src=http://evil/x onerror=1>", "language": "<b onclick=x>"}
    rows = [pair(text, 0.5 + number / 100, url=f"http://{text}/", **hostile) for number, text in enumerate(HOSTILE)]
    rows += [
        reject(
            text, status_detail=text, url=text, content_type=text, fetched_at=NOW + timedelta(seconds=number), **hostile
        )
        for number, text in enumerate(HOSTILE)
    ]
    store = write_dataset(tmp_path / "<b>out", [rows], extra=extra)
    subset(store, "all")
    for html in (page(store), page(store, "all")):
        check_harmless(html)
        parsed = Parsed(html)
        for text in HOSTILE[:3] + HOSTILE[4:6] + HOSTILE[7:9]:
            assert text in parsed.text
        assert "a\ufffdgpj.exe\ufffd\ufffdx" in parsed.text and "\ufffd[31mred" in parsed.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202e\u2066]", html)
        assert "(10,000 characters)" in parsed.text and len(html) < 1_000_000


def check_harmless(html: str) -> None:
    """Check that the page runs nothing and loads nothing."""
    parsed = Parsed(html)
    policy = next(attrs["content"] for _, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert {tag for tag, _ in parsed.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "header",
            "main",
            "footer",
            "section",
            "div",
            "figure",
            "p",
        ),
        *(
            "h1",
            "h2",
            "h3",
            "dl",
            "dt",
            "dd",
            "ul",
            "li",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "i",
            "b",
            "small",
        ),
        *("span", "button", "details", "summary", "pre", "svg", "g", "rect", "line", "text", "polygon", "polyline"),
    }
    for tag, attrs in parsed.tags:
        for name, value in attrs.items():
            assert not name.startswith("on") and name not in ("href", "src", "srcset", "action", "formaction"), tag
            assert name != "style" or "url" not in (value or "")
    assert set(re.findall(r"url\((.{10})", html)) <= {"data:image"}
    assert "@import" not in html


def test_the_rows_read_are_limited_and_the_page_says_so(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([number / 10]) for number in range(10)])
    made = make_report(store, max_rows=4, now=NOW)
    assert (made.rows, made.rows_read) == (10, 4)
    text = Parsed(made.html).text
    assert "Sampled 4 of 10 rows." in text and text.count("sampled 4 of 10 rows") >= 3
    assert "sampled" not in page(store).lower()
    assert make_report(store, max_rows=0, now=NOW).rows_read == 1  # one shard is always read


def test_the_sample_depends_only_on_the_shards_and_the_page_only_on_the_dataset(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([0.5, 0.5, 0.5]), scored([0.5, 0.1])])
    assert page(store) == page(store)
    assert page(store, max_rows=3) == page(store, max_rows=3)


def test_the_report_on_a_subset_shows_its_steps_their_dropped_rows_and_its_duplicates(tmp_path: Path) -> None:
    hashes = [*"aab", "a", *"cd"]
    rows = [pair(f"caption {n}", 0.9 - n / 10, sha256=sha * 64) for n, sha in enumerate(hashes)]
    store = write_dataset(tmp_path, [rows])
    subset(store, "clean", {"dedup": {"by": "sha256"}}, {"where": "similarity >= 0.45"})
    result = report(store, "clean")
    assert result.path.endswith("/report-clean.html")
    html = Path(result.path).read_text()
    assert shown(html, "Best") == [0.9, 0.7, 0.5] and shown(html, "where: similarity &gt;= 0.45") == [0.4]
    assert sorted(shown(html, "dedup: by sha256")) == [0.6, 0.8]
    assert shown(html, "2 duplicates of 0:0") == [0.9, 0.8, 0.6]
    assert "threshold 0.45" in html and ">in clean<" in html and ">not in clean<" in html


def test_the_report_on_a_subset_shows_the_entries_that_balance_reduced_and_the_samples_per_epoch(
    tmp_path: Path,
) -> None:
    rows = [pair(f"<b>cat</b> {n}", 0.5) for n in range(30)] + [pair("a dog", 0.5), pair("nothing", 0.5)]
    store = write_dataset(tmp_path / "out", [rows])
    (tmp_path / "words.txt").write_text("<b>cat</b>\ndog\n")
    balance = {"by": "concept", "entries": str(tmp_path / "words.txt"), "curve": 10, "unmatched": "keep"}
    subset(store, "even", {"balance": balance}, {"repeat": {"weight": "5 * similarity_tiny"}})
    html = page(store, "even")
    (table,) = re.findall(r'aria-label="Table of entries">.*?</table>', html, re.DOTALL)
    assert "2 entries; 1 with more rows than the threshold t = 10." in table
    assert "1 row without an entry: kept" in table
    cells = [re.findall(r">([^<>]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table)[1:]]
    found = read_subset(store, "even").reports[2].balance
    assert found is not None
    kept = found.head[0].kept
    assert 0 < kept < 30
    assert [cell for cell in cells[0] if cell] == ["&lt;b&gt;cat&lt;/b&gt;", "30", str(kept)]
    assert [cell for cell in cells[1] if cell] == ["dog", "1", "1"]
    text = Parsed(html).text
    assert f"{2.5 * (kept + 2):,.0f}" in text.partition("samples per epoch")[2][:20]
    assert "2.5" in text.partition("highest weight")[2][:20] and "Times per epoch (weight)" in text


def test_near_duplicates_are_shown_by_their_distance(tmp_path: Path) -> None:
    hashes = ["0" * 16, "0" * 15 + "1", "f" * 16, None]
    store = write_dataset(tmp_path, [[pair(f"{n}", 0.9 - n / 10, phash=each) for n, each in enumerate(hashes)]])
    subset(store, "clean", {"dedup": {"by": "phash", "distance": 1}})
    assert shown(page(store, "clean"), "1 duplicate of 0:0") == [0.9, 0.8]


def test_rows_with_similar_embeddings_are_shown_as_duplicates(tmp_path: Path) -> None:
    vectors = [[1.0, 0.0], [1.0, 0.3], None, [0.0, 1.0], [1.0, -0.3], [1.0, 1.0]]
    rows = [
        pair(f"{n}", 0.9 - n / 10, image_embedding_tiny=each, text_embedding_tiny=each)
        for n, each in enumerate(vectors)
    ]
    store = write_dataset(tmp_path, [rows])
    for by in ("embedding", "pair"):
        subset(store, by, {"dedup": {"by": by, "model": "tiny", "threshold": 0.9}})
        assert shown(page(store, by), "2 duplicates of 0:0") == [0.9, 0.8, 0.5]


def test_near_duplicates_by_pdq_are_shown_by_their_distance(tmp_path: Path) -> None:
    hashes = ["0" * 56 + "f" * 8, "0" * 56 + "1" * 8, "f" * 64, None]
    rows = [pair(f"{n}", 0.9 - n / 10, pdq=each, pdq_quality=90) for n, each in enumerate(hashes)]
    store = write_dataset(tmp_path, [rows], pa.schema([("pdq", pa.string()), ("pdq_quality", pa.uint8())]))
    subset(store, "clean", {"dedup": {"by": "pdq", "distance": 31}})
    assert shown(page(store, "clean"), "1 duplicate of 0:0") == [0.9, 0.8]


def test_two_subsets_are_compared_exactly(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([n / 10 for n in range(10)], 0)])
    subset(store, "high", {"where": "similarity >= 0.55"})
    subset(store, "middle", {"where": "similarity >= 0.25 and similarity < 0.75"})
    html = page(store, "high", compared_with(store, "middle"))
    assert sorted(shown(html, "Only in high")) == [0.8, 0.9]
    assert sorted(shown(html, "Only in middle")) == [0.3, 0.4, 0.5]
    assert sorted(shown(html, "In both")) == [0.6, 0.7]
    assert "only in middle: 3" in Parsed(html).text
    with pytest.raises(JobError, match="also specify the subset"):
        make_report(store, None, "high")


def test_two_datasets_are_compared(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", [scored([0.9, 0.1])])
    write_dataset(tmp_path / "two", [[reject("a"), *scored([0.8])]])
    html = page(one, None, compared_with(one, str(tmp_path / "two")))
    compared = html.split("<h2>Compared: ")[1].split("</section>")[0]
    assert compared.count("<svg") == 2 and "http 4xx" in compared
    for name in ("one", "two"):
        assert f"<h3>{tmp_path / name}: similarity_tiny <small></small></h3>" in compared


def compared_charts(html: str) -> list[tuple[list[str], list[str], int]]:
    """(ticks, names of bins with rows, number of rows) for both charts of a comparison."""
    parts = html.split("<h2>Compared: ")[1].split("</section>")[0].split('<svg viewBox="0 0 560')[1:]
    found = []
    for part in parts:
        ticks = re.findall(r'<text class="x"[^>]*>([^<]*)<', part)
        rows = re.findall(r'<tr><th scope="row">([^<]*)</th>(.*?)</tr>', part)
        counts = [sum(map(int, re.findall(r"<td>(\d+)</td>", cells))) for _, cells in rows]
        found.append((ticks, [name for name, _ in rows], sum(counts)))
    return found


def test_the_two_charts_of_a_comparison_have_the_same_axis_and_bins(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", [scored([0.9, 0.83, 0.71])])
    write_dataset(tmp_path / "two", [scored([n / 10_000 for n in range(40)] + [0.83])])
    (ticks, bins, rows), (other_ticks, other_bins, other_rows) = compared_charts(
        page(one, None, compared_with(one, str(tmp_path / "two")))
    )
    assert ticks == other_ticks and len(ticks) >= 2
    assert "0.82 to 0.84" in set(bins) & set(other_bins)
    assert (rows, other_rows) == (3, 41)
    store = write_dataset(tmp_path / "three", [scored([n / 50 for n in range(50)], 0)])
    subset(store, "high", {"where": "similarity >= 0.7"})
    subset(store, "low", {"where": "similarity < 0.7"})
    (ticks, _, rows), (other_ticks, _, other_rows) = compared_charts(page(store, "high", compared_with(store, "low")))
    assert ticks == other_ticks and (rows, other_rows) == (15, 35)


def test_the_charts_of_compared_datasets_name_their_series_and_say_whether_they_are_sampled(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", [scored([0.9, 0.1])])
    subset(one, "clean")
    write_dataset(tmp_path / "two", [scored([0.8]), scored([0.7, 0.6])])
    html = page(one, "clean", compared_with(one, str(tmp_path / "two")), max_rows=2)
    first, second = html.split("<h2>Compared: ")[1].split("</section>")[0].split('<figure class="panel">')[1:]
    assert "in clean</span>" in first and "kept</span>" not in first and "sampled" not in first
    assert "kept</span>" in second and re.search("similarity_tiny <small>sampled [12] of 3 rows", second)
    write_dataset(
        tmp_path / "none", [[pair("a", quality=0.5)]], pa.schema([("quality", pa.float32())]), has_scores=False
    )
    html = page(one, None, compared_with(one, str(tmp_path / "none")))
    assert html.split("<h2>Compared: ")[1].split("</section>")[0].count("<svg") == 1


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("similarity >= 0.3", {"similarity": 0.3}),
        ("width > 10 and (similarity >= -0.5 and url != 'a and b >= 1')", {"width": 10, "similarity": -0.5}),
        ("0.2 <= similarity < 0.9 and 5 > width", {"similarity": 0.2}),
        ("width >= 10 or similarity >= 0.3 and height >= 5", {}),
        ("not similarity >= 0.3", {}),
        (r"matches(url, '\d') and similarity >= 1" + "0" * 400, {}),
        ("similarity >= width and similarity == 0.3 and kept == True", {}),
    ],
)
def test_thresholds_are_the_minimums_that_all_rows_of_a_subset_reach(where: str, expected: dict[str, float]) -> None:
    assert dict(minimums(where)) == expected


def test_the_page_shows_the_highest_threshold_and_only_for_models_of_the_build(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([0.9, 0.3])])
    subset(store, "clean", {"where": "similarity >= 0.4"}, {"where": "similarity_tiny >= 0.2"})
    assert "threshold 0.4<" in page(store, "clean")
    subset(store, "infinite", {"where": "similarity < 1e999 and width >= -1e999"}, {"where": "similarity >= -1e999"})
    assert "threshold" not in Parsed(page(store, "infinite")).text.split("Scores")[0]
    scores = ["similarity_tiny", "similarity_later"]
    assert build_thresholds(RulesConfig(min_similarity=0.3), ["later"], scores) == {"similarity_tiny": 0.3}


def test_an_unknown_name_to_compare_with_is_an_error_that_lists_the_subsets(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([0.9])])
    subset(store, "clean")
    with pytest.raises(JobError, match=r"'claen' is neither a subset of .* \(it has: clean\) nor an output folder"):
        report(store, "clean", "claen")


def test_hosts_languages_formats_and_times_are_counted(tmp_path: Path) -> None:
    rows = [
        pair(f"caption {n}", 0.9, url=f"http://User@A.example:80/{n}", language="de", original_format="PNG",
             fetched_at=NOW + timedelta(minutes=n)) for n in range(3)
    ]  # fmt: skip
    rows += [
        reject("x", "timeout", url="http://b.example/x", language="en", fetched_at=NOW),
        reject("y", url="nonsense"),
    ]
    html = page(write_dataset(tmp_path, [rows], extra=pa.schema([("language", pa.string())])))
    text = " ".join(Parsed(html).text.split())
    assert "a.example 3 3 100.0%" in text and "b.example 1 0 0.0% timeout 1" in text
    assert "de 3 75.0% en 1 25.0%" in text and "PNG 3 100.0%" in text
    assert "1 May 2026, 12:00:00 UTC to 1 May 2026, 12:02:00 UTC, on average 0.0 rows per second" in text


def test_without_a_model_a_sample_is_shown(tmp_path: Path) -> None:
    html = page(write_dataset(tmp_path, [[pair("a red circle"), pair("a blue star")]], has_scores=False))
    assert "No model ran" in html and "<h3>Best" not in html
    assert "a red circle" in section(html, "A random sample")


@pytest.mark.parametrize("pictures", ["none", "gone"])
def test_pictures_that_cannot_be_shown_do_not_prevent_the_report(tmp_path: Path, pictures: str) -> None:
    store = write_dataset(tmp_path, [scored([0.9])], pictures="none" if pictures == "none" else "pairs")
    if pictures == "gone":
        Path(store.path("images/000000000.tar")).write_bytes(b"gone")
    html = page(store)
    assert ("no picture stored" if pictures == "none" else "missing or changed") in html
    assert "data:image" not in html and "caption 0.9" in html


@pytest.mark.parametrize("shards", [[], [[reject("a"), reject("b", "timeout")]]], ids=["unfinished", "only rejects"])
def test_a_dataset_without_pairs_still_gets_a_report(tmp_path: Path, shards: list[list[dict[str, object]]]) -> None:
    html = page(write_dataset(tmp_path, shards, planned=2))
    check_harmless(html)
    expected = (
        ["No shard is finished yet"] if not shards else ["1 planned shard not finished yet", "No pair has a score"]
    )
    assert all(each in Parsed(html).text for each in expected)


def test_an_interrupted_report_says_that_the_dataset_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(store: Store, **_: object) -> None:
        raise KeyboardInterrupt

    store = write_dataset(tmp_path, [scored([0.9])])
    monkeypatch.setattr(reporting, "make_report", interrupt)
    monkeypatch.setattr(reporting, "report", interrupt)
    with pytest.raises(typer.Exit) as stopped:
        write_report(store)
    assert stopped.value.exit_code == 130
    stopped_message = f"Stopped. The dataset is complete; only the report is missing: pairmill report {tmp_path}\n"
    assert capsys.readouterr().err == stopped_message
    assert not store.exists("report.html")


def test_the_report_is_written_to_the_given_path_or_one_line_says_why_not(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", [scored([0.9])])
    assert report(store).path == f"{tmp_path}/out/report.html"
    assert not (tmp_path / "out/tmp").exists()
    assert report(store, out=str(tmp_path / "a.html")).path == str(tmp_path / "a.html")
    with pytest.raises(JobError, match="choose a file in an existing folder"):
        report(store, out=str(tmp_path / "none/a.html"))
    for wrong in ("a.html/b.html", "out", "n" * 300):
        with pytest.raises(JobError, match="cannot be written to"):
            report(store, out=str(tmp_path / wrong))
    assert report(store, out=str(tmp_path / ("n" * 250))).num_bytes
    (tmp_path / ("n" * 250)).unlink()
    assert report(store, out=f"file://{tmp_path}/a.html").path == str(tmp_path / "a.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "out"]


@pytest.mark.parametrize("out", ["s3://a.html", "s3://bucket/folder/", "https://host/a.html"])
def test_an_out_that_cannot_name_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    store = write_dataset(tmp_path / "out", [scored([0.9])])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match="give a local file or s3://BUCKET/FILE"):
        report(store, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_report_on_a_read_only_dataset_can_be_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("out/tmp: cannot be written to (Permission denied)")

    store = write_dataset(tmp_path / "out", [scored([0.9])])
    monkeypatch.setattr(Store, "replace", refuse)
    with pytest.raises(JobError, match="with --out FILE"):
        report(store)
    assert report(store, out=str(tmp_path / "a.html")).rows == 1


def test_a_report_that_fails_does_not_fail_the_run(tmp_path: Path) -> None:
    store = write_dataset(tmp_path, [scored([0.9])])
    Path(store.path("pairs/000000000.parquet")).write_bytes(b"damaged")
    path, problem = report_after_run(store)
    assert path is None and problem and problem.count("\n") == 0
    assert problem.endswith(f"the dataset is fine; to write the report, run: pairmill report {tmp_path}")


def test_every_status_is_written_in_words_on_the_page(tmp_path: Path) -> None:
    statuses = [status.value for status in Status if status not in (Status.OK, Status.CUSTOM_RULE)]
    html = page(write_dataset(tmp_path, [[reject("x", status) for status in statuses]], has_scores=False))
    text = " ".join(Parsed(html).text.split())
    assert all(f"{status.replace('_', ' ')} −1" in text for status in statuses)


def test_with_very_many_hosts_or_languages_only_the_frequent_ones_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_summary, "MAX_HOSTS", 140)
    shards = [
        [
            pair("a", 0.9, url=f"http://{name}.example/", language=name + "l" * 9000)
            for number in range(40)
            for name in [f"n{shard}-{number}" if number % 4 else "frequent"]
        ]
        for shard in range(8)
    ]
    html = page(write_dataset(tmp_path, shards, extra=pa.schema([("language", pa.string())])))
    text = " ".join(Parsed(html).text.split())
    assert "frequent.example 80 80 100.0%" in text and "frequentlll" in text
    assert re.search(r"And at least \d+ more hosts\.", text) and "There are too many hosts or languages" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2834567, "0.283457"), (-123456.78, "-123457"), (1_700_000_000.5, "1700000000.5"), (1e300, "1e+300"),
     (float("nan"), "nan"), (float("-inf"), "-inf"), (True, "yes"), (None, "")],
)  # fmt: skip
def test_a_number_beside_a_picture_keeps_its_digits_before_the_point(value: object, text: str) -> None:
    assert text_of(value) == text
