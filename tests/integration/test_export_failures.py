"""Tests that a failed, stopped or refused export leaves nothing behind that would block the next one."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pairmill.jobs.export import export
from pairmill.jobs.retry import retry
from pairmill.jobs.select import refresh, select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import SubsetError, read_subset
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.select.subset_diff import compare
from pairmill.pipeline.source.cursor import ReadError
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.subset import SelectJob
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import job, picture, sequentially, write_input
from tests.integration.test_command import PAIRMILL, run, start
from tests.integration.test_embed import embed_job, samples
from tests.tars import write_tar


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `out` of 24 pairs from two tars, in six shards, and its subset `most`."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        write_tar(folder / f"{number:05d}.tar", samples(12, 12 * number))
    sequentially(embed_job(folder / "out", folder))
    select(subset_of(folder / "out"))
    return folder


def subset_of(dataset: Path, name: str = "most") -> SelectJob:
    return SelectJob.model_validate({"dataset": str(dataset), "name": name, "steps": [{"where": "similarity > -1"}]})


def export_job(dataset: Path, output: Path, form: str = "webdataset", **more: object) -> ExportJob:
    values = {"dataset": str(dataset), "subset": "most", "output": str(output), "format": form}
    return ExportJob.model_validate({**values, **more})


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("broken", ["00000.tar", "00001.tar"])
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_failure_before_the_first_finished_part_leaves_an_empty_folder(
    corpus: Path, tmp_path: Path, broken: str, form: str
) -> None:
    """All rows are in one part, so it fails whichever tar is missing."""
    (corpus / broken).rename(tmp_path / "away")
    try:
        with pytest.raises(ReadError):
            export(export_job(corpus / "out", tmp_path / "export", form))
        assert left_in(tmp_path / "export") == []
    finally:
        (tmp_path / "away").rename(corpus / broken)
    result = export(export_job(corpus / "out", tmp_path / "export", "clip-retrieval", samples_per_file=5))
    assert result.record.rows == 24


def test_after_a_failure_with_a_finished_part_only_the_same_export_can_continue(corpus: Path, tmp_path: Path) -> None:
    (corpus / "00001.tar").rename(tmp_path / "away")
    mine = export_job(corpus / "out", tmp_path / "export", samples_per_file=6, shuffle_seed=None)
    try:
        with pytest.raises(ReadError):
            export(mine)
    finally:
        (tmp_path / "away").rename(corpus / "00001.tar")
    with pytest.raises(JobError, match=r"contains another export \(format 'webdataset', not 'parquet'\)"):
        export(export_job(corpus / "out", tmp_path / "export", "parquet"))
    result = export(mine)
    assert (result.record.num_files, result.written) == (4, 2)


def test_a_full_disk_leaves_an_empty_folder(corpus: Path, tmp_path: Path) -> None:
    """The kernel refuses files of more than 30 kB, as it would on a full disk."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    command = [*PAIRMILL, "export", str(corpus / "out"), "most", "export", "--format", "parquet"]
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=bound)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.splitlines()[-1] == f"pairmill: {tmp_path / 'export'}: File too large"
    assert left_in(tmp_path / "export") == []
    assert run(["export", str(corpus / "out"), "most", "export"], tmp_path).returncode == 0


def test_ctrl_c_before_the_first_finished_part_leaves_an_empty_folder(corpus: Path, tmp_path: Path) -> None:
    """One tar of the corpus is a pipe that nobody writes to, so the export waits."""
    (corpus / "00001.tar").rename(tmp_path / "away")
    os.mkfifo(corpus / "00001.tar")
    try:
        process = start(["export", str(corpus / "out"), "most", str(tmp_path / "export")], tmp_path)
        while not (tmp_path / "export/.pairmill/export.json").exists() and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        (corpus / "00001.tar").unlink()
        (tmp_path / "away").rename(corpus / "00001.tar")
    assert process.returncode == 130
    assert "Stopped." in said
    assert left_in(tmp_path / "export") == []
    assert export(export_job(corpus / "out", tmp_path / "export", "parquet")).record.rows == 24


