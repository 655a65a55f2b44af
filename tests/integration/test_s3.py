"""Tests jobs on S3, against moto's server."""

import json
import os
import re
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from torch.utils.data import DataLoader

import pairmill
from pairmill.jobs.build import build
from pairmill.jobs.explore import run_select
from pairmill.jobs.export import export
from pairmill.jobs.report import report as write_report
from pairmill.jobs.search import SearchResult
from pairmill.jobs.select import select
from pairmill.pipeline.check.verify import foreign_files, verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.strays import DATA_FOLDERS
from pairmill.pipeline.dataset.subset import read_rows, read_subset
from pairmill.pipeline.explore.app import app
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.labels import Labels
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.known.known_error import KnownError
from pairmill.pipeline.known.open_filters import open_filters
from pairmill.pipeline.known.prepare import prepared
from pairmill.pipeline.search.errors import SearchError
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.known import KnownRows
from pairmill.schemas.subset import SelectJob
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import job, mixed_rows, picture, sequentially, write_input
from tests.integration.test_command import start
from tests.integration.test_embed import samples
from tests.tars import write_tar


def test_create_refuses_the_second_writer(bucket: str) -> None:
    store = Store(f"{bucket}/create")
    assert store.create("manifests/1.json", b"first")
    assert not store.create("manifests/1.json", b"second")
    assert store.read("manifests/1.json") == b"first"
    assert store.list("manifests") == ["1.json"]


def test_create_refuses_the_second_writer_of_a_file_uploaded_in_parts(bucket: str) -> None:
    store = Store(f"{bucket}/parts")
    assert store.create("big", bytes(60 << 20))
    assert not store.create("big", b"small")
    assert store.num_bytes("big") == 60 << 20


def test_the_object_that_stands_for_a_folder_is_not_a_file_in_it(bucket: str) -> None:
    """Consoles and mounted buckets create an empty object `folder/` for each folder."""
    store = Store(f"{bucket}/marked")
    for folder in ("", *(f"{name}/" for name in (*DATA_FOLDERS, "plan", "known", "labels", "failures"))):
        store.fs.call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key=f"marked/{folder}", Body=b"")
    assert store.list("pairs") == store.list("") == store.list("failures") == []
    assert foreign_files(store, set()) == []
    assert store.create("pairs/a", b"1")
    assert store.list("pairs") == ["a"]


def test_two_rival_commands_produce_one_complete_output(bucket: str, web: PictureWeb, tmp_path: Path) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(20)]
    source, output = write_input(tmp_path / "in.parquet", rows), f"{bucket}/rivals"
    settings = ["fetch.allow_networks=[127.0.0.0/8]", "shard_rows=2"]
    flags = [part for each in settings for part in ("--set", each)]
    rivals = [start(["build", str(source), output, *flags, "--json"], tmp_path) for _ in range(2)]
    for rival in rivals:
        out, err = rival.communicate(timeout=240)
        assert rival.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["kept"] == len(rows)
    store = Store(output)
    assert verify(store).problems == []
    assert f"report: {output}/report.html" in out
    assert store.read("report.html").count(b"data:image/jpeg") == len(rows)
    assert write_report(store, compare=output, out=f"{bucket}/reports/a.html").path == f"{bucket}/reports/a.html"
    assert b"<h2>Compared: " in Store(f"{bucket}/reports").read("a.html")
    with pytest.raises(JobError, match=r"no-such-bucket/a\.html': cannot be written to"):
        write_report(store, out="s3://no-such-bucket/a.html")
    named = {file.path for manifest in read_manifests(store) for file in manifest.files.values()}
    there = {f"{folder}/{name}" for folder in ("pairs", "rejects", "images") for name in store.list(folder)}
    assert there == named | {"images/sizes.json"}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_build_to_s3_is_complete_and_resumes(bucket: str, web: PictureWeb, tmp_path: Path) -> None:
    from pairmill.jobs.build import prepare
    from pairmill.pipeline.stages.pipelines import open_stages, process_shard
    from pairmill.schemas.manifest import shards_from_table

    source = write_input(tmp_path / "in.parquet", mixed_rows(web, 20))
    s3_job = job(source, tmp_path).model_copy(update={"output": f"{bucket}/out"})
    pipeline, plan = prepare(s3_job)
    stages = open_stages(pipeline)
    for shard in shards_from_table(plan.shards):
        process_shard(shard, stages)
    for _, stage in stages:
        stage.close()
    result = build(s3_job)  # nothing is left to do
    assert (result.rows_in, result.shards_missing) == (20, [])
    assert verify(Store(f"{bucket}/out")).problems == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_corpora_on_s3_are_embedded_in_place(bucket: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(5))
    store = Store(f"{bucket}/corpus")
    store.create("tars/a.tar", (tmp_path / "a.tar").read_bytes())
    store.create("pictures/in/0.jpg", picture(1))
    store.create("pictures/in/0.txt", b"a red circle")
    for name, count in (("tars", 5), ("pictures", 1)):
        output = f"{bucket}/embedded-{name}"
        values = {"source": {"paths": [f"{bucket}/corpus/{name}"], "kind": "corpus"}, "output": output}
        embed = BuildJob.model_validate({**values, "models": [{"name": "tiny"}], "run": {"device": "cpu"}})
        assert sequentially(embed).kept == count
        report = verify(Store(output))
        assert (report.problems, report.rescored) == ([], count)
    (manifest,) = read_manifests(Store(f"{bucket}/embedded-pictures"))
    with Store(f"{bucket}/embedded-pictures").open(manifest.files["pairs"].path) as file:
        (row,) = pq.ParquetFile(file).read().to_pylist()
    assert row["image_tar"].startswith("s3://mill/corpus/pictures/in/")
    assert row["caption"] == "a red circle"


