"""Tests a disk that fills up during a build: one clear error, no half-written files, and the build can resume."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import pytest

from pairmill.jobs.build import build
from pairmill.jobs.select import select
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import StorageError, Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.schemas.subset import SelectJob
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, write_input
from tests.integration.test_command import build_arguments, run, run_here
from tests.integration.test_embed import embed_job, samples, write_tar
from tests.synthetic_dataset import write_dataset


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 600 kB, outside pytest's folders: pytest could not remove it after a run that was killed."""
    folder = Path(mkdtemp(prefix="pairmill-disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_is_one_clear_error_and_the_run_resumes_with_more_space(
    plain_loop: None, small_disk: Path, web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(160)]
    source, output = write_input(tmp_path / "in.parquet", rows), small_disk / "out"
    full = run(build_arguments(source, output), tmp_path)
    assert full.returncode == 1
    assert f"{output}: No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    store = Store(str(output))
    before = {manifest.shard for manifest in read_manifests(store)}
    assert 0 < len(before) < 20
    assert verify(store, rescore=0).problems == []
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    run_here(build_arguments(source, output))
    assert sum(manifest.rows_in for manifest in read_manifests(store)) == 160
    assert verify(store, rescore=0).problems == []
    assert not list((output / "tmp").glob("*"))


@pytest.mark.parametrize("left", range(16))
def test_law_signals_a_disk_without_inodes_is_reported_like_a_full_one_and_the_run_resumes(
    plain_loop: None, small_disk: Path, tmp_path: Path, left: int
) -> None:
    """Opening a new file fails, and so does creating a folder, although neither needs any bytes."""
    job = embed_job(small_disk / "out", write_tar(tmp_path / "a.tar", samples(6)))
    subprocess.run(["mount", "-o", "remount,size=50m,nr_inodes=100", str(small_disk)], check=True)
    free = os.statvfs(small_disk).f_ffree
    for number in range(free - left):
        (small_disk / f"{number}").touch()
    with pytest.raises(StorageError) as refused:
        build(job)
    assert str(refused.value) == f"{small_disk / 'out'}: No space left on device"
    for number in range(free - left):
        (small_disk / f"{number}").unlink()
    assert build(job).kept == 6
    assert verify(Store(str(small_disk / "out")), rescore=0).problems == []


def test_law_signals_a_full_disk_in_select_is_reported_in_one_line_with_the_path(small_disk: Path) -> None:
    write_dataset(small_disk / "out", 2_000)
    with open(small_disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4_096)):
            pass
    job = SelectJob.model_validate({"dataset": str(small_disk / "out"), "name": "all", "steps": []})
    with pytest.raises(StorageError) as refused:
        select(job)
    assert str(refused.value) == f"{small_disk / 'out'}: No space left on device"
    (small_disk / "filler").unlink()
    assert select(job)
