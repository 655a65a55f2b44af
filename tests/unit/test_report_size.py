"""Tests that no dataset makes a huge or slow report, and that the page says what it leaves out."""

import io
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pairmill.jobs.select import select
from pairmill.pipeline.report import page as report_page
from pairmill.pipeline.report import rows as report_rows
from pairmill.pipeline.report.summary import summarize
from pairmill.schemas.status import Status
from pairmill.schemas.subset import SelectJob
from tests.committed_shards import pair, reject, write_dataset
from tests.unit.test_report import page, scored


def test_the_page_stays_small_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_rows, "MAX_PICTURE_BYTES", 2_000)
    html = page(write_dataset(tmp_path, [scored([n / 50 for n in range(50)])]))
    assert html.count("data:image/") <= 3 and re.search(r"\d+ pictures left out to keep the page below", html)


def test_long_rows_are_truncated_and_say_so(tmp_path: Path) -> None:
    extra = pa.schema([(f"column {number}", pa.string()) for number in range(150)])
    long = dict.fromkeys(extra.names, '"' * 3000)
    html = page(write_dataset(tmp_path, [[pair("a cat", 0.9, **long) for _ in range(20)]], extra=extra))
    assert len(html) < 20 * 20_000
    assert "(3,000 characters)" in html and "more columns</td>" in html


def test_long_names_and_values_of_columns_do_not_make_a_huge_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "MAX_TABLES_BYTES", 60_000)
    extra = pa.schema([(f"{number} " + "'" * 300, pa.string()) for number in range(120)])
    rows = [pair('"' * 9000, 0.9, **dict.fromkeys(extra.names, '"' * 3000)) for _ in range(20)]
    html = page(write_dataset(tmp_path, [rows], extra=extra))
    tables = re.findall(r'<table class="columns">.*?</table>', html, re.DOTALL)
    assert len(tables) == 20 and sum(map(len, tables)) < 65_000
    assert all(">caption<" in table and "more columns</td>" in table for table in tables)


def noise() -> bytes:
    """A picture that cannot be compressed well."""
    file, pixels = io.BytesIO(), np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("letter", ["\U0001f600", "'", "\x01"], ids=["4 bytes", "escaped", "3 bytes when made visible"])
def test_the_page_stays_below_10_mb_even_with_the_most_hostile_rows(tmp_path: Path, letter: str) -> None:
    """Every grid is full, every text value is long, and no picture is small."""
    text, image = letter * 1_200, noise()
    extra = pa.schema([(f"{number} {letter * 100}", pa.string()) for number in range(8)])
    long: dict[str, object] = {"url": f"http://{text}/{text}", **dict.fromkeys(extra.names, text)}
    statuses = [status for status in Status if status not in (Status.OK, Status.CUSTOM_RULE)][:31]
    kept = [pair(f"{number}{text}", 0.9 - number / 1000, image=image, **long) for number in range(400)]
    lost = [reject(f"{number}{text}", status, **long) for status in statuses for number in range(6)]
    store = write_dataset(tmp_path, [[*kept, *lost]], extra=extra)
    wheres = [f"similarity < {0.9 - 0.012 * number}" for number in range(1, 33)]
    wheres[0] += f" and not contains(caption, {'b' + letter * 200!r})"
    for name, steps in (("one", wheres), ("two", wheres[:5])):
        values = {"dataset": store.root, "name": name, "steps": [{"where": where} for where in steps]}
        select(SelectJob.model_validate(values))
    html = page(store, "one", "two")
    assert len(html.encode()) < 10_000_000
    assert html.count('<li class="card') > 500
    assert html.count("data:image/jpeg") > 10 and re.search(r"\d+ pictures left out to keep the page below", html)


def test_summarizing_captions_of_2_kb_takes_less_than_12_times_as_long_as_summarizing_short_captions() -> None:
    rows = 5_000
    moments = pa.array(range(rows), pa.timestamp("us", "UTC"))

    def fastest_s(caption: str) -> float:
        texts = {"uid": [f"{number}" for number in range(rows)], "caption_clean": [caption] * rows}
        sizes = {f"{kind}{side}": [9] * rows for kind in ("", "original_") for side in ("width", "height")}
        plain = {"url": ["http://a.example/"] * rows, "status": ["ok"] * rows, "kept": [True] * rows}
        table = pa.table({**texts, **sizes, **plain, "status_detail": pa.nulls(rows, pa.string()),
                          "original_format": ["JPEG"] * rows, "fetched_at": moments})  # fmt: skip
        times = []
        for _ in range(5):
            started = time.thread_time()
            found = summarize(0, table, None, [], None, None, {})
            times.append(time.thread_time() - started)
        assert set(found.number("words").tolist()) == {len(caption.split())}
        return min(times)

    long, short = fastest_s(" ".join(["a"] * 1000)), fastest_s("a b")
    assert long < 12 * short
