"""Tests `pairmill embed` on every kind of corpus."""

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.add_model import add_model
from pairmill.jobs.build import build, prepare
from pairmill.jobs.cli.main import app
from pairmill.jobs.job_file import load_job
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.added_model import pictures_left_out
from pairmill.pipeline.columns.commands import command_to_continue
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.integrity import DamagedFileError
from pairmill.pipeline.dataset.manifests import SupersededError, read_manifests
from pairmill.pipeline.encode.weights import resolve_weights
from pairmill.pipeline.source.cursor import ReadError
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.stages.add_model import OpenColumnsWriter, OpenPairsReader
from pairmill.pipeline.stages.pipelines import open_stages, process_shard
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import shards_from_table
from tests.integration.conftest import SHARED_DATA, PictureWeb
from tests.integration.test_build import job, picture, sequentially, write_input
from tests.tars import write_tar
from tests.unit.scores.embedded import supersede

CAPTION = "a red circle above a blue square, number {}"


def embed_job(output: Path, *sources: Path, **settings: Any) -> BuildJob:
    values = {
        "source": {"paths": [str(path) for path in sources], "kind": "corpus", **settings.pop("source", {})},
        "output": str(output),
        "shard_rows": 4,
        "models": [{"name": "tiny"}],
        "run": {"device": "cpu"},
    }
    return BuildJob.model_validate({**values, **settings})


def rows_in(output: Path, folder: str = "pairs") -> list[dict[str, object]]:
    tables = [
        pq.read_table(output / manifest.files[folder].path)  # type: ignore[index]
        for manifest in read_manifests(Store(str(output)))
    ]
    return pa.concat_tables(tables).to_pylist() if tables else []  # type: ignore[no-any-return]


def samples(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        member
        for n in range(start, start + count)
        for member in ((f"{n:04d}.jpg", picture(n)), (f"{n:04d}.txt", CAPTION.format(n).encode()))
    ]


def bytes_of(row: dict[str, object]) -> bytes:
    with open(row["image_tar"], "rb") as file:
        file.seek(row["image_offset"])
        return file.read(row["image_length"])


def holds(output: Path) -> None:
    report = verify(Store(str(output)))
    assert report.problems == []
    assert report.rescored > 0


def test_tars_are_embedded_and_their_pictures_referenced(ray_session: None, tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", samples(5, 5 * number))
    result = build(embed_job(tmp_path / "out", tmp_path))
    assert (result.rows_in, result.kept, result.shards) == (15, 15, 6)
    rows = rows_in(tmp_path / "out")
    assert sorted(row["caption"] for row in rows) == sorted(CAPTION.format(n) for n in range(15))
    for row in rows:
        assert bytes_of(row) == picture(int(row["key"]))
        assert (row["width"], row["height"], row["original_format"]) == (320, 240, "JPEG")
        image, text = (np.asarray(row[f"{side}_embedding_tiny"], np.float32) for side in ("image", "text"))
        assert abs(float(image @ text) - row["similarity"]) < 2e-3
    assert len({row["uid"] for row in rows}) == 15
    assert not list((tmp_path / "out").glob("images/*"))
    holds(tmp_path / "out")


def test_awkward_samples_cost_only_their_own_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [])
    (tmp_path / "1.tar").write_bytes(b"")
    members = [
        *[("no-caption.jpg", picture(1)), ("two.jpg", picture(2)), ("two.png", picture(3)), ("two.txt", b"two")],
        *[("deep/er/0.jpg", picture(4)), ("deep/er/0.txt", b"in folders"), ("deep/0.jpg", picture(5))],
        *[("latin.jpg", picture(6)), ("latin.txt", b"caf\xe9"), ("alone.txt", b"no picture")],
        *[("broken.jpg", picture(7)[:400]), ("broken.txt", b"cut"), ("svg.jpg", b"<svg></svg>"), ("empty.jpg", b"")],
        *[("same.jpg", picture(2)), ("same.txt", b"two")],
    ]
    write_tar(tmp_path / "2.tar", members)
    whole = write_tar(tmp_path / "whole", samples(3, 100)).read_bytes()
    (tmp_path / "3.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole").unlink()
    result = sequentially(embed_job(tmp_path / "out", tmp_path, shard_rows=100))
    rows = rows_in(tmp_path / "out") + rows_in(tmp_path / "out", "rejects")
    assert result.rows_in == len(rows)
    of_key = {row["key"]: row for row in rows if row["key"] not in ("two", None)}
    assert {key: row["status"] for key, row in of_key.items() if not key.startswith("01")} == {
        "no-caption": "ok",
        "deep/er/0": "ok",
        "deep/0": "ok",
        "latin": "caption_invalid",
        "alone": "row_malformed",
        "broken": "image_corrupt",
        "svg": "image_unsupported",
        "empty": "empty_body",
        "same": "duplicate_in_shard",
    }
    assert of_key["no-caption"]["similarity"] is None
    assert of_key["no-caption"]["image_embedding_tiny"] is not None
    assert [row["status"] for row in rows if row["key"] == "two"] == ["ok"]
    (cut,) = [row for row in rows if "the tar is truncated" in (row["status_detail"] or "")]
    assert cut["status"] == "row_malformed"
    holds(tmp_path / "out")


