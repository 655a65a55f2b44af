"""Tests retries against web servers that recover. test_api tests a retry on Ray."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pairmill.jobs.retry import retry
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.source.planned import PlanError
from pairmill.pipeline.stages.retry import OpenFailedReader, OpenNextGeneration
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob
from tests.integration.conftest import PictureWeb
from tests.integration.name_server import NameServer
from tests.integration.test_build import dataset, job, picture, sequentially, write_input

MOVED = ("image_tar", "image_offset", "image_length")


def rows_by_id(output: Path) -> dict[str, dict[str, object]]:
    """Every row of a finished output, read by listing the folders, with the bytes of its picture instead of their
    position."""
    rows = {}
    for folder in ("pairs", "rejects"):
        for path in (output / folder).iterdir():
            for row in pq.read_table(path).to_pylist():
                if row.get("image_tar"):
                    with open(output / row["image_tar"], "rb") as tar:
                        tar.seek(row["image_offset"])
                        row["image"] = tar.read(row["image_length"])
                assert row["row_id"] not in rows
                rows[row["row_id"]] = {name: value for name, value in row.items() if name not in MOVED}
    return rows


@pytest.fixture
def failing_rows(web: PictureWeb, tmp_path: Path) -> tuple[BuildJob, NameServer]:
    """A list of 40 rows: 8 get a 503, 8 have an unknown host name, 8 get a 404, and the others are fine."""
    with NameServer({}) as server:
        rows = []
        for n in range(40):
            url = web.add(f"/{n}.jpg", picture(n))
            if n % 5 == 1:
                web.pages[f"/{n}.jpg"] = (503, {}, b"")
            if n % 5 == 2:
                url = url.replace("127.0.0.1", "pictures.example")
            if n % 5 == 3:
                del web.pages[f"/{n}.jpg"]
            rows.append({"url": url, "caption": f"number {n}", "n": n})
        fetch = {"retries": 0, "allow_networks": ["127.0.0.0/8"], "nameservers": [server.address], "timeout_s": 10}
        source = write_input(tmp_path / "in.parquet", rows)
        yield job(source, tmp_path / "out", fetch=fetch, models=[{"name": "tiny"}]), server


def test_a_retry_recovers_failed_rows_and_changes_nothing_else(
    plain_loop: None, web: PictureWeb, failing_rows: tuple[BuildJob, NameServer], tmp_path: Path
) -> None:
    build_job, server = failing_rows
    output = tmp_path / "out"
    first = sequentially(build_job)
    assert first.statuses == {"ok": 16, "http_5xx": 8, "http_4xx": 8, "dns_error": 8}
    before = rows_by_id(output)

    for n in range(1, 21, 5):  # the first two of the four shards recover
        web.pages[f"/{n}.jpg"] = (200, {}, picture(n))
    asked = len(web.log)
    healed = retry(str(output), ["http_5xx"])
    assert (healed.retried, healed.recovered) == (8, 4)
    assert healed.build.statuses == {"ok": 20, "http_5xx": 4, "http_4xx": 8, "dns_error": 8}
    assert sorted(web.log[asked:]) == sorted(f"/{n}.jpg" for n in range(1, 40, 5))

    server.addresses["pictures.example"] = [["127.0.0.1"]]
    again = retry(str(output))  # every status that a later attempt might change
    assert (again.retried, again.recovered) == (12, 8)
    assert again.build.statuses == {"ok": 28, "http_5xx": 4, "http_4xx": 8}

    after = rows_by_id(output)
    assert after.keys() == before.keys()
    for row_id, row in after.items():
        if before[row_id]["status"] in ("ok", "http_4xx"):
            assert row == before[row_id]
        elif row["status"] == "ok":
            assert row["similarity"] is not None
            assert Image.open(io.BytesIO(row["image"])).size == (320, 240)
    assert verify(Store(str(output)), rescore=64).problems == []
    paths = sorted((output / "pairs").iterdir())
    order = [row_id for path in paths for row_id in pq.read_table(path)["row_id"].to_pylist()]
    assert order == sorted(order, key=lambda row_id: tuple(map(int, row_id.split(":"))))

    recovered = rows_by_id(output)
    victim = next(output.glob("pairs/*.g*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    report = verify(Store(str(output)))
    assert str(victim.relative_to(output)) in report.damaged
    for name in report.damaged:  # as the command tells the user to do
        (output / name).unlink()
    sequentially(build_job)
    assert rows_by_id(output).keys() == recovered.keys()  # each row once
    assert verify(Store(str(output))).problems == []


def test_a_retry_that_recovers_nothing_leaves_pairs_and_pictures_unchanged(
    plain_loop: None, failing_rows: tuple[BuildJob, NameServer], tmp_path: Path
) -> None:
    build_job, _ = failing_rows
    sequentially(build_job)
    store = Store(str(tmp_path / "out"))
    before = {manifest.shard: manifest for manifest in read_manifests(store)}
    result = retry(store.root, ["http_5xx"])
    assert (result.retried, result.recovered) == (8, 0)
    for manifest in read_manifests(store):
        assert manifest.generation == 1
        assert manifest.statuses == before[manifest.shard].statuses
        for name in ("pairs", "images"):
            assert manifest.files[name] == before[manifest.shard].files[name]  # type: ignore[index]
        assert not store.exists(before[manifest.shard].files["rejects"].path)
    assert verify(store).problems == []
    assert retry(store.root, ["timeout"]).retried == 0  # no row has this status, so nothing is done
    assert {manifest.generation for manifest in read_manifests(store)} == {1}
    assert isinstance(dataset(tmp_path / "out", "rejects"), pa.Table)


@pytest.mark.parametrize("stage", [OpenFailedReader, OpenNextGeneration])
def test_a_retry_that_another_one_overtakes_ends_without_failures(
    plain_loop: None,
    web: PictureWeb,
    failing_rows: tuple[BuildJob, NameServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Any,
) -> None:
    """The other retry drops a generation that this retry still has to read, for the first or for the last time."""
    sequentially(failing_rows[0])
    for n in range(1, 40, 5):
        web.pages[f"/{n}.jpg"] = (200, {}, picture(n))
    output, step = tmp_path / "out", stage.__call__

    def overtaken(opened: Any, batch: Any) -> Any:
        monkeypatch.setattr(stage, "__call__", step)
        if not list(output.glob("manifests/*.g1.json")):
            assert retry(str(output)).recovered == 8
        return step(opened, batch)

    monkeypatch.setattr(stage, "__call__", overtaken)
    result = retry(str(output)).build
    assert result.failures == {}
    assert result.statuses == {"ok": 24, "http_4xx": 8, "dns_error": 8}
    assert not list(output.glob("failures/*"))
    assert verify(Store(str(output))).problems == []


def test_a_retry_may_change_only_run_settings(
    plain_loop: None, failing_rows: tuple[BuildJob, NameServer], tmp_path: Path
) -> None:
    build_job, _ = failing_rows
    sequentially(build_job)
    output = str(tmp_path / "out")
    with pytest.raises(JobError, match="a retry may change only how the job runs"):
        retry(output, settings={"images": {"size": 64}})
    with pytest.raises(JobError, match="retry accepts only "):
        retry(output, ["low_similarity"])
    assert retry(output, ["http_4xx"], settings={"fetch": {"timeout_s": 3, "concurrency": 2}}).retried == 8


@pytest.mark.parametrize("change", ["in reverse order", "another column", "gone"])
def test_law_lists_a_retry_refuses_a_list_that_is_not_the_planned_one(
    plain_loop: None, failing_rows: tuple[BuildJob, NameServer], tmp_path: Path, change: str
) -> None:
    """It refuses even a list of the same size, because its rows would replace those with the same row numbers."""
    build_job, _ = failing_rows
    source = tmp_path / "in.parquet"
    rows = pq.read_table(source)
    pq.write_table(rows, source, compression="none", use_dictionary=False)
    size = source.stat().st_size
    sequentially(build_job)
    before = rows_by_id(tmp_path / "out")
    if change == "gone":
        source.unlink()
    else:
        other = rows.take(list(range(rows.num_rows))[::-1])
        if change == "another column":
            other = rows.set_column(2, "n", other["n"])
        pq.write_table(other, source, compression="none", use_dictionary=False)
        assert source.stat().st_size == size
    with pytest.raises(PlanError, match=r"in\.parquet: (has changed since it was planned|.* is missing)"):
        retry(str(tmp_path / "out"))
    assert rows_by_id(tmp_path / "out") == before
