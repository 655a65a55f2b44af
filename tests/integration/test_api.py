"""Tests the Python API from URLs to training, with a loopback web server and the model `tiny`."""

import io
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pairmill
from bench.faulty_s3 import credentials, s3_server
from pairmill.pipeline.dataset.subset import SubsetError
from pairmill.pipeline.reader.snapshot import DatasetError
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, sequentially, write_input
from tests.integration.test_embed import CAPTION, embed_job, samples
from tests.tars import write_tar

REPOSITORY = Path(__file__).parents[2]
LOOPBACK = {"fetch.allow_networks": ["127.0.0.0/8"], "shard_rows": 8}


def looks_like(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are the same, except for small differences due to JPEG compression and decoders."""
    pixels = [np.asarray(each.convert("RGB"), np.int16) for each in (one, other)]
    return pixels[0].shape == pixels[1].shape and float(np.abs(pixels[0] - pixels[1]).mean()) < 3


@pytest.fixture
def source(web: PictureWeb, tmp_path: Path) -> Path:
    """A list of twenty pairs, four of which have no picture on the server."""
    rows = [
        {
            "url": web.add(f"/{n}.jpg", picture(n)) + (".gone" if n % 5 == 4 else ""),
            "caption": CAPTION.format(n),
            "n": n,
        }
        for n in range(20)
    ]
    return write_input(tmp_path / "in.parquet", rows)


def test_the_whole_path_from_urls_to_training_works(
    web: PictureWeb, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    capfd.readouterr()
    result = pairmill.build(source, out, models="tiny", settings=LOOPBACK, progress=False)
    assert capfd.readouterr() == ("", "")
    assert (result.rows_in, result.kept, result.statuses) == (20, 16, {"ok": 16, "http_4xx": 4})
    assert pairmill.status(str(out)).statuses == result.statuses

    dataset = pairmill.open(out)
    assert (len(dataset), dataset.statuses) == (16, result.statuses)
    table = dataset.table(["uid", "n", "similarity", "image_embedding_tiny"])
    expected = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("pairs/*.parquet")))
    assert table.equals(expected.select(table.column_names).cast(table.schema))  # which says nothing about null
    assert dataset.to_pandas()["n"].tolist() == dataset.to_polars("n")["n"].to_list() == table["n"].to_pylist()
    seen = 0
    for row in dataset:
        original = Image.open(io.BytesIO(picture(row["n"])))
        assert row.picture is not None
        assert looks_like(row.picture, original)
        assert looks_like(dataset.picture(row["uid"]), original)
        image, text = (row[f"{side}_embedding_tiny"].astype(np.float32) for side in ("image", "text"))
        assert abs(float(image @ text) - row["similarity"]) < 2e-3
        seen += 1
    assert seen == 16

    subset = pairmill.select(out, "best", steps={"top": {"by": "similarity", "count": 10}})
    assert subset.rows_out == 10
    view = dataset.subset("best")
    scores = table["similarity"].to_numpy()
    assert sorted(view.table("similarity")["similarity"].to_pylist()) == sorted(scores)[-10:]
    worst = table["uid"][int(scores.argmin())].as_py()
    assert looks_like(dataset.picture(UUID(worst)), dataset.picture(worst))
    for uid in (worst, None, worst.encode()):
        with pytest.raises(DatasetError, match="has no row with the uid"):
            view.picture(uid)
    assert (len(dataset.table([])), len(view.table([]))) == (16, 10)
    with pytest.raises(SubsetError, match=r"has no subset '\.\./subsets/best'; it has: best"):
        dataset.subset("../subsets/best")
    assert [row["n"] for row in view] == view.table("n")["n"].to_pylist()

    made = pairmill.report(out, subset="best")
    assert (made.path, made.rows, made.rows_read) == (str(out / "report-best.html"), 20, 20)
    assert (out / "report-best.html").read_text().count("data:image/jpeg") == 16
    assert not (out / "report.html").exists()
    pairmill.build(source, out, models="tiny", settings=LOOPBACK, progress=False, report=True)
    assert "http 4xx" in (out / "report.html").read_text()

    exported = pairmill.export(out, "best", tmp_path / "train", samples_per_file=4)
    assert (exported.record.rows, exported.written) == (10, 3)
    assert len(list((tmp_path / "train").glob("*.tar"))) == 3
    assert pairmill.verify(out).holds

    pairs = pairmill.PairDataset(pairmill.FeedConfig(out, "best", columns=("n", "caption_clean")))
    assert sorted(sample["n"] for sample in pairs) == sorted(row["n"] for row in view)

    for path in list(web.pages):
        web.pages[f"{path}.gone"] = web.pages[path]
    retried = pairmill.retry(out, "http_4xx", progress=False)
    assert (retried.retried, retried.recovered) == (4, 4)
    assert len(pairmill.open(out)) == 20


def test_progress_is_shown_on_stderr_unless_it_is_turned_off(
    plain_loop: None, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = pairmill.build(source, tmp_path / "out", settings=LOOPBACK)
    printed = capfd.readouterr()
    assert (printed.out, result.kept) == ("", 16)
    assert "20/20 rows" in printed.err


def test_while_a_job_runs_on_ray_a_second_thread_can_run_one_on_this_machine_but_not_on_ray(
    on_this_ray: list[str], source: Path, tmp_path: Path
) -> None:
    address = dict([on_this_ray[1].split("=", 1)])
    with ThreadPoolExecutor(1) as second:

        def build(name: str, **settings: str) -> "Future[pairmill.BuildResult]":
            settings = {**LOOPBACK, **settings}
            return second.submit(pairmill.build, source, tmp_path / name, settings=settings, progress=False)

        assert build("here").result().kept == 16
        with pytest.raises(pairmill.JobError, match=r"^another thread of this process runs a job on Ray; [^\n]+$"):
            build("there", **address).result()


def test_a_corpus_is_embedded_and_opened_with_its_pictures_and_an_added_model(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    corpus = write_tar(tmp_path / "tars/00000.tar", samples(6))
    assert sequentially(embed_job(tmp_path / "emb", tmp_path / "tars")).kept == 6
    added = pairmill.add_model(tmp_path / "emb", "tiny", alias="again", device="cpu", progress=False)
    assert (added.alias, added.shards_missing) == ("again", [])
    dataset = pairmill.open(tmp_path / "emb")
    table = dataset.table(["key", "similarity_tiny", "similarity_again"])
    assert table["similarity_tiny"].equals(table["similarity_again"])
    for row in dataset.rows(["uid", "key"]):
        assert row.picture is not None
        assert looks_like(row.picture, Image.open(io.BytesIO(picture(int(row["key"])))))
    corpus.write_bytes(corpus.read_bytes()[:3_000])
    with pytest.raises(pairmill.PairmillError, match=r"00000\.tar"):
        list(dataset)
    assert sum(1 for _ in dataset.rows(pictures=False)) == 6


def test_pictures_inside_parquet_can_be_opened_too(plain_loop: None, tmp_path: Path) -> None:
    rows = pa.table({"image": [picture(n) for n in range(3)], "caption": ["one", "two", "three"], "n": [0, 1, 2]})
    pq.write_table(rows, tmp_path / "in.parquet")
    pairmill.embed(tmp_path / "in.parquet", tmp_path / "emb", models="tiny", device="cpu", progress=False)
    dataset = pairmill.open(tmp_path / "emb")
    for row in dataset:
        assert looks_like(dataset.picture(row["uid"]), Image.open(io.BytesIO(picture(row["n"]))))


def test_a_dataset_on_s3_is_opened_with_the_passed_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with credentials(), s3_server("shelf") as url:
        s3 = {"endpoint": url}
        write_tar(tmp_path / "00000.tar", samples(5))
        fields = embed_job(tmp_path / "out", tmp_path).model_dump(exclude_unset=True)
        sequentially(pairmill.BuildJob.model_validate({**fields, "output": "s3://shelf/out", "s3": s3}))
        dataset = pairmill.open("s3://shelf/out", s3=s3)
        assert [looks_like(row.picture, Image.open(io.BytesIO(picture(int(row["key"]))))) for row in dataset] == [
            True
        ] * 5
        assert pairmill.status("s3://shelf/out", s3=s3).kept == len(dataset) == 5
        assert pairmill.verify("s3://shelf/out", s3=pairmill.S3Config.model_validate(s3)).holds


SCRIPT = """
import pairmill

settings = {"fetch.allow_networks": ["127.0.0.0/8"], "rules.custom": ["mine:no_fives"]}
result = pairmill.build("in.parquet", OUTPUT, settings=settings)
print(sorted(result.statuses.items()), len(pairmill.open(OUTPUT)))
"""
RULE = """
import pairmill
import pyarrow.compute as pc

@pairmill.at("caption")
def no_fives(rows):
    return pc.invert(pc.match_substring(rows["caption_clean"], "5"))
"""


def test_scripts_and_interactive_sessions_work_beside_folders_named_like_ours(
    source: Path, on_this_ray: list[str], tmp_path: Path
) -> None:
    for name in ("pipeline", "schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong folder was imported')")
    (tmp_path / "jobs.py").write_text("raise SystemExit('the wrong file was imported')")
    (tmp_path / "mine.py").write_text(RULE)
    expected = "[('custom_rule', 2), ('http_4xx', 4), ('ok', 14)] 14\n"
    (tmp_path / "script.py").write_text(SCRIPT.replace("OUTPUT", "'by_script'"))
    address = on_this_ray[-1].partition("=")[2]
    cell = SCRIPT.replace("OUTPUT", "'by_session'").replace(
        "settings = {", f"settings = {{'run.address': {address!r}, "
    )
    # As in a notebook: the code is not in a file, and an event loop is running.
    session = f"import asyncio\nasync def run(): exec({cell!r})\n\nasyncio.run(run())\n"
    for arguments in ([str(tmp_path / "script.py")], ["-i"]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            input=session if arguments == ["-i"] else "",
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


USER_CODE = """
from pathlib import Path
from typing import assert_type

import pairmill
import PIL.Image

job = pairmill.BuildJob(source=pairmill.SourceConfig(paths=["in.csv"]), output="out")
assert_type(pairmill.build(job), pairmill.BuildResult)
assert_type(pairmill.build([Path("in.csv"), "more.csv"], Path("out"), models=["tiny"]), pairmill.BuildResult)
assert_type(pairmill.retry("out", [pairmill.Status.TIMEOUT]).recovered, int)
assert_type(pairmill.select("out", "best", steps={"where": "width > 5"}), pairmill.Subset)
assert_type(pairmill.export("out", "best", Path("train"), format="datacomp"), pairmill.ExportResult)
assert_type(pairmill.verify("out").holds, bool)
dataset = pairmill.open(Path("out"), s3={"endpoint": "http://minio:9000"})
assert_type(dataset.subset("best"), pairmill.Dataset)
assert_type(dataset.picture("0"), PIL.Image.Image)
for row in dataset:
    assert_type(row, pairmill.Row)

pairmill.build("in.csv", "out", modles=["tiny"])
pairmill.export("out", "best", "train", format="zip")
pairmill.bulid
"""


def test_mypy_sees_the_types_of_the_public_api(tmp_path: Path) -> None:
    """With the cache and the settings of `make types`, because checking torch and others again takes a minute."""
    (tmp_path / "user.py").write_text(USER_CODE)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if "/user.py:" in line and ": error: " in line]
    assert len(errors) == 3, done.stdout + done.stderr
    assert 'did you mean "models"?' in errors[0]
    assert "incompatible type \"Literal['zip']\"" in errors[1]
    assert 'Module has no attribute "bulid"' in errors[2]