def test_folders_of_pictures_and_img2datasets_files_are_embedded(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "00000"
    folder.mkdir(parents=True)
    for n in range(3):
        (folder / f"{n:09d}.jpg").write_bytes(picture(n))
        (folder / f"{n:09d}.json").write_text(json.dumps({"caption": f"number {n}", "url": f"http://e.org/{n}"}))
    (folder / "a-red_circle.png").write_bytes(picture(9, kind="PNG"))
    pq.write_table(pa.table({"url": ["http://e.org/0"]}), tmp_path / "in" / "00000.parquet")  # from img2dataset
    sequentially(embed_job(tmp_path / "out", tmp_path / "in", source={"caption_from_name": True}))
    rows = {row["key"]: row for row in rows_in(tmp_path / "out")}
    assert [rows[f"{n:09d}"]["caption"] for n in range(3)] == ["number 0", "number 1", "number 2"]
    assert rows["000000001"]["url"] == "http://e.org/1"
    assert rows["a-red_circle"]["caption"] == "a red circle"
    assert bytes_of(rows["a-red_circle"]) == picture(9, kind="PNG")
    holds(tmp_path / "out")


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_with_pictures_is_embedded(tmp_path: Path, struct: bool) -> None:
    bodies: list[Any] = [picture(n) for n in range(5)] + [None]
    image = pa.array([body and {"bytes": body, "path": "x"} for body in bodies] if struct else bodies)
    table = pa.table({"image": image, "text": [f"number {n}" for n in range(6)], "license": ["cc"] * 6})
    pq.write_table(table, tmp_path / "in.parquet")
    sequentially(embed_job(tmp_path / "out", tmp_path / "in.parquet"))
    rows = rows_in(tmp_path / "out")
    assert [row["caption"] for row in rows] == [f"number {n}" for n in range(5)]
    assert {(row["license"], row["image_tar"], row["image_offset"]) for row in rows} == {
        ("cc", str(tmp_path / "in.parquet"), None)
    }
    (lost,) = rows_in(tmp_path / "out", "rejects")
    assert (lost["status"], lost["status_detail"]) == ("empty_body", "no picture in this row")
    holds(tmp_path / "out")


def test_embedding_the_output_of_a_build_reproduces_its_embeddings(web: PictureWeb, tmp_path: Path) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n, (700, 500))), "caption": CAPTION.format(n)} for n in range(8)]
    source = write_input(tmp_path / "in.parquet", rows)
    sequentially(job(source, tmp_path / "built", models=[{"name": "tiny"}]))
    sequentially(embed_job(tmp_path / "out", tmp_path / "built"))
    before = {row["uid"]: row for row in rows_in(tmp_path / "built")}
    after = {row["uid"]: row for row in rows_in(tmp_path / "out")}
    assert before.keys() == after.keys()
    for uid, row in after.items():
        assert abs(row["similarity"] - before[uid]["similarity"]) < 1e-3
        assert np.abs(np.subtract(row["image_embedding_tiny"], before[uid]["image_embedding_tiny"])).max() < 1e-3
        assert row["url"] == before[uid]["url"]
    holds(tmp_path / "out")


def test_captions_alone_and_pictures_alone_are_embedded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a red circle", None, "a blue square"]}), tmp_path / "texts.parquet")
    sequentially(embed_job(tmp_path / "texts", tmp_path / "texts.parquet"))
    rows = rows_in(tmp_path / "texts")
    assert [row["caption"] for row in rows] == ["a red circle", "a blue square"]
    assert all(row["text_embedding_tiny"] and not row["image_embedding_tiny"] for row in rows)
    holds(tmp_path / "texts")
    (tmp_path / "pictures").mkdir()
    for n in range(3):
        (tmp_path / "pictures" / f"{n}.jpg").write_bytes(picture(n))
    sequentially(embed_job(tmp_path / "images", tmp_path / "pictures"))
    rows = rows_in(tmp_path / "images")
    assert len(rows) == 3
    assert all(row["image_embedding_tiny"] and not row["text_embedding_tiny"] for row in rows)
    holds(tmp_path / "images")