@pytest.fixture(scope="module")
def embedded(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 pairs in five shards on S3, corpus and output; the subset `most` has 15 of them."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_tar(folder / f"{number}.tar", samples(10, 10 * number))
        Store(f"{bucket}/train").create(f"in/{number}.tar", (folder / f"{number}.tar").read_bytes())
    source = {"paths": [f"{bucket}/train/in"], "kind": "corpus"}
    values = {"source": source, "output": f"{bucket}/train/out", "models": [{"name": "tiny"}], "shard_rows": 4}
    sequentially(BuildJob.model_validate({**values, "run": {"device": "cpu"}}))
    steps = [{"top": {"by": "similarity", "count": 15}}]
    select(SelectJob.model_validate({"dataset": f"{bucket}/train/out", "name": "most", "steps": steps}))
    return f"{bucket}/train/out"


def selected_uids(dataset: str) -> list[str]:
    store = Store(dataset)
    tables = read_rows(store, read_subset(store, "most"))
    return sorted(uid for table in tables for uid in table["uid"].to_pylist())


@pytest.mark.parametrize("form", ["webdataset", "parquet", "clip-retrieval", "datacomp"])
def test_exports_on_s3_equal_local_ones(bucket: str, embedded: str, form: str, tmp_path: Path) -> None:
    values = {"dataset": embedded, "subset": "most", "format": form, "samples_per_file": 6}
    there, here = f"{bucket}/train/{form}", str(tmp_path / "here")
    for output in (there, here):
        assert export(ExportJob.model_validate({**values, "output": output})).record.rows == 15
    assert export(ExportJob.model_validate({**values, "output": there})).written == 0  # nothing is left to do
    names = sorted(str(path.relative_to(here)) for path in Path(here).rglob("*") if path.is_file())
    store = Store(there)
    for name in names:
        if name != "export.json":  # the record contains the output's name
            assert store.read(name) == Path(here, name).read_bytes(), name


@pytest.mark.forks
@pytest.mark.parametrize("workers", [0, 2])
def test_the_feed_reads_from_s3_in_forked_workers_too(embedded: str, workers: int) -> None:
    config = FeedConfig(embedded, "most", columns=("image", "caption_clean", "image_embedding_tiny"), batch_size=4)
    loader = DataLoader(PairDataset(config), batch_size=None, num_workers=workers)
    batches = list(loader)
    assert sorted(uid for batch in batches for uid in batch["uid"]) == selected_uids(embedded)
    known = {picture(number) for number in range(20)}
    assert all(body in known for batch in batches for body in batch["image"])


def test_an_index_on_s3_is_searched_from_a_bounded_local_cache(
    embedded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pairmill.pipeline.search.index.MAX_UNINDEXED_ROWS", 20)
    before = pairmill.search(embedded, "a red circle", top=5)
    report = pairmill.index(embedded)
    assert (report.rows, report.parts_built) == (20, 1)
    monkeypatch.setattr("pairmill.pipeline.search.index.MAX_UNINDEXED_ROWS", 0)
    after = pairmill.search(embedded, "a red circle", top=5)
    assert [match.uid for match in after.matches] == [match.uid for match in before.matches]
    (copy,) = tmp_path.rglob("*.*")
    assert copy.stat().st_size == report.num_bytes
    with monkeypatch.context() as context:
        context.setattr("pairmill.pipeline.common.object_cache.shutil.copyfileobj", None)  # not copied again
        assert pairmill.search(embedded, "a red circle", top=5).matches == after.matches
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(SearchError, match=r"a copy of s3://.* was damaged and has been deleted: search again"):
        pairmill.search(embedded, "a red circle")
    with monkeypatch.context() as context:
        context.setenv("XDG_CACHE_HOME", "/proc/none")
        with pytest.raises(SearchError, match=r"cannot be copied from .* \(No such file or directory\); set XDG_CACHE"):
            pairmill.search(embedded, "a red circle")
    assert pairmill.search(embedded, "a red circle", top=5).matches == after.matches
    copy.write_bytes(copy.read_bytes()[:-1])
    assert pairmill.search(embedded, "a red circle", top=5).matches == after.matches
    # An old copy, and a file that a killed process left behind
    for name in (f"{'0' * 32}.faiss", f"{'1' * 32}.{'2' * 32}.part"):
        copy.with_name(name).write_bytes(bytes(1_000))
        os.utime(copy.with_name(name), (1, 1))
    copy.unlink()
    monkeypatch.setattr("pairmill.pipeline.search.local_copy.MAX_CACHE_BYTES", report.num_bytes)
    pairmill.search(embedded, "a red circle", top=5)
    assert list(tmp_path.rglob("*.*")) == [copy]
    copy.unlink()
    monkeypatch.setattr("pairmill.pipeline.search.local_copy.MAX_CACHE_BYTES", 10)
    with pytest.raises(SearchError, match="but the local cache can store at most 10"):
        pairmill.search(embedded, "a red circle")
    select(
        SelectJob.model_validate({"dataset": embedded, "name": "again", "steps": [{"uids": saved(after, embedded)}]})
    )
    assert read_subset(Store(embedded), "again").rows_out == 5


def test_filters_of_known_rows_on_s3_are_copied_once_per_machine(
    bucket: str, embedded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (known,) = (
        table["uid"].to_pylist()[:5] for table in read_rows(Store(embedded), read_subset(Store(embedded), "most"))
    )
    Store(f"{bucket}/lists").create("uids.txt", "\n".join(known).encode())
    rows = KnownRows(path=f"{bucket}/lists/uids.txt", by=["uid"])
    store = Store(f"{bucket}/filtered")
    (made,) = prepared(store, [rows]).filters
    table = pa.table({"uid": [*known, "0" * 32]})
    assert open_filters(store.root, store.files).is_known("uid", table).tolist() == [True] * 5 + [False]
    (copy,) = tmp_path.rglob("*.*")
    assert copy.read_bytes() == store.read(made.file.path)
    open_filters.cache_clear()  # as in another process
    with monkeypatch.context() as context:
        context.setattr("pairmill.pipeline.common.object_cache.shutil.copyfileobj", None)  # not copied again
        assert open_filters(store.root, store.files).is_known("uid", table).tolist() == [True] * 5 + [False]
    copy.unlink()
    store.delete(made.file.path)
    open_filters.cache_clear()
    with pytest.raises(KnownError, match=r"filtered/known/uid.* is missing: restore it from a copy"):
        open_filters(store.root, store.files)

    steps = [{"known": {"path": embedded, "subset": "most", "by": ["uid", "embedding"], "threshold": 0.9999}}]
    select(SelectJob.model_validate({"dataset": embedded, "name": "rest", "rows": "pairs", "steps": steps}))
    assert read_subset(Store(embedded), "rest").rows_out <= 5
    assert Store(embedded).list("tmp") == []


def saved(result: SearchResult, dataset: str) -> str:
    """Write the uids of a search to a file on S3. Returns its path."""
    file = BytesIO()
    pq.write_table(pa.table({"uid": [match.uid for match in result.matches]}), file)
    store = Store(dataset.rpartition("/")[0])
    store.create("found.parquet", file.getvalue())
    return store.path("found.parquet")


def test_a_dataset_on_s3_is_explored_filtered_and_labeled(bucket: str, embedded: str, tmp_path: Path) -> None:
    store = Store(embedded)
    explorer = Explorer(store, run_select, Labels(store, "session"), tmp_path)
    guard = Guard.of("127.0.0.1", 7800)
    own = f"http://127.0.0.1:{guard.port}"
    with TestClient(app(explorer, guard), base_url=own, headers={"Origin": own}, follow_redirects=False) as client:
        page = client.get("/?subset=most").text
        uids, pictures = re.findall(r'data-uid="(\w+)"', page), re.findall(r'src="(/picture/[^"]+)"', page)
        assert sorted(uids) == selected_uids(embedded)
        assert all(client.get(each.replace("&amp;", "&")).content[:2] == b"\xff\xd8" for each in pictures)
        assert explorer.shown and explorer.shown.pictures.read == 15
        assert client.get(f"/pair/{uids[0]}").text.count("<li class") == 19
        fields = {"token": guard.form_token, "uid": uids[0], "label": "good"}
        for _ in range(2):  # the file is created, then replaced
            assert client.post("/api/label", data=fields).json()["good"] == 1
            explorer.labels.save()
        saved = client.post("/subset", data={**fields, "name": "explored", "query": "subset=most&min:width=1"})
        assert (saved.status_code, saved.headers["location"]) == (303, "/?subset=explored&saved=1")
    explorer.close()
    assert read_subset(store, "explored").rows_out == 15
    with store.open_arrow("labels/session.parquet") as file:
        assert pq.read_table(file)["uid"].to_pylist() == [uids[0]]
    assert not [name for name in store.list("labels") if name != "session.parquet"]
