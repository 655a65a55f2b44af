"""Tests `pairmill index` and `search` with the bundled model, on drawn pictures and on hostile captions."""

import io
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.encode.tiny.draw import Scene, caption, random_scene, render
from pairmill.pipeline.encode.weights import ModelError
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.search import index as search_index
from pairmill.pipeline.search import part_files, query, vector_index
from pairmill.pipeline.search.errors import SearchError
from pairmill.pipeline.search.index import SearchIndex
from pairmill.pipeline.search.query import QueryModel, embed_image, embed_text
from pairmill.schemas.errors import JobError
from tests.integration.conftest import SHARED_DATA
from tests.integration.test_build import sequentially
from tests.integration.test_embed import embed_job
from tests.tars import write_tar

PICTURES = 1_000

REAL = SHARED_DATA / "clip_b32" / "flickr8k500_pairs"

HOSTILE = (
    "<script>document.title='pwned'</script><img src=x onerror=alert(1)>",
    "\x1b[2J\x1b]0;title\x07 [bold red]markup[/] \u202egnp.exe\u200b",
    '=cmd|"/C calc"!A0',
    "'; drop table pairs; -- " + 10_000 * "x",
)


def jpeg(scene: Scene, seed: int) -> bytes:
    buffer = io.BytesIO()
    render(scene, random.Random(seed), 96).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_pairs(folder: Path, pairs: Sequence[tuple[bytes, str]]) -> Path:
    folder.mkdir()
    members = [
        member
        for number, (body, text) in enumerate(pairs)
        for member in ((f"{number:05d}.jpg", body), (f"{number:05d}.txt", text.encode()))
    ]
    write_tar(folder / "00000.tar", members)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A dataset of drawn pictures of 1,000 different scenes in ten shards, and their captions."""
    rng, scenes = random.Random(14), dict[Scene, Scene]()
    while len(scenes) < PICTURES:
        scene = random_scene(rng)
        scenes.setdefault(scene.meaning, scene)
    captions = [caption(scene, rng) for scene in scenes.values()]
    folder = tmp_path_factory.mktemp("drawn")
    pictures = [jpeg(scene, number) for number, scene in enumerate(scenes.values())]
    corpus = write_pairs(folder / "tars", list(zip(pictures, captions, strict=True)))
    sequentially(embed_job(folder / "out", corpus, shard_rows=100))
    (folder / "first.jpg").write_bytes(pictures[0])
    return folder / "out", captions


def recall_at_10(index: SearchIndex, captions: Sequence[str]) -> float:
    """The share of captions for which their own picture is among the ten best."""
    model = QueryModel.load(index.embeddings.contract)
    rows, _ = index.search(model.model.encode_captions(captions), 10)
    return float((rows == np.arange(len(captions))[:, None]).any(axis=1).mean())


def opened(folder: Path) -> SearchIndex:
    store = Store(str(folder))
    return SearchIndex.open(store, Snapshot.of(store))


def test_a_caption_finds_the_picture_that_was_drawn_for_it_by_brute_force_and_with_an_index(
    drawn: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, captions = drawn
    exact = recall_at_10(opened(folder), captions)
    assert exact >= 0.95
    monkeypatch.setattr(vector_index, "FLAT_ROWS", 100)  # so that the index has lists, as for a million rows
    monkeypatch.setattr(search_index, "MAX_UNINDEXED_ROWS", 0)
    monkeypatch.setattr(part_files, "PART_ROWS", 500)
    report = pairmill.index(folder)
    assert (report.parts, report.rows, report.embeddings) == (2, PICTURES, PICTURES)
    index = opened(folder)
    assert not index.is_exact
    assert recall_at_10(index, captions) >= 0.95


def test_captions_find_their_photographs_among_embeddings_of_a_trained_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are the only available embeddings of real photographs and captions by a trained model."""
    pictures, texts = (np.load(REAL / f"{name}_embeddings.npy").astype(np.float16) for name in ("image", "text"))
    exact = np.argsort(-(texts.astype(np.float32) @ pictures.astype(np.float32).T), axis=1)[:, :10]
    own = np.arange(len(pictures))[:, None]
    for flat_rows in (len(pictures) + 1, 100):
        monkeypatch.setattr(vector_index, "FLAT_ROWS", flat_rows)
        index = vector_index.VectorIndex.empty(pictures.shape[1], len(pictures), pictures)
        index.add(pictures, np.arange(len(pictures)))
        rows, _ = index.search(texts.astype(np.float32), 10)
        found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
        is_own = (rows == own).any(axis=1).mean()
        assert (found, is_own) >= ((0.999, 0.9) if index.lists == 1 else (0.85, 0.85))
        assert is_own >= 0.85


