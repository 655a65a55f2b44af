"""Tests the RayJob for Kubernetes: the command, its files, and the worker groups."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from pairmill.jobs.cli.command_line import parse_command
from pairmill.jobs.cli.main import app
from pairmill.jobs.cluster.kuberay import manifest
from pairmill.schemas.errors import JobError

GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)


def parts(*arguments: str) -> tuple[dict[str, object], dict[str, object]]:
    config_map, job = yaml.safe_load_all(
        manifest(parse_command(GROUP, ["build", *arguments]), "registry.example/pairmill:1")
    )
    return config_map, job


def test_a_command_without_files_is_run_unchanged_on_the_given_image() -> None:
    config_map, job = parts("s3://lists/in.parquet", "s3://bucket/out", "--model", "ViT-B-32:openai")
    assert set(config_map["data"]) == {"run.sh"}
    assert shlex.split(config_map["data"]["run.sh"].splitlines()[-1]) == [
        "exec", "pairmill", "build", "s3://lists/in.parquet", "s3://bucket/out", "--model", "ViT-B-32:openai",
        "--set", "run.address=auto",
    ]  # fmt: skip
    assert job["spec"]["entrypoint"] == "bash /job/run.sh"
    other, _ = parts("s3://lists/other.parquet", "s3://bucket/out")
    assert other["metadata"]["name"] != config_map["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    images = [
        group["template"]["spec"]["containers"][0]["image"] for group in (cluster["headGroupSpec"], *groups.values())
    ]
    assert images == ["registry.example/pairmill:1"] * 3
    limits = groups["encode"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert groups["download"]["maxReplicas"] > groups["download"]["minReplicas"]
    assert cluster["enableInTreeAutoscaling"]


def test_the_job_file_rules_and_blocklists_are_included_and_the_entrypoint_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_kube_rule.py").write_text("def keep(rows):\n    return None\n")
    (tmp_path / "bad urls.txt").write_text("https://bad.example/1.jpg\n")
    rules = {"custom": ["own_kube_rule:keep"], "url_blocklist": "bad urls.txt", "caption_blocked_terms": ["a'b $HOME"]}
    (tmp_path / "my job.yaml").write_text(yaml.safe_dump({"rules": rules}))
    monkeypatch.chdir(tmp_path)
    config_map, _ = parts("--job", "my job.yaml", "s3://lists/in.parquet", "s3://bucket/out")
    assert set(config_map["data"]) == {"job.yaml", "own_kube_rule.py", "url_blocklist.txt", "run.sh"}
    there, home, tools = tmp_path / "mounted", tmp_path / "home", tmp_path / "bin"
    for folder in (there, home, tools):
        folder.mkdir()
    for name, text in config_map["data"].items():
        (there / name).write_text(text.replace("/job/*", f"{there}/*"))
    (tools / "pairmill").write_text('#!/bin/sh\nls; printf "%s\\n" "$@"\n')  # lists files, prints arguments
    (tools / "pairmill").chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["bash", str(there / "run.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "job.yaml", "own_kube_rule.py", "run.sh", "url_blocklist.txt",
        "build", "--job", "job.yaml", "s3://lists/in.parquet", "s3://bucket/out",
        "--set", "rules.url_blocklist=/job/url_blocklist.txt", "--set", "run.address=auto",
    ]  # fmt: skip


def test_files_that_do_not_fit_a_config_map_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("https://bad.example/1.jpg\n" * 50_000)
    with pytest.raises(JobError, match="too large for a ConfigMap"):
        parts("s3://lists/in.parquet", "s3://bucket/out", "--set", "rules.url_blocklist=long.txt")
    (tmp_path / "own_kube_package").mkdir()
    (tmp_path / "own_kube_package/__init__.py").write_text("def keep(rows):\n    return None\n")
    with pytest.raises(JobError, match="put packages of custom rules into the image"):
        parts("s3://lists/in.parquet", "s3://bucket/out", "--set", "rules.custom=[own_kube_package:keep]")
