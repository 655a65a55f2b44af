"""Tests the contact sheet of small output folders committed by hand, without a server or a model."""

import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.commit import ShardWriter
from pairmill.pipeline.encode.tiny.draw import caption, random_scene, render
from pairmill.pipeline.report import contact_sheet
from pairmill.pipeline.report.contact_sheet import PAIRS_PER_SECTION, THUMBNAIL_SIDE, write_contact_sheet
from pairmill.schemas.batch import BatchInfo, ScoreContract, ShardBatch
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.manifest import Shard
from pairmill.schemas.pairs import in_flight_schema, score_columns

NO_EXTRA = pa.schema([])
CONTRACT = ScoreContract("tiny", "tiny", None, "0" * 64, {}, "float32", 16)


def commit(
    root: Path, captions: list[str], similarities: list[float], shard: int = 0, threshold: float = 0.5, **options: Any
) -> Store:
    """One shard with a pair per caption, and one row that was rejected."""
    rows = [row(shard, n, text, options.get("size", (96, 64))) for n, text in enumerate(captions)]
    for similarity, one in zip(similarities, rows, strict=False):
        one["status"] = "ok" if similarity >= threshold else "low_similarity"
        one["similarity_tiny"] = similarity
    rows.append({**row(shard, len(rows), "dead", None), "status": "http_4xx", "is_pair": False})
    scores = score_columns("tiny", 2) if similarities else NO_EXTRA
    table = pa.Table.from_pylist(rows, schema=pa.schema([*in_flight_schema(NO_EXTRA), *scores]))
    aliases = ["tiny"] if similarities else []
    store = Store(str(root))
    images = ImagesConfig.model_validate({"store": options.get("images_store", "pairs")})
    writer = ShardWriter(store, NO_EXTRA, aliases, images, "0" * 32, {})
    info = BatchInfo(Shard(shard, "in", 0, len(rows), "f"), contracts=(CONTRACT,) if similarities else ())
    writer.commit(ShardBatch(info, table))
    return store


def row(shard: int, number: int, text: str, size: tuple[int, int] | None) -> dict[str, Any]:
    picture = BytesIO()
    if size:
        rng = Random(number)
        render(random_scene(rng), rng, *size).save(picture, "JPEG")
    return {
        "row_id": f"{shard}:{number}",
        "uid": f"{Random(f'{shard} {number}').getrandbits(128):032x}",
        "url": f"http://host/{number}.jpg",
        "caption": text,
        "caption_clean": text,
        "caption_index": 0,
        "status": "ok",
        "is_pair": True,
        "image": picture.getvalue() or None,
    }


def sheet(store: Store, threshold: float | None = 0.5) -> str:
    write_contact_sheet(store, "sheet.html", threshold)
    return store.read("sheet.html").decode()


def shown(text: str, title: str) -> list[float]:
    """Similarities of the cards under a section's title."""
    section = text.split(f"<h2>{title} ", 1)[1].split("</section>", 1)[0]
    return [float(number) for number in re.findall(r"<b>(-?[\d.]+)</b>", section)]


def test_best_worst_and_borderline_pairs_are_chosen_over_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "_BATCH_ROWS", 7)
    rng = Random(1)
    scores = [round(rng.uniform(-0.5, 0.99), 3) for _ in range(90)]
    for shard in range(3):
        part = scores[shard::3]
        store = commit(tmp_path, [f"caption {score}" for score in part], part, shard, size=(16, 16))
    text, half = sheet(store), PAIRS_PER_SECTION // 2
    ordered = sorted(scores)
    assert shown(text, "Best") == ordered[::-1][:PAIRS_PER_SECTION]
    assert shown(text, "Worst") == ordered[:PAIRS_PER_SECTION]
    kept = [score for score in ordered if score >= 0.5][:half]
    dropped = [score for score in ordered if score < 0.5][-half:]
    assert shown(text, "Borderline") == [*kept[::-1], *dropped[::-1]]