def test_a_picture_too_elongated_for_the_model_costs_only_its_row(tmp_path: Path) -> None:
    strip = io.BytesIO()
    Image.new("L", (1, 60_000)).save(strip, "PNG")
    (tmp_path / "in").mkdir()
    for name, body in (("strip.png", strip.getvalue()), ("good.jpg", picture(1))):
        (tmp_path / "in" / name).write_bytes(body)
    sequentially(embed_job(tmp_path / "out", tmp_path / "in"))
    (lost,) = rows_in(tmp_path / "out", "rejects")
    assert (lost["key"], lost["status"]) == ("strip", "image_bomb")
    assert [row["key"] for row in rows_in(tmp_path / "out")] == ["good"]


def test_rows_of_another_output_cannot_refer_to_arbitrary_files(tmp_path: Path) -> None:
    sequentially(embed_job(tmp_path / "first", write_tar(tmp_path / "a.tar", samples(4))))
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(77))
    path = tmp_path / "first" / "pairs" / "000000000.parquet"
    table = pq.ParquetFile(path).read()
    metadata, rows = table.schema.metadata, table.to_pylist()
    rows[0] |= {"image_tar": str(secret), "image_offset": 0, "image_length": secret.stat().st_size}
    rows[1] |= {"image_tar": "images/../../secret.jpg", "image_offset": 0, "image_length": secret.stat().st_size}
    rows[2] |= {"image_length": -1}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata(metadata), path)
    sequentially(embed_job(tmp_path / "out", tmp_path / "first"))
    lost = {row["uid"]: (row["status"], row["sha256"]) for row in rows_in(tmp_path / "out", "rejects")}
    assert lost == {
        rows[0]["uid"]: ("empty_body", None),
        rows[1]["uid"]: ("empty_body", None),
        rows[2]["uid"]: ("row_malformed", None),
    }
    assert [row["uid"] for row in rows_in(tmp_path / "out")] == [rows[3]["uid"]]


def test_a_missing_tar_fails_its_shards_until_it_is_back(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(4))
    pipeline, _ = prepare(embed_job(tmp_path / "out", path))
    path.rename(tmp_path / "away")
    (shard,) = shards_from_table(load_plan(pipeline.store).shards)
    stages = open_stages(pipeline)
    with pytest.raises(ReadError, match=r"a\.tar: cannot be read"):
        process_shard(shard, stages)
    for _, stage in stages:
        stage.close()
    (tmp_path / "away").rename(path)
    assert sequentially(embed_job(tmp_path / "out", path)).kept == 4


def test_the_captions_in_a_list_share_their_picture(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "text": [f"one {n}", f"two {n}"]} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    sequentially(embed_job(tmp_path / "out", tmp_path / "in.parquet"))
    found = rows_in(tmp_path / "out")
    assert sorted(row["caption"] for row in found) == sorted(caption for row in rows for caption in row["text"])
    assert len({row["sha256"] for row in found}) == 3
    holds(tmp_path / "out")


def test_files_added_later_must_have_pictures_in_the_planned_column(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [picture(1)], "text": ["a"]}), tmp_path / "in" / "0.parquet")
    sequentially(embed_job(tmp_path / "out", tmp_path / "in"))
    pq.write_table(pa.table({"jpg": [picture(2)], "text": ["b"]}), tmp_path / "in" / "1.parquet")
    with pytest.raises(ValueError, match="its pictures are not where this output's plan"):
        sequentially(embed_job(tmp_path / "out", tmp_path / "in"))
    (tmp_path / "in" / "1.parquet").unlink()
    pq.write_table(pa.table({"image": [picture(2)], "text": ["b"]}), tmp_path / "in" / "2.parquet")
    assert sequentially(embed_job(tmp_path / "out", tmp_path / "in")).kept == 2


def test_a_single_picture_is_refused_and_not_mistaken_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    with pytest.raises(SourceError, match="specify the folder"):
        sequentially(embed_job(tmp_path / "out", tmp_path / "a.jpg"))


def test_a_stopped_run_resumes_and_writes_the_same_output(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(12))
    sequentially(embed_job(tmp_path / "calm", tmp_path / "a.tar"))
    sequentially(embed_job(tmp_path / "stopped", tmp_path / "a.tar"))
    for name in ("manifests/000000001.json", "pairs/000000001.parquet"):
        (tmp_path / "stopped" / name).unlink()
    sequentially(embed_job(tmp_path / "stopped", tmp_path / "a.tar"))
    calm, again = (pa.Table.from_pylist(rows_in(tmp_path / name)) for name in ("calm", "stopped"))
    assert calm.equals(again)


