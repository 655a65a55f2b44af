"""Tests the picture scores that a build computes while it decodes.

If a stored picture has the pixels that the build measured, its scores equal those that `pairmill score` computes later.
"""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from pairmill.jobs.build import build
from pairmill.jobs.retry import retry
from pairmill.jobs.score import score
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.encode.clip_model import load_model
from pairmill.pipeline.score.masked import painted_over
from pairmill.pipeline.source.files import SourceError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.scores import ScoreJob
from tests.integration.conftest import SHARED_DATA, PictureWeb

SCORES = {"look": {"pictures": {}}, "file": {"pictures": {"measures": ["jpeg_quality"]}}}
PHOTOGRAPHS = [path.read_bytes() for path in sorted((SHARED_DATA / "pairs").rglob("*.jpg"))[::150]]


def as_png(body: bytes, side: int) -> bytes:
    picture = Image.open(io.BytesIO(body)).convert("RGB")
    picture.thumbnail((side, side))
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def table_of(output: Path, columns: list[str]) -> pa.Table:
    manifests = read_manifests(Store(str(output)))
    tables = [pq.read_table(output / each.files["pairs"].path, columns=["row_id", *columns]) for each in manifests]
    return pa.concat_tables(tables).sort_by("row_id")


def added(output: Path, name: str) -> pa.Table:
    tables = [pq.read_table(path) for path in sorted((output / "columns" / name).glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by("row_id")


def same(built: pa.Table, later: pa.Table, name: str, other: str) -> list[str]:
    """The measures whose values differ in any row."""
    suffixes = [column.removeprefix(other) for column in later.column_names if column != "row_id"]
    return [each for each in suffixes if built[f"{name}{each}"].to_pylist() != later[f"{other}{each}"].to_pylist()]


def of_list(source: Path, output: Path, **settings: Any) -> BuildJob:
    values = {
        "source": {"paths": [str(source)]},
        "output": str(output),
        "shard_rows": 5,
        "scores": SCORES,
        "fetch": {"timeout_s": 5, "retries": 0, "allow_networks": ["127.0.0.0/8"]},
    }
    return BuildJob.model_validate({**values, **settings})


def test_a_build_from_urls_has_the_same_scores_as_its_stored_pictures(
    plain_loop: None, web: PictureWeb, tmp_path: Path
) -> None:
    bodies = [*PHOTOGRAPHS, as_png(PHOTOGRAPHS[0], 200), PHOTOGRAPHS[1][:500]]
    urls = [web.add(f"/{number}", body) for number, body in enumerate(bodies)]
    late = web.add("/late", PHOTOGRAPHS[2], status=503)
    rows = [{"url": url, "caption": f"picture {url}"} for url in [*urls, late]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    output = tmp_path / "out"
    build(of_list(tmp_path / "in.parquet", output, images={"size": 400}))
    web.add("/late", PHOTOGRAPHS[2])
    retry(str(output))
    score(ScoreJob.model_validate({"dataset": str(output), "name": "later", "pictures": {}}))
    assert verify(Store(str(output)), rescore=8).problems == []
    assert_another_measure_is_found(tmp_path, output, "look_exposure")
    later = added(output, "later")
    names = [each.replace("later", "look") for each in later.column_names if each != "row_id"]
    built = table_of(output, [*names, "file_jpeg_quality", "original_format", "original_width", "width"])
    assert built.num_rows == len(bodies)  # without the broken picture, but with the late one
    assert built["file_jpeg_quality"].equals(built["look_jpeg_quality"])
    kept = pc.and_(pc.equal(built["original_format"], "JPEG"), pc.equal(built["original_width"], built["width"]))
    assert kept.to_pylist().count(True) >= 3
    assert same(built.filter(kept), later.filter(kept), "look", "later") == []
    again = pc.invert(kept)
    assert same(built.filter(again), later.filter(again), "look", "later") != []
    for measure, near in (("exposure", 0.01), ("border", 0.05), ("colorfulness", 2.0)):  # re-encoding changes little
        for one, other in zip(built[f"look_{measure}"].to_pylist(), later[f"later_{measure}"].to_pylist(), strict=True):
            assert one == pytest.approx(other, abs=near)
    is_png = pc.equal(built["original_format"], "PNG")
    assert built.filter(is_png)["look_jpeg_quality"].to_pylist() == [None]
    assert later.filter(is_png)["later_jpeg_quality"].to_pylist() == [95]  # the quality of the stored JPEG


def assert_another_measure_is_found(folder: Path, output: Path, column: str) -> None:
    """Check that `verify` finds the wrong values of a broken decoder, for which the file's checksum is correct."""
    copy = Path(shutil.copytree(output, folder / "copy"))
    shutil.rmtree(copy / "columns")
    (manifest, *_) = (each for each in read_manifests(Store(str(copy))) if each.pairs)
    path = copy / manifest.files["pairs"].path
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, pc.subtract(pa.scalar(0.9, pa.float32()), table[column])), path)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    file = manifest.files["pairs"].model_copy(update={"blake2b": digest, "num_bytes": path.stat().st_size})
    changed = manifest.model_copy(update={"files": {**manifest.files, "pairs": file}})
    (copy / "manifests" / manifest.name).write_text(changed.model_dump_json())
    assert f"{column} of" in " ".join(verify(Store(str(copy)), rescore=8).problems)
    shutil.rmtree(copy)


def with_words(body: bytes) -> bytes:
    picture = Image.open(io.BytesIO(body)).convert("RGB").resize((600, 400))
    ImageDraw.Draw(picture).text((60, 150), "a red circle", "white", ImageFont.load_default(size=50))
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def assert_text_is_masked(output: Path, bodies: set[bytes]) -> None:
    """Check the similarity without text: for pictures with text, it is that of the picture with the text painted over,
    and for all others, it is the stored similarity."""
    job = {"dataset": str(output), "name": "words", "text": {"mask": {}}}
    assert score(ScoreJob.model_validate(job)).failures == {}
    assert verify(Store(str(output)), rescore=4).problems == []
    names = ["sha256", "caption_clean", "similarity_tiny", "original_width"]
    rows = zip(table_of(output, names).to_pylist(), added(output, "words").to_pylist(), strict=True)
    by_digest = {hashlib.sha256(body).hexdigest(): body for body in bodies}
    model = load_model(ModelConfig(name="tiny"), RunConfig())
    texts = 0
    for pair, words in rows:
        if not words["words_count"]:
            assert words["words_similarity"] == pair["similarity_tiny"]
            continue
        texts += pair["original_width"] == 600
        pixels = np.asarray(Image.open(io.BytesIO(by_digest[pair["sha256"]])).convert("RGB"))
        painted = painted_over(pixels, [np.reshape(box, (4, 2)) for box in words["words_boxes"]])
        image = model.encode_images(torch.stack([model.input.prepare(painted)]))
        cosine = float((image @ model.encode_captions([pair["caption_clean"]]).T)[0, 0])
        assert words["words_similarity"] == pytest.approx(cosine, abs=1e-3)
        assert words["words_similarity"] != pair["similarity_tiny"]
    assert texts == 1


def test_the_pictures_of_a_corpus_are_measured_as_they_are_in_the_input(plain_loop: None, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, body in enumerate([*PHOTOGRAPHS, as_png(PHOTOGRAPHS[0], 600)]):
        (folder / f"{number}.{'png' if number == len(PHOTOGRAPHS) else 'jpg'}").write_bytes(body)
    (folder / "words.png").write_bytes(with_words(PHOTOGRAPHS[0]))
    for path in folder.iterdir():
        path.with_suffix(".txt").write_text(f"a picture of {path.stem}")
    (folder / "broken.jpg").write_bytes(PHOTOGRAPHS[0][:300])
    output = tmp_path / "out"
    values = {"source": {"kind": "corpus", "paths": [str(folder)]}, "output": str(output), "models": [{"name": "tiny"}]}
    build(BuildJob.model_validate({**values, "scores": SCORES}))
    score(ScoreJob.model_validate({"dataset": str(output), "name": "later", "pictures": {}}))
    later = added(output, "later")
    built = table_of(output, [each.replace("later", "look") for each in later.column_names if each != "row_id"])
    assert built.num_rows == len(PHOTOGRAPHS) + 2
    assert_another_measure_is_found(tmp_path, output, "look_border")
    assert same(built, later, "look", "later") == []
    assert_text_is_masked(output, {path.read_bytes() for path in folder.iterdir()})


def test_an_input_column_with_the_name_of_a_score_is_refused(tmp_path: Path) -> None:
    rows = [{"url": "http://host/1.jpg", "caption": "a picture", "Look_border": 0.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    with pytest.raises(SourceError, match="has a column 'Look_border', which a score would make; choose another"):
        build(of_list(tmp_path / "in.parquet", tmp_path / "out"))
    with pytest.raises(ValueError, match="two columns 'similarity_"):
        of_list(
            tmp_path / "in.parquet",
            tmp_path / "out",
            scores={"similarity": {"pictures": {}}},
            models=[{"name": "tiny", "alias": "border"}],
        )
