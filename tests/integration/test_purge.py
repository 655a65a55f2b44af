"""Tests that withdrawn rows stay out of growing datasets, retries, corpora and datasets on S3."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.build import build
from pairmill.jobs.cli.main import app
from pairmill.jobs.purge import PurgeJob, purge
from pairmill.jobs.retry import retry
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import job, picture, sequentially
from tests.unit.purge.world import grep, write_world


def captions(number: int) -> list[str]:
    return [f"first words on picture number {number:02d}", f"second words on picture number {number:02d}"]


def write_list(path: Path, rows: list[tuple[int, str]]) -> None:
    path.write_text("".join(json.dumps({"url": url, "caption": captions(number)}) + "\n" for number, url in rows))


def lists(folder: Path, **values: list[str]) -> dict[str, str]:
    for name, lines in values.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return {name.removesuffix("s"): str(folder / f"{name}.txt") for name in values}


def test_later_builds_and_retries_leave_out_withdrawn_rows(plain_loop: None, web: PictureWeb, tmp_path: Path) -> None:
    folder, out = tmp_path / "lists", tmp_path / "out"
    folder.mkdir()
    urls = [web.add(f"/{number}.jpg", picture(number)) for number in range(12)]
    web.pages["/7.jpg"] = (503, {}, b"")
    write_list(folder / "a.jsonl", list(enumerate(urls)))
    build_job = job(folder, out, shard_rows=5)
    assert sequentially(build_job).statuses == {"ok": 22, "http_5xx": 2}
    table = pairmill.open(out).table(["uid", "caption", "sha256"]).to_pylist()
    (uid,) = [row["uid"] for row in table if row["caption"] == captions(0)[1]]
    digest = hashlib.sha256(picture(5)).hexdigest()
    assert {row["sha256"] for row in table if row["caption"] in captions(5)} == {digest}
    asked = lists(tmp_path, uids=[uid], urls=[urls[2].replace("http", "HTTP")], sha256=[digest])
    store = Store(str(out))
    assert purge(store, PurgeJob(asked, "asked for")).purged.rows == 5  # type: ignore[arg-type]
    gone = [captions(0)[1], *captions(2), *captions(5), urls[2], urls[5], uid]
    marks = [each.encode() for each in gone]
    assert grep(out, marks) == []
    assert not grep(out, [picture(2)])

    again = web.add("/again.jpg", picture(5))
    write_list(folder / "b.jsonl", [(2, urls[2]), (20, again), (21, web.add("/21.jpg", picture(21)))])
    web.log.clear()
    sequentially(build_job)
    grown = build(build_job)  # there is nothing left to build, but input/ is checked once more
    assert (grown.statuses["withdrawn"], grown.pairs, grown.rejects) == (8, 19, 2)
    assert grown.rows_in == 29  # a blank row in input/ no longer has captions, so it counts once
    assert "/2.jpg" not in web.log
    assert web.log.count("/again.jpg") == 1  # its digest is known only once it is fetched
    marks += [each.encode() for each in (again, *captions(20))]
    assert grep(out, marks) == []

    web.pages["/7.jpg"] = (200, {}, picture(5))
    retried = retry(str(out))
    assert (retried.build.statuses["withdrawn"], retried.build.pairs, retried.build.rejects) == (10, 19, 0)
    assert grep(out, [each.encode() for each in (urls[7], *captions(7))]) == []
    assert sum(manifest.withdrawn for manifest in read_manifests(store)) == 10
    assert pairmill.verify(out, rescore=0).problems == []
    assert purge(store, PurgeJob()).purged.rows == 0
    for path in asked.values():
        done = CliRunner().invoke(app, ["verify", str(out), "--purged", path])
        assert (done.exit_code, done.stderr) == (0, "")


def test_the_index_of_a_corpus_is_blanked_and_used_again(plain_loop: None, tmp_path: Path) -> None:
    """Pictures of a corpus have no URLs. Their uids depend on their bytes, so only positions identify purged rows."""
    tar, out = tmp_path / "in.tar", tmp_path / "out"
    with tarfile.open(tar, "w") as file:
        for number in range(8):
            for name, data in ((f"sample{number}.jpg", picture(number)), (f"sample{number}.txt", captions(number)[0])):
                body = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(name)
                member.size = len(body)
                file.addfile(member, io.BytesIO(body))
    settings = {"shard_rows": 4, "run.device": "cpu"}
    pairmill.embed(tar, out, models="tiny", settings=settings, progress=False)
    rows = pairmill.open(out).table(["uid", "caption"]).to_pylist()
    (uid,) = [row["uid"] for row in rows if row["caption"] == captions(3)[0]]
    result = pairmill.purge(out, uids=lists(tmp_path, uids=[uid])["uid"], reason="asked for")
    assert (result.purged.rows, result.purged.shards) == (1, [0])
    assert grep(out, [uid.encode(), captions(3)[0].encode(), b"sample3"]) == []
    index = pq.read_table(next((out / "input").glob("in.tar-*.parquet")))
    assert index["key"].to_pylist() == [None if number == 3 else f"sample{number}" for number in range(8)]
    for path in [*out.glob("pairs/*"), *out.glob("rejects/*"), *out.glob("manifests/*")]:
        path.unlink()  # so that everything is embedded again
    again = pairmill.embed(tar, out, models="tiny", settings=settings, progress=False)
    assert (again.pairs, again.rejects, again.statuses) == (7, 0, {"ok": 7, "withdrawn": 1})
    assert grep(out, [uid.encode(), captions(3)[0].encode(), b"sample3"]) == []


def test_a_dataset_on_s3_is_purged(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_world(tmp_path)
    store, out = Store(f"{bucket}/purge"), f"{bucket}/purge"
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            with store.new_file() as file:
                file.write(path.read_bytes())
                store.create_from(str(path.relative_to(tmp_path / "out")), file)
    gone = (1, 3, 17, 50)
    asked = lists(tmp_path, urls=[source.url(row) for row in gone])["url"]

    def delete(store: Store, name: str) -> None:
        raise PermissionError(13, "Access Denied", store.path(name))

    with monkeypatch.context() as denied:
        denied.setattr(Store, "delete", delete)
        done = CliRunner().invoke(app, ["purge", out, "--urls", asked, "--reason", "asked for"])
        assert (done.exit_code, "needs the right to delete" in done.stderr) == (1, True)
    store.fs.rm(f"{out}/withdrawn", recursive=True)
    result = pairmill.purge(out, urls=asked, reason="asked for")
    assert (result.purged.rows, result.purged.shards) == (3, [0, 1])
    assert result.purged.subsets == ["all", "half"]
    store.fs.get(f"{out}/", str(tmp_path / "copy"), recursive=True)
    assert grep(tmp_path / "copy", [mark for row in gone for mark in source.marks(row)]) == []
    assert pairmill.verify(out, rescore=0).problems == []
    done = CliRunner().invoke(app, ["verify", out, "--purged", asked])
    assert (done.exit_code, done.stderr) == (0, "")
    assert not store.list("withdrawn/parts")