def test_a_changed_or_missing_tar_is_named_in_the_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(6))
    sequentially(embed_job(tmp_path / "out", path))
    write_tar(path, samples(6, 50))
    with pytest.raises(ValueError, match="has changed since it was planned"):
        sequentially(embed_job(tmp_path / "out", path))
    for _ in range(2):  # changed, then gone
        problems = verify(Store(str(tmp_path / "out"))).problems
        assert problems
        assert all("are missing or have changed" in each or "cannot be read" in each for each in problems)
        path.unlink(missing_ok=True)


def test_unusable_input_to_embed_is_reported_with_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        sequentially(embed_job(tmp_path / "out", tmp_path / "empty"))
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(SourceError, match="has no rows"):
        sequentially(embed_job(tmp_path / "out", tmp_path / "empty.tar"))
    with pytest.raises(ValueError, match="at least one model"):
        embed_job(tmp_path / "out", tmp_path, models=[])
    with pytest.raises(JobError, match="a corpus is not downloaded"):
        load_job(None, {"source.kind": "corpus", "source.paths": ["x"], "output": "y", "fetch.timeout_s": 3})
    with pytest.raises(ValueError, match=r"rules\.url_"):
        embed_job(tmp_path / "out", tmp_path, rules={"url_block_hosts": ["e.org"]})
    write_tar(tmp_path / "a.tar", samples(1))
    with pytest.raises(JobError, match="no CUDA device"):
        sequentially(embed_job(tmp_path / "out", tmp_path / "a.tar", run={"device": "cuda"}))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"the real tars are not at {SHARED_DATA}")
def test_the_real_tars_and_pictures_of_clip_retrieval_are_embedded(tmp_path: Path) -> None:
    result = sequentially(embed_job(tmp_path / "tars", SHARED_DATA / "tars"))
    assert result.rows_in == result.kept == 11
    holds(tmp_path / "tars")
    result = sequentially(embed_job(tmp_path / "images", SHARED_DATA / "clip_b32" / "clip_retrieval9" / "images"))
    assert result.rows_in == 9
    holds(tmp_path / "images")


