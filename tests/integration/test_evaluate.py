"""Tests `pairmill evaluate` and `probe` with the bundled model, which embeds the classes, on drawn pictures."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.encode.clip_model import model_of
from pairmill.pipeline.encode.tiny.draw import COLORS, caption, random_scene
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.schemas.job.run import RunConfig
from tests.integration.test_build import sequentially
from tests.integration.test_embed import embed_job
from tests.integration.test_search import jpeg, write_pairs

PICTURES = 64


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a dataset of drawn pictures, the colors as classes, the first color of each caption as its label)."""
    rng, folder = random.Random(3), tmp_path_factory.mktemp("evaluate")
    scenes = [random_scene(rng) for _ in range(PICTURES)]
    pairs = [(jpeg(scene, number), caption(scene, rng)) for number, scene in enumerate(scenes)]
    sequentially(embed_job(folder / "out", write_pairs(folder / "tars", pairs), shard_rows=40))
    rows = pairmill.open(folder / "out").table(["uid", "caption"])
    colors = [next(word for word in text.split() if word in COLORS) for text in rows["caption"].to_pylist()]
    pq.write_table(pa.table({"uid": rows["uid"], "label": colors}), folder / "colors.parquet")
    (folder / "classes.txt").write_text("\n".join(COLORS))
    return folder / "out", folder / "classes.txt", folder / "colors.parquet"


def test_zero_shot_accuracy_matches_the_stored_embeddings_and_the_score(
    drawn: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out, classes, labels = drawn
    page = tmp_path / "page.html"
    arguments = ["evaluate", str(out), "--classes", str(classes), "--templates", "a photo of {}"]
    done = CliRunner().invoke(app, [*arguments, "--labels", str(labels), "--out", str(page), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])["zero_shot"]
    embeddings = Embeddings.of(Snapshot.of(Store(str(out))), None)
    model = model_of(embeddings.contract, RunConfig())
    texts = model.encode_captions([f"a photo of {name}" for name in COLORS])
    pictures = np.concatenate([embeddings.read(shard)[0] for shard in embeddings.snapshot.chunk.shards])
    best = [list(COLORS)[index] for index in (pictures.astype(np.float32) @ texts.T).argmax(axis=1)]
    truth = pq.read_table(labels)["label"].to_pylist()
    assert result["rows"] == PICTURES
    assert result["top1"] == np.mean([one == other for one, other in zip(best, truth, strict=True)]) > 0.3
    pairmill.score(out, "color", {"classes": {"names": classes, "templates": ["a photo of {}"]}})
    scored = pairmill.open(out).table(["color"])["color"].to_pylist()
    assert result["top1"] == np.mean([one == other for one, other in zip(scored, truth, strict=True)])
    assert "Classes, lowest accuracy first" in done.stdout and "<svg" in page.read_text()


def test_the_probe_command_tells_colors_apart_by_their_captions(drawn: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out, _, labels = drawn
    head = tmp_path / "red.safetensors"
    arguments = ["probe", "train", str(out), "--labels", str(labels), "--positive", "red", "--of", "text"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(head)])
    assert done.exit_code == 0, done.output
    assert "out of fold" in done.stdout and "predicted   examples  share red" in done.stdout
    assert head.is_file()