def test_ctrl_c_right_after_the_folder_is_claimed_leaves_an_empty_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes as soon as the record exists, and before any part is checked."""

    def interrupted(output: Store, records: str, number: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("pairmill.jobs.export.is_written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(export_job(corpus / "out", tmp_path / "export"))
    assert left_in(tmp_path / "export") == []


def test_a_refused_export_leaves_the_folder_of_another_export_unchanged(corpus: Path, tmp_path: Path) -> None:
    """This holds even if the other export has not finished any part yet."""
    record = export(export_job(corpus / "out", tmp_path / "first")).record
    other = tmp_path / "second" / ".pairmill" / "export.json"
    other.parent.mkdir(parents=True)
    other.write_text(record.model_dump_json())
    with pytest.raises(JobError, match="contains another export"):
        export(export_job(corpus / "out", tmp_path / "second", "parquet"))
    assert left_in(tmp_path / "second") == [".pairmill", ".pairmill/export.json"]


@pytest.mark.parametrize(
    ("form", "models", "message"),
    [
        ("clip-retrieval", ["nobody"], "has no embeddings of 'nobody'"),
        ("webdataset", ["tiny"], "webdataset stores no embeddings"),
    ],
)
def test_a_refused_export_creates_no_folder(
    corpus: Path, tmp_path: Path, form: str, models: list[str], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        export(export_job(corpus / "out", tmp_path / "export", form, models=models))
    assert not (tmp_path / "export").exists()


def test_an_export_restores_its_record_if_a_failed_run_of_the_same_export_deleted_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one export overlap, and the one that fails first releases the folder."""
    from pairmill.jobs import export as module

    rivals = iter([True])

    def is_written(output: Store, records: str, number: int) -> bool:
        if next(rivals, False):
            (tmp_path / "export/.pairmill/export.json").unlink()
        return False

    monkeypatch.setattr(module, "is_written", is_written)
    export(export_job(corpus / "out", tmp_path / "export"))
    assert (tmp_path / "export/.pairmill/export.json").exists()


def test_after_a_retry_every_reader_says_to_select_again_and_refresh_does_so(
    plain_loop: None, web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(20)]
    for n in range(5):
        web.pages[f"/{n}.jpg"] = (503, {}, b"")
    fetch = {"retries": 0, "allow_networks": ["127.0.0.0/8"]}
    made = job(write_input(tmp_path / "in.parquet", rows), tmp_path / "out", fetch=fetch, models=[{"name": "tiny"}])
    sequentially(made)
    output, store = tmp_path / "out", Store(str(tmp_path / "out"))
    before = select(subset_of(output))
    assert before.rows_out == 15
    retry(str(output))  # recovers nothing: the pairs do not change
    assert export(export_job(output, tmp_path / "first")).record.rows == 15
    assert len(list(PairDataset(FeedConfig(str(output), "most")))) == 15
    for n in range(5):
        web.pages[f"/{n}.jpg"] = (200, {}, picture(n))
    assert retry(str(output)).recovered == 5

    again = (
        rf"shard 00000000\d was rebuilt after 'most' was made; select again: pairmill select {output} --refresh most"
    )
    with pytest.raises(SubsetError, match=again):
        export(export_job(output, tmp_path / "second"))
    assert not (tmp_path / "second").exists()
    with pytest.raises(SubsetError, match=again):
        PairDataset(FeedConfig(str(output), "most"))
    select(subset_of(output, "fresh"))
    assert compare(store, "most", "fresh").outdated == ("most",)
    assert any("most: shards were rebuilt" in line for line in compare(store, "fresh", "most").lines())

    done = run(["select", str(output), "--refresh", "most"], tmp_path)
    assert done.returncode == 0, done.stderr
    after = read_subset(store, "most")
    assert (after.steps, after.rows, after.rows_out) == (before.steps, before.rows, 20)
    assert after.attempt != before.attempt
    assert len(list((output / "subsets/most").rglob("*.parquet"))) == 2  # the old files are gone
    assert export(export_job(output, tmp_path / "second")).record.rows == 20
    assert len(list(PairDataset(FeedConfig(str(output), "most")))) == 20
    assert compare(store, "most", "fresh").outdated == ()


def test_refresh_refuses_new_steps_and_conflicting_options(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "out", tmp_path / "out")
    with pytest.raises(SubsetError, match="has no subset 'nothing'"):
        refresh(subset_of(tmp_path / "out", "nothing"))
    for more in (["--step", "where: width > 1"], ["--all-pairs"], ["--overwrite"], ["--compare", "most", "most"]):
        refused = run(["select", str(tmp_path / "out"), "most", "--refresh", *more], tmp_path)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
    tried = run(["select", str(tmp_path / "out"), "most", "--refresh", "--dry-run"], tmp_path)
    assert "dry run: nothing was written" in tried.stderr
    assert "where: similarity > -1" in tried.stdout
