"""Tests commands that read a dataset or add it up while another run, such as a retry, changes it."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import pairmill
from pairmill.jobs.results import finish
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset import chunks
from pairmill.pipeline.dataset.strays import SIZES_NAME
from pairmill.pipeline.source.plan import load_plan
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.manifest import ShardManifest
from tests.committed_shards import pair, write_dataset
from tests.unit.scores.embedded import supersede

READERS: dict[str, Callable[[Path], object]] = {
    "select": lambda folder: pairmill.select(folder, "other"),
    "known": lambda folder: pairmill.select(
        folder, "other", steps={"known": {"path": str(folder.parent / "known"), "by": "sha256"}}
    ),
    "mix": lambda folder: pairmill.mix(folder.parent / "mix", {f"{folder}:some": 1}),
    "export": lambda folder: pairmill.export(folder, "some", folder.parent / "export", format="parquet"),
    "feed": lambda folder: list(pairmill.PairDataset(pairmill.FeedConfig(folder, "some", columns="caption"))),
    "open": lambda folder: pairmill.open(folder).table(["uid"]),
    "report": lambda folder: pairmill.report(folder, subset="some"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The dataset `out`: three shards with a pair each, and the subset `some` of all pairs. Beside it, another one."""
    for name, digit in (("out", "1"), ("known", "2")):
        rows = [[pair(f"number {shard}", 0.3, sha256=f"{shard}{digit * 63}")] for shard in range(3)]
        write_dataset(tmp_path / f"data/{name}", rows)
    pairmill.select(tmp_path / "data/out", "some")
    return tmp_path / "data/out"


@pytest.mark.parametrize("name", READERS)
def test_a_command_that_reads_a_shard_that_a_retry_has_just_replaced_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The retry deletes the old manifest after the command has listed it, before each of its reads in turn."""
    saved, read = shutil.copytree(folder.parent, tmp_path / "saved"), chunks.read_manifest
    for moment in range(30):
        shutil.rmtree(folder.parent)
        shutil.copytree(saved, folder.parent)
        reads = count()

        def read_late(store: Store, name: str, moment: int = moment, reads: "count[int]" = reads) -> ShardManifest:
            if next(reads) == moment:
                supersede(store, int(name.partition(".")[0]))
            return read(store, name)

        monkeypatch.setattr(chunks, "read_manifest", read_late)
        try:
            READERS[name](folder)
        except PairmillError as error:
            assert "again" in str(error)
        if next(reads) <= moment:
            break
    assert 0 < moment < 29


def test_of_two_builds_at_once_the_one_that_ends_last_does_not_forget_the_tars_of_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, replace, calls = Store(str(folder)), Store.replace, count()
    manifest = folder / "manifests/000000002.json"
    committed_late = manifest.read_bytes()
    manifest.unlink()

    def replace_late(store: Store, name: str, data: bytes) -> None:
        if name == SIZES_NAME and not next(calls):
            manifest.write_bytes(committed_late)
            finish(store, load_plan(store), {}, 0.0)
        replace(store, name, data)

    monkeypatch.setattr(Store, "replace", replace_late)
    result = finish(store, load_plan(store), {}, 0.0)
    assert (result.pairs, result.shards_missing) == (3, [])
    assert json.loads((folder / SIZES_NAME).read_bytes()) == {f"00000000{shard}.tar": 1 for shard in range(3)}
    assert verify(store, rescore=0).problems == []
