"""Tests the demo as a user runs it, with fewer pairs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairmill.jobs.cli.main import app


def test_the_demo_accounts_for_every_row_and_keeps_correct_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo", "--out", "demo", "--pairs", "400", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["rows_in"] == 400 == summary["pairs"] + summary["rejects"]
    assert summary["status_mismatches"] == 0
    assert summary["precision"] >= 0.97
    assert summary["recall"] >= 0.95
    sheet = (tmp_path / "demo" / "dataset" / "report.html").read_text()
    assert sheet.count("data:image/") >= 20
    assert "<script" not in sheet
    again = CliRunner().invoke(app, ["demo", "--out", ".", "--pairs", "400"])
    assert again.exit_code == 1
    assert "the demo did not write this folder, which contains " in again.stderr