@pytest.mark.parametrize("kind", ["build", "tars", "parquet"])
def test_adding_a_model_later_has_the_same_result_as_one_pass_with_both(
    plain_loop: None, web: PictureWeb, tmp_path: Path, kind: str
) -> None:
    first, second = {"name": "tiny", "alias": "first"}, {"name": "tiny", "alias": "second"}
    if kind == "build":
        rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": CAPTION.format(n)} for n in range(13)]
        source, make = write_input(tmp_path / "in.parquet", [*rows, {"url": "http://10.0.0.1/", "caption": "no"}]), job
    elif kind == "tars":
        source, make = write_tar(tmp_path / "a.tar", samples(13)), embed_job
    else:
        table = {"image": [picture(n) for n in range(13)], "text": [CAPTION.format(n) for n in range(13)]}
        pq.write_table(pa.table(table), tmp_path / "in.parquet")
        source, make = tmp_path / "in.parquet", embed_job
    once, later = tmp_path / "once", tmp_path / "later"
    if kind == "build":
        sequentially(make(source, once, models=[first, second]))
        sequentially(make(source, later, models=[first]))
    else:
        sequentially(make(once, source, models=[first, second]))
        sequentially(make(later, source, models=[first]))
    before = {path: path.read_bytes() for path in later.rglob("*") if path.is_file()}
    assert add_model(str(later), second).shards_missing == []
    assert all(path.read_bytes() == data for path, data in before.items())
    for manifest in read_manifests(Store(str(later))):
        name = manifest.name.removesuffix(".json")
        pairs = pq.read_table(later / "pairs" / f"{name}.parquet")
        added = pq.read_table(later / "columns" / "second" / f"{name}.parquet")
        expected = pq.read_table(once / "pairs" / f"{name}.parquet")
        assert added["row_id"].equals(pairs["row_id"])
        assert added.drop_columns(["row_id"]).equals(expected.select(added.column_names[1:]))
    holds(later)
    newest = max((later / "columns" / "second").glob("*.parquet"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert any("columns/second" in problem for problem in verify(Store(str(later)), rescore=0).problems)


def test_adding_a_model_counts_pictures_that_are_missing_or_have_changed(plain_loop: None, tmp_path: Path) -> None:
    """Such pairs have no scores, and a `where` treats null as false, so otherwise nobody would notice."""
    folder = tmp_path / "pictures"
    more = {"name": "tiny", "alias": "more", "weights_sha256": resolve_weights([ModelConfig(name="tiny")])[0]}
    folder.mkdir()
    for name, data in samples(9):
        (folder / name).write_bytes(data)
    sequentially(embed_job(tmp_path / "out", folder))
    (folder / "0001.jpg").unlink()
    (folder / "0002.jpg").write_bytes(picture(7))
    result = add_model(str(tmp_path / "out"), more)
    assert result.pictures_left_out == {"000000000.json": 2}
    assert result.as_dict()["pictures_left_out"] == {"000000000.json": 2}
    for name, data in samples(9):
        (folder / name).write_bytes(data)
    (tmp_path / "out/columns/more/manifests/000000000.json").unlink()  # as the command tells the user to do
    command = command_to_continue(Store(str(tmp_path / "out")), "more", "model")
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0  # although it cannot give weights_sha256
    assert pictures_left_out(Store(str(tmp_path / "out")), "more") == {}
    table = pairmill.open(tmp_path / "out").table(["similarity", "similarity_more"])
    assert table["similarity"].equals(table["similarity_more"])


def test_adding_a_model_to_a_dataset_with_a_damaged_tar_fails_and_names_the_tar(
    plain_loop: None, web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": CAPTION.format(n)} for n in range(3)]
    sequentially(job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out", models=[{"name": "tiny"}]))
    (tar,) = (tmp_path / "out/images").glob("*.tar")
    data = tar.read_bytes()
    offset = rows_in(tmp_path / "out")[1]["image_offset"]
    tar.write_bytes(data[: offset + 90] + bytes([data[offset + 90] ^ 1]) + data[offset + 91 :])
    with pytest.raises(DamagedFileError, match=r"000000000\.tar is damaged at the picture of row 0:1"):
        add_model(str(tmp_path / "out"), {"name": "tiny", "alias": "more"})


@pytest.mark.parametrize("stage", [OpenPairsReader, OpenColumnsWriter])
def test_adding_a_model_beside_a_retry_names_the_replaced_shard_and_the_next_run_adds_it(
    plain_loop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    sequentially(embed_job(tmp_path / "out", write_tar(tmp_path / "a.tar", samples(3))))
    store, step = Store(str(tmp_path / "out")), stage.__call__

    def beside_a_retry(opened: Any, batch: Any) -> Any:
        monkeypatch.setattr(stage, "__call__", step)
        supersede(store, 0)
        return step(opened, batch)

    monkeypatch.setattr(stage, "__call__", beside_a_retry)
    more = {"name": "tiny", "alias": "more"}
    with pytest.raises(SupersededError, match=r"has replaced shard 0 .* run the same command again"):
        add_model(store.root, more)
    assert add_model(store.root, more).shards_missing == []
    assert verify(store, rescore=0).problems == []


def test_adding_a_model_resumes_after_a_stop_and_refuses_a_taken_alias(plain_loop: None, tmp_path: Path) -> None:
    sequentially(embed_job(tmp_path / "out", write_tar(tmp_path / "a.tar", samples(9))))
    with pytest.raises(JobError, match="already has a model with the alias 'tiny'"):
        add_model(str(tmp_path / "out"), {"name": "tiny"})
    add_model(str(tmp_path / "out"), {"name": "tiny", "alias": "more"})
    folder = tmp_path / "out" / "columns" / "more"
    calm = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    (folder / "manifests" / "000000001.json").unlink()  # as if killed before it was written
    (folder / "000000002.parquet").unlink()
    (folder / "manifests" / "000000002.json").unlink()
    assert add_model(str(tmp_path / "out"), {"name": "tiny", "alias": "more"}).shards_missing == []
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == calm
    with pytest.raises(JobError, match="belongs to another model, other weights or another dtype"):
        add_model(str(tmp_path / "out"), {"name": "tiny", "alias": "more", "dtype": "bfloat16"})


def test_an_added_model_is_resumed_with_the_dtype_that_its_columns_were_started_with(
    plain_loop: None, tmp_path: Path
) -> None:
    sequentially(embed_job(tmp_path / "out", write_tar(tmp_path / "a.tar", samples(3))))
    model = {"name": "tiny", "alias": "more"}
    add_model(str(tmp_path / "out"), {**model, "dtype": "bfloat16"})
    assert add_model(str(tmp_path / "out"), model).shards_missing == []
