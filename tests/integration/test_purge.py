"""Tests that withdrawn rows stay out of growing datasets, retries, corpora and datasets on S3."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.build import build, prepare
from pairmill.jobs.cli.main import app
from pairmill.jobs.purge import PurgeJob, purge
from pairmill.jobs.retry import retry
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.image.pdq import pdq
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


@pytest.mark.parametrize("engine", ["aiohttp", "img2dataset"])
@pytest.mark.filterwarnings("ignore")  # img2dataset's
def test_builds_retries_and_corpora_leave_out_listed_pictures_without_a_column_of_hashes(
    plain_loop: None, web: PictureWeb, tmp_path: Path, engine: str
) -> None:
    """The list is given before the first shard is committed. Picture 1 is listed, and its hash is computed by nothing
    else. A retry finds it at another URL, and a corpus has it too."""
    folder, out, corpus = tmp_path / "lists", tmp_path / "out", tmp_path / "corpus"
    folder.mkdir()
    corpus.mkdir()
    bodies = [picture(number, grid=(48, 64)) for number in range(4)]
    urls = [web.add(f"/{number}.jpg", bodies[number]) for number in range(4)]
    web.pages["/3.jpg"] = (503, {}, b"")
    write_list(folder / "a.jsonl", list(enumerate(urls)))
    for number, body in enumerate(bodies):
        (corpus / f"{number}.jpg").write_bytes(body)
        (corpus / f"{number}.txt").write_text(f"the caption of picture {number}")
    found = pdq(np.asarray(Image.open(io.BytesIO(bodies[1])).convert("L")))
    assert found.quality >= 50
    asked = lists(tmp_path, pdq=[found.digits])
    fetch = {"engine": engine, "timeout_s": 5, "retries": 0, "allow_networks": ["127.0.0.0/8"]}
    build_job = job(folder, out, fetch=fetch)
    embed_job = job(corpus, tmp_path / "held", models=[{"name": "tiny"}], run={"device": "cpu"})
    embed_job = embed_job.model_copy(update={"source": embed_job.source.model_copy(update={"kind": "corpus"})})
    for each in (build_job, embed_job):
        prepare(each)
        purge(Store(each.output), PurgeJob(asked, "asked for"))  # type: ignore[arg-type]
    assert sequentially(build_job).statuses == {"ok": 4, "withdrawn": 2, "http_5xx": 2}
    web.pages["/3.jpg"] = (200, {}, bodies[1])
    retried = retry(str(out))
    assert retried.build.statuses == {"ok": 4, "withdrawn": 4}
    assert (retried.retried, retried.recovered, retried.withdrawn) == (2, 0, 2)
    assert sequentially(embed_job).statuses == {"ok": 3, "withdrawn": 1}


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


def test_a_dataset_on_s3_is_purged(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_loop: None
) -> None:
    """By URLs, then by a list of PDQ hashes that is on S3 too. Row 30 has the same picture as row 2."""
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
    pairmill.score(out, "hash", score="pictures: pdq", settings={"partial": True})
    table = pairmill.open(out).table(["uid", "pdq"]).to_pylist()
    (digits,) = [row["pdq"] for row in table if row["uid"] == source.uid(2)]
    hashes = f"{bucket}/lists/pdq.txt"
    store.fs.pipe(hashes, f"# hashes\r\n{digits}\r\n".encode())
    assert pairmill.purge(out, pdq=hashes, reason="asked for").purged.rows == 2
    store.fs.get(f"{out}/", str(tmp_path / "copy"), recursive=True)
    kept = {mark for row in range(60) if row not in (*gone, 2, 30) for mark in source.marks(row)}
    marks = [mark for row in (*gone, 2, 30) for mark in source.marks(row) if mark not in kept]
    assert grep(tmp_path / "copy", marks) == []
    assert pairmill.verify(out, rescore=0).problems == []
    for path in (asked, hashes):
        done = CliRunner().invoke(app, ["verify", out, "--purged", path])
        assert (done.exit_code, done.stderr) == (0, "")
    assert not store.list("withdrawn/parts")
