"""Tests `rules.known` in whole builds: known URLs are never requested, and known pictures are dropped once fetched."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pairmill.jobs.build import build, prepare
from pairmill.jobs.retry import retry
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.hooks import NO_HOOKS
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.uid import picture_uid
from pairmill.schemas.batch import planned_batches
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import dataset, job, picture, write_input

pytestmark = pytest.mark.usefixtures("plain_loop")


def rows_of(web: PictureWeb, numbers: range, where: str = "", dead: int | None = None) -> list[dict[str, object]]:
    """Rows for pictures with these numbers. Rows with the same number have the same picture, whatever their URL."""
    rows = []
    for n in numbers:
        url = web.add(f"/{where}{n}.jpg", picture(n))
        rows.append({"url": url.replace(".jpg", ".gone") if n == dead else url, "caption": f"{where} number {n}"})
    return rows


def statuses(output: Path) -> dict[str, str]:
    """URL path -> status, for all rows."""
    tables = [dataset(output, folder).select(["url", "status"]) for folder in ("pairs", "rejects")]
    return {row["url"].split("/", 3)[3]: row["status"] for table in tables for row in table.to_pylist()}


def test_known_urls_are_never_requested_and_known_pictures_are_dropped(web: PictureWeb, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    build(job(write_input(tmp_path / "old.parquet", rows_of(web, range(12), dead=3)), old))
    listed = rows_of(web, range(30, 33), "listed")
    (tmp_path / "urls.txt").write_text("# seen\n\n" + "\n".join(row["url"] for row in listed) + "\n")
    rows = [*rows_of(web, range(9, 15)), *rows_of(web, range(3), "moved"), *listed, *rows_of(web, range(3, 4), dead=3)]
    known = [str(old), {"path": str(tmp_path / "urls.txt"), "by": "url"}]
    again = job(write_input(tmp_path / "new.parquet", rows), new, rules={"known": known})
    web.log.clear()
    build(again)
    expected = {f"{n}.jpg": "known_url" for n in range(9, 12)} | {f"{n}.jpg": "ok" for n in range(12, 15)}
    expected |= {f"moved{n}.jpg": "known_picture" for n in range(3)}
    expected |= {f"listed{n}.jpg": "known_url" for n in range(30, 33)} | {"3.gone": "http_4xx"}  # also failed in `old`
    assert statuses(new) == expected
    requested = {path.removeprefix("/") for path in web.log} - {"robots.txt"}
    assert requested == {path for path, status in expected.items() if status != "known_url"}
    assert not verify(Store(str(new))).problems
    record = json.loads((new / "known/known.json").read_text())
    assert [source["values"] for source in record["sources"]] == [{"url": 11, "sha256": 11}, {"url": 3}]
    assert record["sources"][1]["unused"] == {"comment": 1, "no url": 1}
    assert [each["values"] for each in record["filters"]] == [11, 14]

    damaged = next((new / "known").glob("url.*"))
    intact = damaged.read_bytes()
    damaged.write_bytes(bytes(len(intact)))
    assert [problem for problem in verify(Store(str(new))).problems if "known/url" in problem]
    damaged.write_bytes(intact)

    web.add("/3.gone", picture(3))  # not known, because it failed in `old` too
    assert retry(str(new), ["http_4xx"]).recovered == 1
    assert statuses(new) == expected | {"3.gone": "ok"}


def test_every_run_uses_the_filters_of_the_first_run(web: PictureWeb, tmp_path: Path) -> None:
    old, new, urls = tmp_path / "old", tmp_path / "new", tmp_path / "urls.csv"
    old_lists = tmp_path / "old-lists"
    old_lists.mkdir()
    write_input(old_lists / "a.parquet", rows_of(web, range(5)))
    build(job(old_lists, old))
    first, second = rows_of(web, range(4, 8)), rows_of(web, range(8, 12))
    urls.write_text("id,URL\n" + "".join(f"{n},{row['url']}\n" for n, row in enumerate(second[2:])))
    source = tmp_path / "lists"
    source.mkdir()
    write_input(source / "a.parquet", first)
    rules = {"known": [str(old), str(urls)]}
    build(job(source, new, rules=rules))
    filters = {path.name: path.read_bytes() for path in (new / "known").iterdir()}
    assert len(filters) == 3

    write_input(source / "b.parquet", second)  # both datasets grow
    write_input(old_lists / "b.parquet", second[:1])
    build(job(old_lists, old))
    build(job(source, new, rules=rules))
    assert {path.name: path.read_bytes() for path in (new / "known").iterdir()} == filters
    expected = {"4.jpg": "known_url"} | {f"{n}.jpg": "known_url" if n > 9 else "ok" for n in range(5, 12)}
    assert statuses(new) == expected

    moved = urls.rename(tmp_path / "moved.csv")
    build(job(source, new, rules={"known": [str(old), str(moved)]}))
    moved.write_text(moved.read_text() + "9,http://a.example/\n")
    for wrong, problem in [
        ([str(old), str(moved)], "has changed since .* was begun"),
        ([str(old)], "was begun with different known rows"),
        ([{"path": str(old), "by": "url"}, str(moved)], "was begun with different known rows"),
    ]:
        with pytest.raises(JobError, match=f"rules.known: .*{problem}"):
            build(job(source, new, rules={"known": wrong}))
    with pytest.raises(JobError, match="a list of known rows"):
        build(job(source, new))
    with pytest.raises(JobError, match=r"rules.known: .* was begun without known rows"):
        build(job(old_lists, old, rules={"known": [str(new)]}))
    with pytest.raises(JobError, match=r"rules.known: .* is the output itself"):
        build(job(source, tmp_path / "other", rules={"known": [str(tmp_path / "other")]}))


def test_a_run_that_is_killed_while_it_makes_filters_can_be_repeated(
    web: PictureWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "urls.txt").write_text(web.add("/1.jpg", picture(1)))
    again = job(
        write_input(tmp_path / "a.parquet", rows_of(web, range(3))),
        tmp_path / "out",
        rules={"known": [str(tmp_path / "urls.txt")]},
    )
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("pairmill.pipeline.known.prepare._filter", _interrupt)
        build(again)
    assert len(list((tmp_path / "out/known").iterdir())) == 1
    build(again)
    assert len(list((tmp_path / "out/known").iterdir())) == 2
    assert statuses(tmp_path / "out") == {"0.jpg": "ok", "1.jpg": "known_url", "2.jpg": "ok"}


def test_pictures_near_a_listed_pdq_are_dropped(web: PictureWeb, tmp_path: Path) -> None:
    scores = {"hash": {"pictures": "pdq"}}
    build(job(write_input(tmp_path / "old.parquet", rows_of(web, range(3))), tmp_path / "old", scores=scores))
    known = dataset(tmp_path / "old", "pairs")["pdq"].to_pylist()
    (tmp_path / "pdq.txt").write_text(f"{int(known[1], 16) ^ 0b111 << 40:064x}\n")
    rules = {"known": [{"path": str(tmp_path / "pdq.txt"), "by": "pdq", "distance": 31}]}
    source = write_input(tmp_path / "new.parquet", rows_of(web, range(3), "again"))
    with pytest.raises(ValidationError, match="by: pdq needs a score with the measure pdq"):
        job(source, tmp_path / "new", rules=rules)
    build(job(source, tmp_path / "new", rules=rules, scores=scores))
    assert statuses(tmp_path / "new") == {"again0.jpg": "ok", "again1.jpg": "known_picture", "again2.jpg": "ok"}


def test_a_corpus_is_compared_by_uid_and_digest(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for n in range(4):
        (tmp_path / f"corpus/{n}.jpg").write_bytes(picture(n))
    (tmp_path / "sha256.txt").write_text(hashlib.sha256(picture(1)).hexdigest())
    (tmp_path / "uid.txt").write_text(picture_uid(None, None, hashlib.sha256(picture(2)).hexdigest()))
    source = {"paths": [str(tmp_path / "corpus")], "kind": "corpus"}
    known = [{"path": str(tmp_path / f"{kind}.txt"), "by": kind} for kind in ("uid", "sha256")]
    values = {
        "source": source,
        "output": str(tmp_path / "out"),
        "models": [{"name": "tiny"}],
        "rules": {"known": known},
    }
    pipeline, plan = prepare(BuildJob.model_validate(values))
    (batch,) = planned_batches(plan.shards)
    for spec in pipeline.stages[:2]:  # the stages before the model
        stage = spec.open(NO_HOOKS)
        batch = stage(batch)  # type: ignore[assignment]
        stage.close()
    assert batch.table["status"].to_pylist() == ["ok", "known_picture", "known_uid", "ok"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
