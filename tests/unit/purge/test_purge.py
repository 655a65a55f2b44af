"""Tests that a purge removes rows from everywhere and leaves everything else unchanged.

The oracles are the rows of the world without the purged rows, and a search of every byte that uses no purge code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app
from pairmill.jobs.purge import Unmatched
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.strays import SIZES_NAME
from pairmill.pipeline.purge.effects import together
from pairmill.schemas.errors import JobError
from tests.unit.purge.conftest import World
from tests.unit.purge.state import rows_of, state_of
from tests.unit.purge.world import EXPORTS, SHARD_ROWS, Source, grep

COMMITTED = range(48)
UNCOMMITTED = range(48, 60)


def uuid(uid: str) -> str:
    return f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:]}"


def spelled(url: str) -> str:
    """A different spelling of the same URL."""
    host, path = url.removeprefix("https://").split("/", 1)
    return f"HTTPS://user@{host.upper()}:443/x/../{path}#top"


CASES: dict[str, tuple[list[int], Callable[[Source], list[str]]]] = {
    "uid": ([1, 3, 17, 24, 47], lambda source: [source.uid(row).upper() for row in (1, 3, 17, 24, 47)]),
    "url": ([2, 9, 10, 38], lambda source: [spelled(source.url(row)) for row in (2, 9, 10, 38)]),
    "host": ([row for row in range(60) if row % 5 == 0], lambda source: ["ELSEWHERE.example."]),
    "sha256": ([2, 30], lambda source: [source.sha256(2).upper()]),
}
"""Kind -> (the rows to withdraw, the lines of the list). Rows 30 and 31 have the picture of row 2; row 31 was rejected,
and row 50 is not committed yet."""


def purge(world: World, kind: str, lines: list[str], **more: Any) -> pairmill.PurgeResult:
    keyword = {"uid": "uids", "url": "urls", "host": "hosts"}.get(kind, kind)
    lists: dict[str, object] = {keyword: world.write(f"{kind}.txt", lines)}
    return pairmill.purge(world.out, **lists, reason="asked for", **more)


def marks_of(source: Source, gone: list[int]) -> list[bytes]:
    """The marks of the withdrawn rows that no other row has."""
    kept = {mark for row in range(60) if row not in gone for mark in source.marks(row)}
    return [mark for row in gone for mark in source.marks(row) if mark not in kept]


NOT_IN_DATASET = {
    "uid": "f" * 32,
    "url": "https://pictures.example/photo/0001/full.jpg,x",
    "host": "host",
    "sha256": "0" * 64,
}


@pytest.mark.parametrize("kind", CASES)
def test_no_purged_values_are_left_and_everything_else_stays(world: World, kind: str) -> None:
    gone, make = CASES[kind]
    has_exports = kind in ("uid", "host")  # exports take half of the test's time
    if not has_exports:
        for name in ("out/exports", *EXPORTS):
            shutil.rmtree(world.root / name)
    source, before = world.source, state_of(world.root)
    marks = marks_of(source, gone)
    assert len(grep(world.out, marks)) > len(gone)
    lines = [*make(source), NOT_IN_DATASET[kind]]
    planned = purge(world, kind, lines, dry_run=True).unmatched
    result = purge(world, kind, lines)
    assert (
        list(planned.items())
        == list(result.unmatched.items())
        == [(kind, Unmatched(1, len(lines), NOT_IN_DATASET[kind]))]
    )
    committed = [row for row in gone if row in COMMITTED]
    assert result.purged.rows == len(committed)
    assert result.purged.shards == sorted({row // SHARD_ROWS for row in committed})
    assert grep(world.root / "out", marks) == []
    for name in EXPORTS:
        assert not (world.root / name).exists() or grep(world.root / name, marks) == []
    assert pairmill.verify(world.out, rescore=0).problems == []
    uids, urls = {source.uid(row) for row in gone}, {source.url(row).encode() for row in gone}
    check_shards(world.root, before, uids)
    check_the_rest(world.root, before, uids, urls)
    if has_exports:
        check_exports(world.root, before, state_of(world.root), uids)


def test_pdq_hashes_are_compared_with_an_added_column_and_refused_without_one(world: World, no_workers: None) -> None:
    """Here, `score` adds the column, so it is not in `pairs/`. Rows 2 and 30 have the same picture."""
    shutil.rmtree(world.out / "exports")
    with pytest.raises(JobError, match=r"--pdq: .* no column `pdq`; add it: pairmill score .* hash --score 'pictures"):
        purge(world, "pdq", ["0" * 64])
    pairmill.score(world.out, "hash", score="pictures: pdq", settings={"partial": True})
    table = pairmill.open(world.out).table(["uid", "pdq", "pdq_quality"]).to_pylist()
    (row,) = (row for row in table if row["uid"] == world.source.uid(2))
    assert row["pdq_quality"] >= 50
    card = next((world.out / "columns/hash/manifests").iterdir())
    saved = card.read_bytes()
    card.unlink()
    with pytest.raises(JobError, match=r"--pdq: .* some shards lack the score 'hash'; run: pairmill score .*out hash$"):
        purge(world, "pdq", [row["pdq"]])
    assert not (world.out / "withdrawn").exists()
    card.write_bytes(saved)
    added = world.out / "columns/hash/000000001.parquet"
    other, good = pq.read_table(added), added.read_bytes()
    hashes = pa.array(["no hash", None, *other["pdq"].to_pylist()[2:]])
    pq.write_table(other.set_column(other.schema.get_field_index("pdq"), "pdq", hashes), added)
    assert purge(world, "pdq", [row["pdq"]], dry_run=True).purged.not_compared == 2
    result = purge(world, "pdq", [row["pdq"]])
    assert (result.purged.rows, result.purged.shards, result.purged.not_compared) == (2, [0, 2], 2)
    added.write_bytes(good)
    listed = world.saved.parent / "pdq.parquet"
    pq.write_table(pa.table({"pdq": [row["pdq"]]}), listed)
    verified = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(listed)])
    assert (verified.exit_code, verified.stderr) == (0, "")
    assert pairmill.verify(world.out, rescore=0).problems == []


def check_shards(root: Path, before: dict[str, object], uids: set[str]) -> None:
    """Check that each shard has its remaining rows in order, and that files of other shards are unchanged."""
    for shard in range(4):
        manifest = json.loads(newest(root / "out/manifests", shard).read_bytes())
        old = json.loads((root.parent / f"saved/out/manifests/{shard:09d}.json").read_bytes())
        is_touched = False
        for folder in ("pairs", "rejects"):
            rows = before[f"out/{folder}/{shard:09d}.parquet"]
            left = [row for row in rows if row["uid"] not in uids]
            path = root / "out" / manifest["files"][folder]["path"]
            assert rows_of(path) == left
            assert manifest[folder] == len(left)
            metadata = pq.read_schema(root.parent / f"saved/out/{folder}/{shard:09d}.parquet").metadata
            assert pq.read_schema(path).metadata == metadata
            is_touched |= left != rows
        assert manifest["generation"] == is_touched
        assert manifest["statuses"].get("withdrawn", 0) == manifest["rows_in"] - manifest["pairs"] - manifest["rejects"]
        assert sum(manifest["statuses"].values()) == manifest["rows_in"] == old["rows_in"]
        if not is_touched:
            assert manifest == old
        check_pictures(root, manifest)


def newest(folder: Path, shard: int) -> Path:
    (path,) = folder.glob(f"{shard:09d}*.json")
    return path


def check_pictures(root: Path, manifest: dict[str, object]) -> None:
    """Check that each picture is where its row says."""
    pairs = pq.read_table(root / "out" / manifest["files"]["pairs"]["path"], partitioning=None)
    for row in pairs.select(["row_id", "image_tar", "image_offset", "image_length"]).to_pylist():
        shard, number = (int(part) for part in row["row_id"].split(":"))
        data = (root / "out" / row["image_tar"]).read_bytes()
        picture = data[row["image_offset"] :][: row["image_length"]]
        assert picture == Source(60).picture(shard * SHARD_ROWS + number)


def check_the_rest(root: Path, before: dict[str, object], uids: set[str], urls: set[bytes]) -> None:
    after = state_of(root)
    for shard in range(4):
        ids = [row["row_id"] for row in rows_of(next((root / "out/pairs").glob(f"{shard:09d}*.parquet")))]
        scored = [row for row in before[f"out/columns/words/{shard:09d}.parquet"] if row["row_id"] in ids]
        assert rows_of(next((root / "out/columns/words").glob(f"{shard:09d}*.parquet"))) == scored
    for name in ("all", "half"):
        selected = [rows for key, rows in before.items() if key.startswith(f"out/subsets/{name}/rows/")]
        left = [row["uid"] for row in selected[0] if row["uid"] not in uids]
        (rows,) = (rows_of(path) for path in (root / f"out/subsets/{name}/rows").iterdir())
        files = [next((root / "out/pairs").glob(f"{shard:09d}*")) for shard in range(4)]
        pairs = [pq.read_table(path, columns=["uid"])["uid"] for path in files]
        assert [row["uid"] for row in rows] == [pairs[row["shard"]][row["row"]].as_py() for row in rows] == left
        table = pairmill.open(root / "out").table(["uid"], subset=name)
        assert table["uid"].to_pylist() == left
        record = after[f"out/subsets/{name}/selection.json"]
        assert record["rows_out"] == len(left) == record["reports"][-1]["rows_out"]
        if name == "half":
            check_weights(root, record, [row for row in selected[0] if row["uid"] not in uids])
    labels = before["out/labels/session.parquet"]
    assert after["out/labels/session.parquet"] == [row for row in labels if row["uid"] not in uids]
    (key,) = [key for key in before if key.startswith("out/input/")]
    for old, new in zip(before[key], after[key], strict=True):
        blank = {"url": None, "caption": None, "__pairmill_malformed": "withdrawn"}
        assert new == (blank if old["url"] in urls else old)
    assert "out/report.html" not in after
    sizes = after[f"out/{SIZES_NAME}"]
    assert sum(sizes.values()) == len(pairmill.open(root / "out").table(["uid"]))


def check_weights(root: Path, record: dict[str, object], left: list[dict[str, object]]) -> None:
    """Check that each row keeps its weight in both files of the subset."""
    weights = np.array([row["weight"] for row in left], np.float32)
    table = pairmill.open(root / "out").table(["weight"], subset="half")
    assert np.array_equal(table["weight"].to_numpy(), weights)
    (path,) = (root / "out/subsets/half/shards").iterdir()
    assert b"".join(pq.read_table(path)["weights"].to_pylist()) == weights.tobytes()
    assert record["weight_sum"] == pytest.approx(float(weights.sum()), abs=1e-3)


def check_exports(root: Path, before: dict[str, object], after: dict[str, object], uids: set[str]) -> None:
    left = 0
    for number in range(3):
        old, new = before[f"tars/{number:05d}.tar"], after[f"tars/{number:05d}.tar"]
        assert new == [member for member in old if member[0].partition(".")[0] not in uids]
        old, new = before[f"tables/{number:05d}.parquet"], after[f"tables/{number:05d}.parquet"]
        assert new == [row for row in old if row["uid"] not in uids]
        left += len(new)
        rows = before[f"arrays/metadata/metadata_{number:04d}.parquet"]
        keep = [row["uid"] not in uids for row in rows]
        for kind in ("img", "text"):
            name = f"arrays/{kind}_emb/{kind}_emb_{number:04d}.npy"
            assert after[name] == [vector for vector, kept in zip(before[name], keep, strict=True) if kept]
        assert [row["uid"] for row in after[f"pool/metadata/{number:05d}.parquet"]] == [
            row["uid"] for row, kept in zip(rows, keep, strict=True) if kept
        ]
    halves = [f"{high:016x}{low:016x}" for high, low in np.load(root / "pool/subset.npy").tolist()]
    assert len(halves) == left
    assert not uids & set(halves)
    for name in EXPORTS:
        assert after[f"{name}/.pairmill/export.json"]["rows"] == left
        assert sum(after[f"{name}/.pairmill/manifests/{number:05d}.json"]["rows"] for number in range(3)) == left
    assert sum(after["tars/sizes.json"].values()) == left


class Killed(BaseException):
    """Simulates SIGKILL: nothing after it has any effect."""


def kill_at(monkeypatch: pytest.MonkeyPatch, last: int) -> list[str]:
    """Let only the first `last` writes succeed. Returns the list of attempted writes."""
    tried: list[str] = []

    def killed(method: str) -> Callable[..., Any]:
        real = getattr(Store, method)

        def write(store: Store, name: str, *more: Any) -> Any:
            tried.append(f"{method} {name}")
            if len(tried) > last:
                raise Killed
            return real(store, name, *more)

        return write

    for method in ("create_from", "replace_from", "delete"):
        monkeypatch.setattr(Store, method, killed(method))
    return tried


KILLED_BEFORE = (
    "replace_from subsets/half/selection.json",
    "replace_from img_emb/img_emb_0000.npy",  # in the middle of a part
    "replace_from .pairmill/export.json",
    "create_from withdrawn/000001.done.json",
)


def test_a_request_after_a_killed_one_gives_the_same_result_as_without_the_kill(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the files and the reported result are the same. The killed request also named an export."""
    gone, source = [1, 3, 17, 24, 30, 50], world.source
    uids = world.write("uids.txt", [uuid(source.uid(row)) for row in gone[:3]])
    urls = world.write("urls.txt", [source.url(row) for row in gone[3:]])

    def begin(last: int) -> list[str]:
        """Make the first request, killed at write number `last`. Returns the attempted writes."""
        shutil.rmtree(world.root)
        shutil.copytree(world.saved, world.root, copy_function=os.link)
        next(path for path in (world.out / "exports").iterdir() if b"/arrays" in path.read_bytes()).unlink()
        with monkeypatch.context() as patch:
            tried = kill_at(patch, last)
            with suppress(Killed):
                results.append(pairmill.purge(world.out, uids=uids, reason="x", exports=world.root / "arrays"))
        return tried

    results: list[pairmill.PurgeResult] = []
    tried = begin(10**6)
    results.append(pairmill.purge(world.out, urls=urls, reason="y"))
    expected, purged = state_of(world.root), together([each.purged for each in results])
    marks = marks_of(source, gone)
    assert grep(world.out, marks) == []
    for before in KILLED_BEFORE:
        begin(next(number for number, write in enumerate(tried) if write.startswith(before)))
        with pytest.raises(JobError, match="a purge is not finished; finish it first: pairmill purge"):
            pairmill.select(world.out, "other", settings={"partial": True})
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, 4)
            pairmill.purge(world.out)
        result = pairmill.purge(world.out, urls=urls, reason="y")
        assert state_of(world.root) == expected, before
        assert result.remedies == results[0].remedies
        done = {"files_deleted": purged.files_deleted}
        assert result.purged.model_copy(update=done) == purged, before
        assert differing(world.root) == []
    assert pairmill.verify(world.out, rescore=0).problems == []
    verified = CliRunner().invoke(app, ["verify", str(world.out), "--purged", str(urls)])
    assert (verified.exit_code, verified.stdout.splitlines()[-1]) == (0, "nothing is left of these values")
    assert "5 withdrawn rows" in verified.stdout


def differing(root: Path) -> list[str]:
    """Files of exports whose checksums differ from those in the manifests."""
    records = [(path.parents[2], json.loads(path.read_bytes())) for path in root.glob("*/.pairmill/manifests/*.json")]
    files = [(folder / name, file["blake2b"]) for folder, part in records for name, file in part["files"].items()]
    assert len(files) == 21
    return [
        str(path)
        for path, blake2b in files
        if hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() != blake2b
    ]