def test_each_pair_shows_its_outcome(tmp_path: Path) -> None:
    text = sheet(commit(tmp_path, ["a red circle", "a blue star"], [0.9, 0.1]))
    assert re.search(r'class="card kept".*?<b>0\.900</b><span class="chip">kept</span>.*?a red circle', text, re.S)
    assert re.search(r'class="card dropped".*?<b>0\.100</b><span class="chip">low similarity</span>', text, re.S)
    assert "threshold 0.500" in text and "http 4xx" in text and ">tiny<" in text


def test_the_same_output_gives_the_same_sheet(tmp_path: Path) -> None:
    store = commit(tmp_path, ["one", "two", "three"], [0.5, 0.5, 0.5])
    assert sheet(store) == sheet(store)


def test_hostile_captions_stay_text(tmp_path: Path) -> None:
    captions = [
        "<script>alert(1)</script>",
        "\" onerror='x",
        "a\u202egpj.exe",
        "&lt;b&gt;",
        "{title} %s",
        "x" * 100_000,
    ]
    text = sheet(commit(tmp_path, captions, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], size=(8, 8)))
    assert "<script" not in text and "onerror='" not in text and "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in text and "&amp;lt;b&amp;gt;" in text and "a\ufffdgpj.exe" in text
    assert "{title} %s" in text and len(text) < 100_000


def test_the_sheet_loads_nothing_and_runs_no_script(tmp_path: Path) -> None:
    text = sheet(commit(tmp_path, ["a red circle"], [0.9]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not re.search(r"<(script|link|iframe|object|a)\b|url\(|@import", text)
    assert all(source.startswith("data:image/jpeg") for source in re.findall(r'src="([^"]*)"', text))


def test_pictures_become_small_thumbnails(tmp_path: Path) -> None:
    text = sheet(commit(tmp_path, ["a wide one"], [0.9], size=(640, 200)))
    data = re.search(r'src="data:image/jpeg;base64,([^"]*)"', text)
    assert data
    with Image.open(BytesIO(b64decode(data[1]))) as thumbnail:
        assert thumbnail.size == (THUMBNAIL_SIDE, 50)


def test_without_stored_pictures_the_cards_say_so(tmp_path: Path) -> None:
    text = sheet(commit(tmp_path, ["a red circle"], [0.9], images_store="none"))
    assert "no picture stored" in text and "<img" not in text and "a red circle" in text


def test_a_picture_that_cannot_be_read_does_not_lose_the_sheet(tmp_path: Path) -> None:
    store = commit(tmp_path, ["a red circle"], [0.9])
    Path(store.path("images/000000000.tar")).write_bytes(b"gone")
    assert "a red circle" in sheet(store)


def test_without_a_model_a_sample_is_shown(tmp_path: Path) -> None:
    text = sheet(commit(tmp_path, ["a red circle", "a blue star"], []), threshold=None)
    assert "No model ran" in text and "no score" in text and "a blue star" in text and "<h2>Best" not in text


def test_without_a_threshold_steps_from_high_to_low_are_shown(tmp_path: Path) -> None:
    scores = [round(n / 100 + 0.005, 3) for n in range(90)]
    text = sheet(commit(tmp_path, [f"caption {n}" for n in scores], scores, size=(8, 8)), threshold=None)
    steps = shown(text, "From high to low")
    assert len(steps) == PAIRS_PER_SECTION and steps == sorted(steps, reverse=True)
    assert (steps[0], steps[-1]) == (scores[-1], scores[0]) and 'class="threshold"' not in text


def test_an_output_without_pairs_still_gives_a_sheet(tmp_path: Path) -> None:
    assert "No pairs" in sheet(Store(str(tmp_path)), threshold=None)
    assert "No pairs" in sheet(commit(tmp_path / "rejects", [], []), threshold=None)


def test_a_sheet_of_full_sections_is_small(tmp_path: Path) -> None:
    rng = Random(2)
    captions = [caption(random_scene(rng), rng) for _ in range(80)]
    store = commit(tmp_path, captions, [rng.random() for _ in captions], size=(256, 256))
    assert len(sheet(store)) < 3_000_000
