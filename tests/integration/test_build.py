"""Tests whole builds on a real Ray instance and on this machine, with a real loopback web server."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pairmill.jobs.build import build, prepare, run_shards_of
from pairmill.jobs.cluster.lost_shards import EngineError, Outcome
from pairmill.jobs.cluster.run_shards import run_shards
from pairmill.jobs.progress import ConsoleProgress
from pairmill.jobs.results import BuildResult, finish
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.faults import Failure
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import committed, read_manifests
from pairmill.pipeline.rules import blocklists
from pairmill.pipeline.stages.pipelines import build_pipeline, open_stages, process_shard
from pairmill.schemas.errors import FailureKind, JobError
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest, shards_from_table
from tests.integration.conftest import SHARED_DATA, PictureWeb, run_in_this_process

NOT_REPRODUCIBLE = ("fetched_at", "fetch_s", "fetch_attempts")


def picture(seed: int, size: tuple[int, int] = (320, 240), kind: str = "JPEG", grid: tuple[int, int] = (6, 8)) -> bytes:
    """A smooth picture, different for every seed. `grid`: how many spots it has."""
    small = np.random.default_rng(seed).integers(0, 256, (*grid, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind, quality=90)
    return file.getvalue()


SHA256 = hashlib.sha256(picture(0)).hexdigest()


def write_input(path: Path, rows: Sequence[dict[str, object]], row_group_size: int = 10) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)
    return path


def job(source: Path, output: Path, **settings: Any) -> BuildJob:
    values = {
        "source": {"paths": [str(source)]},
        "output": str(output),
        "shard_rows": 10,
        "fetch": {"timeout_s": 5, "retries": 0, "allow_networks": ["127.0.0.0/8"]},
    }
    return BuildJob.model_validate({**values, **settings})


def mixed_rows(web: PictureWeb, count: int = 35) -> list[dict[str, object]]:
    """Good pictures, dead links, broken files, duplicate pairs and bad captions, spread over all shards."""
    rows: list[dict[str, object]] = []
    for n in range(count):
        url = web.add(f"/{n}.jpg", picture(n))
        caption: str | None = f"picture &amp; number {n}"
        match n % 7:
            case 1:
                url = url.replace(f"/{n}.jpg", f"/gone{n}.jpg")
            case 2:
                url = web.add(f"/{n}.jpg", picture(n)[:-2000])
            case 3:
                url, caption = rows[-3]["url"], rows[-3]["caption"]
            case 4:
                caption = None
            case 5:
                url = f"ftp://127.0.0.1/{n}.jpg"
        rows.append({"url": url, "caption": caption, "similarity": n / 2, "STATUS": "mine", "note": None})
    return rows


def sequentially(build_job: BuildJob) -> BuildResult:
    """The plain loop over stages, without Ray, for shards that are not done yet."""
    pipeline, plan = prepare(build_job)
    done = committed(pipeline.store)
    stages = open_stages(pipeline)
    for shard in shards_from_table(plan.shards):
        if shard.shard not in done:
            process_shard(shard, stages)
    for _, stage in stages:
        stage.close()
    return finish(pipeline.store, plan, {}, 0.0)


def dataset(output: Path | str, folder: str) -> pa.Table:
    paths = [str(Path(output, m.files[folder].path)) for m in read_manifests(Store(str(output)))]  # type: ignore[index]
    return pa.concat_tables(pq.read_table(path) for path in paths).sort_by("row_id")


def test_the_plain_loop_and_ray_produce_equal_tables(ray_session: None, web: PictureWeb, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.parquet", mixed_rows(web))
    settings = {"models": [{"name": "tiny"}], "rules": {"min_similarity": 0.0}}
    sequentially(job(source, tmp_path / "plain", **settings))
    build(job(source, tmp_path / "ray", **settings))
    for folder in ("pairs", "rejects"):
        plain, ray = dataset(tmp_path / "plain", folder), dataset(tmp_path / "ray", folder)
        scores = [n for n in plain.column_names if "similarity" in n or "_embedding_" in n]
        near = {"status", "kept"} if folder == "pairs" else set()
        exact = [n for n in plain.column_names if n not in {*scores, *NOT_REPRODUCIBLE, *near}]
        assert plain.schema.equals(ray.schema)
        assert plain.select(exact).equals(ray.select(exact))
        for name in set(scores) - {"source_similarity"}:
            one, other = flat(plain[name]), flat(ray[name])
            assert one.dtype == (np.float16 if "embedding" in name else np.float32)
            # Stored embeddings may be rounded to either of two neighboring float16 values.
            one_rounding = np.spacing(np.abs(one)) if "embedding" in name else 0
            assert (np.abs(one.astype(np.float64) - other) <= 1e-5 + one_rounding).all()
        if folder == "pairs":
            far = [abs(score) > 1e-4 for score in plain["similarity"].to_pylist()]  # excludes rows near the threshold
            assert sum(far) > 0.9 * len(far)
            for name in near:
                assert plain[name].filter(pa.array(far)).equals(ray[name].filter(pa.array(far)))
    assert tars(tmp_path / "plain").keys() == tars(tmp_path / "ray").keys()


def flat(column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    return (values.flatten() if pa.types.is_fixed_size_list(values.type) else values).to_numpy(zero_copy_only=False)


def tars(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (output / "images").iterdir()}


def test_every_input_row_comes_out_exactly_once_with_its_status(
    plain_loop: None, web: PictureWeb, tmp_path: Path
) -> None:
    rows = mixed_rows(web)
    result = build(job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out"))
    assert result.rows_in == len(rows) == result.pairs + result.rejects
    assert result.shards_missing == []
    assert result.statuses == {
        "ok": 12,  # ten good rows, and two repeats that are not in the shards of their originals
        "http_4xx": 5,
        "image_corrupt": 5,
        "caption_missing": 5,
        "url_scheme": 5,
        "duplicate_in_shard": 3,
    }
    seen = [row_id for f in ("pairs", "rejects") for row_id in dataset(tmp_path / "out", f)["row_id"].to_pylist()]
    assert sorted(seen) == sorted(f"{n // 10}:{n % 10}" for n in range(len(rows)))


@pytest.mark.parametrize(
    ("refused", "columns", "needs"),
    [
        ("license_not_allowed", {"license": ["(c)", "CC-BY", "CC-BY"]}, {"rules": {"license_allow": ["CC-BY"]}}),
        ("content_changed", {"digest": ["0" * 64, SHA256, SHA256]}, {"source": {"sha256_column": "digest"}}),
        ("http_4xx", {"id": [f"{7:032x}"] * 3, "url": ["/gone", "/0", "/1"]}, {"source": {"uid_column": "id"}}),
        ("duplicate_in_shard", {"score": [0.1, 0.9, 0.9]}, {"rules": {"custom": ["own_rule_of_repeats:high"]}}),
    ],
    ids=["caption rule", "digest", "own uid", "score rule"],
)
def test_a_refused_row_does_not_take_the_place_of_a_good_row_with_its_uid(
    plain_loop: None, web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    refused: str, columns: dict[str, list[Any]], needs: dict[str, object],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rule = "import pyarrow.compute as pc\ndef high(rows): return pc.greater(rows['score'], 0.5)\n"
    (tmp_path / "own_rule_of_repeats.py").write_text(rule)
    paths = columns.get("url", ["/0"] * 3)
    urls = {path: web.add(path, picture(0)) for path in ("/0", "/1")} | {"/gone": web.add("/gone", b"", 404)}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [{**row, "url": urls[path], "caption": "a"} for path, row in zip(paths, rows, strict=True)]
    source = write_input(tmp_path / "in.parquet", rows)
    values = job(source, tmp_path / "out").model_dump(exclude_unset=True)
    build(BuildJob.model_validate({**values, **needs, "source": {**values["source"], **needs.get("source", {})}}))
    assert sorted(web.log) == sorted(set(paths)), "every URL is fetched once"
    tables = [dataset(tmp_path / "out", f).select(["row_id", "status", "status_detail"]) for f in ("pairs", "rejects")]
    first, good, repeat = pa.concat_tables(tables).sort_by("row_id").to_pylist()
    assert first["status"] == refused
    assert good == {"row_id": "0:1", "status": "ok", "status_detail": None}
    assert repeat == {"row_id": "0:2", "status": "duplicate_in_shard", "status_detail": "row 0:1"}


def test_a_picture_with_a_list_of_captions_is_fetched_and_counted_once(
    plain_loop: None, web: PictureWeb, tmp_path: Path
) -> None:
    bodies = [picture(n) for n in range(3)]
    rows = [{"url": web.add(f"/{n}.jpg", body), "caption": ["one", "two"]} for n, body in enumerate(bodies)]
    lines: list[str] = []

    class Lines(io.StringIO):
        def write(self, text: str) -> int:
            lines.append(text)
            return len(text)

    result = build(job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out"), ConsoleProgress(Lines()))
    (manifest,) = read_manifests(Store(result.output))
    assert (manifest.num_rows, manifest.rows_in, result.kept) == (3, 6, 6)
    assert manifest.bytes_fetched == sum(map(len, bodies))
    assert sorted(web.log) == ["/0.jpg", "/1.jpg", "/2.jpg"]
    assert any(line.startswith("3/3 rows") for line in lines)
    assert dataset(tmp_path / "out", "pairs")["caption_index"].to_pylist() == [0, 1] * 3


def test_similarities_equal_plain_open_clip_on_the_stored_pictures(web: PictureWeb, tmp_path: Path) -> None:
    import open_clip
    import torch

    from pairmill.pipeline.encode.weights import TINY_FOLDER

    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"a red circle number {n}"} for n in range(24)]
    sequentially(job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out", models=[{"name": "tiny"}]))
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{TINY_FOLDER}")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{TINY_FOLDER}")
    for row in dataset(tmp_path / "out", "pairs").to_pylist():
        with open(tmp_path / "out" / row["image_tar"], "rb") as file, torch.inference_mode():
            file.seek(row["image_offset"])
            stored = Image.open(io.BytesIO(file.read(row["image_length"])))
            image = model.encode_image(preprocess(stored).unsqueeze(0), normalize=True)
            text = model.encode_text(tokenize([row["caption_clean"]]), normalize=True)
        assert abs(float(image @ text.T) - row["similarity_tiny"]) <= 1e-3
        assert row["similarity"] == row["similarity_tiny"]
        assert np.allclose(row["image_embedding_tiny"], image[0].numpy(), atol=1e-3)


def test_verify_passes_after_a_build_and_names_damage_that_a_build_then_repairs(
    web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(40)]
    build_job = job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out", models=[{"name": "tiny"}])
    store = Store(sequentially(build_job).output)
    report = verify(store, rescore=8)
    assert report.holds, report.problems
    assert (report.rows, report.pictures, report.rescored) == (40, 40, 8)
    assert report.max_score_difference <= 1e-3
    tar = tmp_path / "out" / "images" / "000000001.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    (tmp_path / "out" / "rejects" / "000000000.parquet").unlink()
    for shard, said, instead in ((2, '"ok": 10', '"ok": 9, "timeout": 1'), (3, '"first_row": 30', '"first_row": 20')):
        manifest = tmp_path / "out" / "manifests" / f"00000000{shard}.json"
        assert said in manifest.read_text()
        manifest.write_text(manifest.read_text().replace(said, instead))
    report = verify(store, rescore=0)
    problems = "\n".join(report.problems)
    assert "shard 000000000: rejects/000000000.parquet is missing" in problems
    assert "shard 000000001: images/000000001.tar has changed since it was committed" in problems
    assert "shard 000000002: the statuses in the manifest and in the files differ" in problems
    assert "shard 000000003: has different input rows than planned" in problems
    assert report.damaged == [f"manifests/00000000{shard}.json" for shard in range(4)]
    for name in report.damaged:
        store.delete(name)
    sequentially(build_job)
    assert verify(store).problems == []
    assert {path.name for path in (tmp_path / "out" / "pairs").iterdir()} == {
        m.files["pairs"].path[6:] for m in read_manifests(store)
    }


def test_a_second_run_does_nothing_and_a_different_job_is_refused_with_the_changed_field(
    web: PictureWeb, tmp_path: Path
) -> None:
    source = write_input(tmp_path / "in.parquet", mixed_rows(web, 20))
    first = sequentially(job(source, tmp_path / "out"))
    asked = len(web.log)
    again = build(job(source, tmp_path / "out"))
    assert len(web.log) == asked
    assert first.statuses == again.statuses
    with pytest.raises(JobError, match=r"images\.size: 512 in that job, 256 in this one"):
        build(job(source, tmp_path / "out", images={"size": 256}))


def test_a_corrected_rule_needs_a_new_folder_and_the_message_says_when_the_old_plan_can_be_deleted(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"url": web.add("/1.jpg", picture(1)), "caption": "one"}]
    blocklist = tmp_path / "blocked.txt"
    blocklist.write_text("http://a.example/1.jpg\n")
    build_job = job(
        write_input(tmp_path / "in.parquet", rows), tmp_path / "out", rules={"url_blocklist": str(blocklist)}
    )
    prepare(build_job)
    blocklist.write_text("http://a.example/2.jpg\n")
    blocklists._load.cache_clear()
    with pytest.raises(
        JobError, match=r"the content of .*\n.*may be running.* if no run is using this one, delete its plan/"
    ):
        prepare(build_job)
    with pytest.raises(JobError, match=r"images\.size: 512 in that job, 64 in this one"):
        prepare(build_job.model_copy(update={"images": ImagesConfig(size=64)}))


def test_damaged_shards_at_the_start_do_not_block_the_good_ones(web: PictureWeb, tmp_path: Path) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"n {n}"} for n in range(60)]
    folder = tmp_path / "in"
    folder.mkdir()
    write_input(folder / "a.parquet", rows[:40])
    write_input(folder / "b.parquet", rows[40:])
    build_job = job(folder, tmp_path / "out", run={"max_failed_shards_in_a_row": 2})
    pipeline, plan = prepare(build_job)
    broken = bytearray((folder / "a.parquet").read_bytes())
    broken[4:-2000] = bytes(len(broken) - 2004)  # damages the pages, not the footer
    (folder / "a.parquet").write_bytes(broken)
    outcomes: list[Outcome] = []
    run_shards(plan.shards, pipeline, outcomes.append)
    good = {each.shard for each in outcomes if isinstance(each.result, ShardManifest)}
    unreadable = {
        each.shard for each in outcomes if isinstance(each.result, Failure) and each.result.kind is FailureKind.INPUT
    }
    assert good | unreadable == set(range(6))
    assert good >= {4, 5}
    assert unreadable >= {0, 1}  # enough failures in a row to stop the run


def test_a_worker_that_cannot_start_stops_the_run_and_the_error_says_why(web: PictureWeb, tmp_path: Path) -> None:
    """This simulates a cluster with a node that lacks the weights, which is noticed only on that node."""
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"n {n}"} for n in range(50)]
    build_job = job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out")
    _, plan = prepare(build_job)
    models = [ModelConfig(name="no-such-model", pretrained="x")]
    pipeline = build_pipeline(build_job.model_copy(update={"models": models}), plan.mapping, "0" * 32)
    with pytest.raises(EngineError, match="'encode' could start: open_clip has no model 'no-such-model'"):
        run_shards(plan.shards, pipeline, lambda _: None)


def test_a_shard_with_damaged_input_fails_alone(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        rows = [{"url": web.add(f"/{name}{n}.jpg", picture(n)), "caption": f"{name} {n}"} for n in range(10)]
        write_input(folder / f"{name}.parquet", rows)
    build_job = job(folder, tmp_path / "out")
    _, plan = prepare(build_job)
    whole = (folder / "a.parquet").read_bytes()
    broken = bytearray(whole)
    broken[4:400] = bytes(396)  # damages the pages, not the footer

    def run() -> BuildResult:
        failures: dict[int, str] = {}
        pipeline, _ = prepare(build_job)
        (folder / "a.parquet").write_bytes(broken)  # after planning: the file breaks while the job runs
        run_shards_of(pipeline, plan.shards, None, failures)
        return finish(pipeline.store, plan, failures, 0.0)

    result = run()
    assert result.shards_missing == [0]
    assert result.rows_in == 10
    assert list(result.failures) == [0]
    assert (tmp_path / "out" / "failures" / "000000000.txt").read_text().startswith("Traceback")
    (folder / "a.parquet").write_bytes(whole)
    run_in_this_process(monkeypatch)
    healed = build(build_job)
    assert healed.shards_missing == []
    assert healed.rows_in == 20
    assert not (tmp_path / "out" / "failures" / "000000000.txt").exists()


@pytest.fixture(scope="module")
def one_null_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of three shards; in the first, `note` is null in every row."""
    folder, web = tmp_path_factory.mktemp("null"), PictureWeb()
    rows = [
        {"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}", "note": None if n < 10 else n}
        for n in range(30)
    ]
    sequentially(job(write_input(folder / "in.parquet", rows, 30), folder / "out", models=[{"name": "tiny"}]))
    web.close()
    return folder / "out"


