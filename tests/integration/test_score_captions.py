"""Tests adding captions that a model writes, and scores of captions, to a dataset with several shards."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app
from pairmill.jobs.score import score
from pairmill.pipeline.encode.coca import CocaModel
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.source.clean_captions import clean_captions
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.scores import ScoreJob
from tests.coca_folder import write_coca
from tests.committed_shards import pair, reject, write_dataset


@pytest.mark.usefixtures("plain_loop")
def test_written_captions_are_those_of_the_model_in_every_shard(tmp_path: Path) -> None:
    folder = write_coca(tmp_path / "coca")
    store = write_dataset(tmp_path / "out", [[pair(f"a dog {n}"), reject("x"), pair(f"a cat {n}")] for n in range(2)])
    settings = {"model": str(folder), "max_tokens": 12}
    job = ScoreJob.model_validate(
        {"dataset": store.root, "name": "coca", "caption_model": settings, "run": {"encode_threads": 1}}
    )
    result = score(job)
    assert (result.shards_scored, result.rows_scored, result.failures) == (2, 4, {})
    assert score(job.model_copy(update={"caption_model": None})).shards_scored == 0
    coca = CocaModel(ModelConfig(name=str(folder), alias="c", dtype="float32"), RunConfig(device="cpu"), 12)
    processor = ImageProcessor(ImagesConfig())
    for shard in range(2):
        written = pq.read_table(tmp_path / f"out/columns/coca/{shard:09d}.parquet")["coca"].to_pylist()
        rows = pq.read_table(tmp_path / f"out/pairs/{shard:09d}.parquet").to_pylist()
        for caption, row in zip(written, rows, strict=True):
            picture = store.files.read_range(store.path(row["image_tar"]), row["image_offset"], row["image_length"])
            (expected,) = coca.write_captions(coca.input.prepare(processor.pixels(picture))[None])
            assert [caption] == clean_captions(pa.array([expected])).to_pylist()
    run = CliRunner().invoke(app, ["score", store.root, "text", "--score", "captions: [words, language]"])
    assert run.exit_code == 0, run.output
    assert "columns: text_words, text_language, text_language_score" in run.output