def test_text_picture_and_pair_find_the_same_rows_and_a_pair_does_not_find_itself(
    drawn: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, captions = drawn
    by_text = pairmill.search(folder, captions[0], top=5)
    assert (by_text.rows, by_text.rows_without_embedding, len(by_text.matches)) == (PICTURES, 0, 5)
    assert by_text.matches[0].caption == captions[0]
    by_picture = pairmill.search(folder, image=folder.parent / "first.jpg", top=6)
    assert by_picture.matches[0].uid == by_text.matches[0].uid
    assert by_picture.matches[0].score == pytest.approx(1, abs=2e-3)
    by_pair = pairmill.search(folder, uid=by_text.matches[0].uid, top=5)
    assert [match.uid for match in by_pair.matches] == [match.uid for match in by_picture.matches[1:]]
    captions_alike = pairmill.search(folder, captions[0], of="text", top=1)
    assert captions_alike.matches[0].score == pytest.approx(1, abs=2e-3)
    by_text.save(str(tmp_path / "found.parquet"))
    assert pq.read_table(tmp_path / "found.parquet")["uid"].to_pylist() == [each.uid for each in by_text.matches]
    subset = pairmill.select(folder, "found", steps=f"uids: {tmp_path}/found.parquet")
    assert subset.rows_out == 5
    within = pairmill.search(folder, captions[7], subset="found")
    assert {each.uid for each in within.matches} == {each.uid for each in by_text.matches}


def test_a_caption_has_the_same_embedding_alone_as_among_others(drawn: tuple[Path, list[str]]) -> None:
    folder, captions = drawn
    model = QueryModel.load(opened(folder).embeddings.contract)
    many = model.model.encode_captions(captions[:8])
    assert np.allclose(np.concatenate([embed_text(model, f" {each}\n") for each in captions[:8]]), many, atol=1e-5)


def test_a_search_that_cannot_run_ends_with_one_clear_line(
    drawn: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = drawn
    for arguments, problem in (
        ([], "exactly one of a phrase, --image and --uid"),
        (["a", "--uid", "0" * 32], "exactly one of a phrase, --image and --uid"),
        ([" \u200b"], "the text is empty"),
        (["x" * 20_000], "has 20,000 characters; at most 10,000"),
        (["--uid", "\x1b[31m"], "has no row with the uid"),
        (["a", "--model", "b32"], "has no model 'b32'; it has: tiny"),
        (["a", "--subset", "none"], "has no subset 'none'"),
        (["--image", __file__], "the picture cannot be used: no known format"),
        (["--image", "nowhere.jpg"], "nowhere.jpg cannot be read: No such file or directory"),
        (["--image", "/"], "/ cannot be read: Is a directory"),
        (["--image", "https://example.com/a.jpg"], "a.jpg cannot be read: use a local file or an s3:// URL"),
        (["a", "--top", "20000"], "from 1 to 10,000"),
        (["a", "--out", "/dev/null/page.html"], "cannot be written to"),
    ):
        done = CliRunner().invoke(app, ["search", str(folder), *arguments])
        assert done.exit_code == 1, arguments
        assert problem in done.stderr.splitlines()[-1]
        assert "\x1b" not in done.output
    os.mkfifo(pipe := tmp_path / "pipe")
    done = CliRunner().invoke(app, ["search", str(folder), "a red circle", "-k", "1", "--save", str(pipe)])
    assert (done.exit_code, len(done.stdout.splitlines())) == (1, 2)  # the results are shown nevertheless
    assert f"{pipe}: cannot be written to, because it is not a regular file" in done.stderr
    assert pipe.is_fifo()
    monkeypatch.setattr(query, "MAX_PICTURE_BYTES", 100)
    with pytest.raises(SearchError, match="is larger than 100 bytes"):
        pairmill.search(folder, image=folder.parent / "first.jpg")


@pytest.mark.parametrize("there_is_one", [True, False])
def test_the_page_is_shown_in_the_browser_only_on_request(
    drawn: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, there_is_one: bool
) -> None:
    shown: list[str] = []

    def show(url: str) -> bool:
        shown.append(url)
        return there_is_one

    monkeypatch.setattr("webbrowser.open", show)
    folder, captions = drawn
    done = CliRunner().invoke(app, ["search", str(folder), captions[3], "-k", "2", "--open"])
    page = Path(done.stdout.splitlines()[-1])
    assert shown == [page.as_uri()]
    assert page.read_text().count("<li>") == 2
    assert ("there is no browser here" in done.stderr) != there_is_one
    page.unlink()
    CliRunner().invoke(app, ["search", str(folder), captions[3], "--out", str(page)])
    assert len(shown) == 1
    page.unlink()


def test_another_model_under_the_same_name_is_refused(
    drawn: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.pipeline.encode.weights.Weights.sha256", lambda self: "0" * 64)
    with pytest.raises(ModelError, match="is not the model 'tiny' that the dataset was embedded with"):
        pairmill.search(drawn[0], "a red circle")


def test_a_picture_that_would_be_huge_for_the_model_is_refused(drawn: tuple[Path, list[str]]) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(buffer, "PNG")
    model = QueryModel.load(opened(drawn[0]).embeddings.contract)
    with pytest.raises(SearchError, match="too long and narrow"):
        embed_image(model, buffer.getvalue())
    with pytest.raises(SearchError, match="the picture cannot be used"):
        embed_image(model, buffer.getvalue(), max_pixels=1_000)


@pytest.mark.parametrize("width", [50, 80, 300])
def test_hostile_captions_are_plain_text_in_the_table_and_on_the_page(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(jpeg(random_scene(random.Random(n)), n), text) for n, text in enumerate(HOSTILE)]
    sequentially(embed_job(tmp_path / "out", write_pairs(tmp_path / "tars", pairs)))
    page = tmp_path / "page.html"
    arguments = ["search", str(tmp_path / "out"), "<b>x</b>\x1b[1m", "--out", str(page), "--json"]
    monkeypatch.setattr("pairmill.pipeline.common.terminal_text.table_columns", lambda: width)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    *table, path, values = done.stdout.splitlines()
    assert not set("\x1b\x07\u202e\u200b") & set(done.output)
    assert len(table) == 1 + len(HOSTILE)
    assert max(map(cell_len, table)) <= width
    assert re.fullmatch(r" *score  uid {29} +caption *", table[0])
    for row in table[1:]:
        assert re.match(r" *-?0\.\d{4}  [0-9a-f]{32}  \S", row)
    assert path == str(page)
    found = json.loads(values)["matches"]
    assert sorted(each["caption"] for each in found) == sorted(HOSTILE)
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == len(HOSTILE)
    assert "default-src 'none'; img-src data:" in html
    assert "&lt;script&gt;" in html
    for forbidden in ("<script", "onerror=alert(1)>", "<b>", "\x1b", "\u202e", "\u200b", "href=", "x" * 1_000):
        assert forbidden not in html
    with pytest.raises(JobError, match="this must be a local file"):
        pairmill.search(tmp_path / "out", "a", page="s3://bucket/page.html")
