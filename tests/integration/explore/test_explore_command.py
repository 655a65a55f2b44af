"""Tests the `pairmill explore` command, and its pages while a build is running."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, expect

from pairmill.jobs.explore import run_select
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.subset import read_subset
from pairmill.schemas.errors import JobError
from pairmill.schemas.subset import SelectJob
from tests.integration.explore.site import count


def test_the_live_page_shows_shards_as_they_are_committed(browser: Browser, tmp_path: Path, dataset: Path) -> None:
    """Simulates commits while the page is open: the manifests of shards are moved into place one by one."""
    import shutil

    output = tmp_path / "out"
    shutil.copytree(dataset, output, ignore=shutil.ignore_patterns("subsets", "labels"))
    manifests = sorted((output / "manifests").iterdir())
    for path in manifests:
        path.rename(tmp_path / path.name)
    process = command(["explore", str(output), "--port", "0"], tmp_path)
    address = process.stdout.readline().split()[-1].rstrip("/")  # type: ignore[union-attr]
    page = browser.new_page()
    page.goto(address)
    expect(page.locator("h1")).to_have_text("No pairs yet")
    page.goto(f"{address}/live")
    expect(page.locator("#shards-done")).to_have_text("0")
    for number, path in enumerate(manifests, 1):
        (tmp_path / path.name).rename(path)
        expect(page.locator("#shards-done")).to_have_text(str(number), timeout=10_000)
        assert page.locator("#newest img").first.evaluate("(image) => image.decode().then(() => true, () => false)")
    expect(page.locator("#live-status")).to_have_text("finished")
    expect(page.locator("#reload")).to_be_visible(timeout=10_000)
    expect(page.locator("#reload-text")).to_have_text("3 new shards")
    page.get_by_role("button", name="Reload").click()
    page.wait_for_url(f"{address}/")
    assert count(page) > 0
    page.close()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip().splitlines()[-1]) == (130, "Stopped. Saved subsets and labels are kept.")


def command(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pairmill", *arguments], cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_command_serves_at_once_and_ctrl_c_keeps_the_labels(dataset: Path, tmp_path: Path) -> None:
    import urllib.request

    process = command(["explore", str(dataset), "--port", "0", "--labels", "by-command"], tmp_path)
    address = process.stdout.readline().split()[-1]  # type: ignore[union-attr]
    page = urllib.request.urlopen(address, timeout=10).read().decode()
    token = page.partition('name="pairmill-token" content="')[2].partition('"')[0]
    uid = page.partition('data-uid="')[2].partition('"')[0]
    body = f"token={token}&uid={uid}&label=good".encode()
    asked = urllib.request.Request(f"{address}api/label", body, {"Origin": address.rstrip("/")})
    assert urllib.request.urlopen(asked, timeout=10).status == 200
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 143
    assert "Traceback" not in err
    assert pq.read_table(dataset / "labels/by-command.parquet")["uid"].to_pylist() == [uid]
    again = command(["explore", str(dataset), "--port", "0", "--labels", "by-command"], tmp_path)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 1
    assert err.count("\n") == 1 and "belongs to another session" in err


def test_a_large_select_runs_in_a_separate_process(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(dataset))
    job = SelectJob.model_validate({"dataset": store.root, "name": "wide", "steps": [{"where": "width >= 260"}]})
    here = run_select(job, True)
    monkeypatch.setattr("pairmill.jobs.explore.ROWS_FOR_RAY", 0)
    assert run_select(job, True).rows_out == here.rows_out
    assert run_select(job, False).rows_out == read_subset(store, "wide").rows_out == here.rows_out
    with pytest.raises(JobError, match="already has a subset 'wide'"):
        run_select(job, False)