def _rows_in_duckdb(glob: str) -> list[Any]:
    import duckdb

    query = "select count(*), sum(note), avg(similarity), max(len(image_embedding_tiny)) from read_parquet(?)"
    return list(duckdb.execute(query, [glob]).fetchone() or [])


def _rows_in_polars(glob: str) -> list[Any]:
    import polars as pl

    frame = pl.read_parquet(glob)
    dim = frame["image_embedding_tiny"].to_list()[0]
    return [len(frame), frame["note"].sum(), frame["similarity"].mean(), len(dim)]


def _rows_in_pandas(glob: str) -> list[Any]:
    import pandas as pd

    frame = pd.read_parquet(str(Path(glob).parent))
    return [len(frame), frame["note"].sum(), frame["similarity"].mean(), len(frame["image_embedding_tiny"][0])]


def _rows_in_datasets(glob: str) -> list[Any]:
    import datasets

    cache = str(Path(glob).parents[2] / "cache")
    table = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=cache)
    notes = [note for note in table["note"] if note is not None]
    return [len(table), sum(notes), float(np.mean(table["similarity"])), len(table[0]["image_embedding_tiny"])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("read", [_rows_in_duckdb, _rows_in_polars, _rows_in_pandas, _rows_in_datasets])
def test_shards_open_as_one_table_even_if_a_column_is_all_null_in_one(
    one_null_shard: Path, read: Callable[[str], list[Any]]
) -> None:
    rows, total, similarity, dim = read(f"{one_null_shard}/pairs/*.parquet")
    table = ds.dataset(one_null_shard / "pairs").to_table()
    assert (rows, total) == (30, sum(range(10, 30)))
    assert similarity == pytest.approx(pc.mean(table["similarity"]).as_py(), abs=1e-6)
    assert dim == table.schema.field("image_embedding_tiny").type.list_size


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_tars_open_in_webdataset(one_null_shard: Path) -> None:
    import webdataset

    urls = sorted(str(path) for path in (one_null_shard / "images").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    captions = {row["uid"]: row["caption_clean"] for row in dataset(one_null_shard, "pairs").to_pylist()}
    assert {sample["__key__"]: sample["txt"] for sample in samples} == captions
    assert all(sample["json"]["uid"] == sample["__key__"] for sample in samples)
    assert {sample["jpg"].size for sample in samples} == {(320, 240)}


@pytest.mark.skipif(
    not SHARED_DATA.exists(), reason=f"LOUD: {SHARED_DATA} is missing, so the real photographs are not tested"
)
def test_a_build_works_on_real_photographs(plain_loop: None, web: PictureWeb, tmp_path: Path) -> None:
    listed = [json.loads(line) for line in (SHARED_DATA / "pairs" / "pairs.jsonl").read_text().splitlines()]
    with open(tmp_path / "in.jsonl", "w") as file:
        for row in listed:
            url = web.add(
                f"/{row['file']}", (SHARED_DATA / "pairs" / row["file"]).read_bytes(), Content_Type="image/jpeg"
            )
            file.write(json.dumps({**row, "original": row.get("url"), "url": url}) + "\n")
    settings: dict[str, object] = {
        "models": [{"name": "tiny"}],
        "rules": {"preset": "datacomp-basic"},
        "shard_rows": 250,
    }
    from pairmill.jobs.job_file import resolve

    values = job(tmp_path / "in.jsonl", tmp_path / "out").model_dump(exclude_unset=True)
    result = build(resolve({**values, **settings}))
    print(json.dumps(result.as_dict()))
    assert result.rows_in == sum(len(row["captions"]) for row in listed)
    assert result.rows_in == result.pairs + result.rejects
    assert set(result.statuses) <= {
        "ok", "caption_language", "caption_too_few_words", "caption_too_short", "image_too_small", "image_aspect",
        "duplicate_in_shard",
    }  # fmt: skip
    large = 0
    for row in listed:
        with Image.open(SHARED_DATA / "pairs" / row["file"]) as photograph:
            large += len(row["captions"]) if min(photograph.size) >= 200 else 0
    assert 0.98 * large <= result.kept <= large  # the captions are English sentences, with few exceptions
    assert verify(Store(result.output), rescore=32).problems == []
