"""Tests the `pairmill` command as a separate process: killed, interrupted, run from hostile folders."""

import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pairmill
from pairmill.jobs.cli.main import app, main
from pairmill.pipeline.common.storage import is_in_use
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import job, picture, sequentially, write_input
from tests.synthetic_dataset import write_dataset

PAIRMILL = [sys.executable, "-m", "pairmill"]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Start the command in its own session, with the usual handling of Ctrl-C even if these tests run in the background
    of a shell, which makes jobs ignore it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = ["env", "--default-signal=INT", *PAIRMILL, *arguments]
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PAIRMILL, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


def run_here(arguments: list[str]) -> str:
    """Run the command in this process, because starting another and Ray's workers takes seconds. It must succeed.
    Returns its stdout."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def build_arguments(source: Path, output: Path, *more: str) -> list[str]:
    loopback = "fetch.allow_networks=[127.0.0.0/8]"
    return [
        "build",
        str(source),
        str(output),
        "--set",
        loopback,
        "--set",
        "shard_rows=8",
        "--no-report",
        "--json",
        *more,
    ]


def row_ids_and_uids(output: Path) -> list[tuple[str, str]]:
    """(row_id, uid) of every row in the files that a plain glob finds; after a finished run, all are current."""
    paths = [path for folder in ("pairs", "rejects") for path in (output / folder).iterdir()]
    tables = [pq.read_table(path, columns=["row_id", "uid"]) for path in paths]
    return sorted((row["row_id"], row["uid"]) for table in tables for row in table.to_pylist())


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


@pytest.mark.timeout(300)
def test_after_kill_9_the_same_command_produces_the_output_of_an_uninterrupted_run(
    plain_loop: None, web: PictureWeb, on_this_ray: list[str], tmp_path: Path
) -> None:
    """The command is killed in its first run, which has started its own Ray, and again when it resumes, on a Ray that
    keeps running."""
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(120)]
    rows[7]["url"] += ".gone"
    source = write_input(tmp_path / "in.parquet", rows, 100)
    output, whole = tmp_path / "out", tmp_path / "whole"
    sequentially(job(source, whole, shard_rows=8))
    rng, delays_s = random.Random(os.urandom(4)), []
    slowly = ["--set", "fetch.per_host_concurrency=1", "--set", "fetch.per_host_interval_s=0.02"]
    for where in ([], on_this_ray):
        before = manifests(output)
        process = start(build_arguments(source, output, *slowly, *where), tmp_path)
        while manifests(output) == before and process.poll() is None:
            time.sleep(0.02)
        delays_s.append(rng.uniform(0.0, 0.8))
        time.sleep(delays_s[-1])
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended by itself"
    again = run_here(build_arguments(source, output))
    assert json.loads(again.splitlines()[-1])["rows_in"] == len(rows)
    assert row_ids_and_uids(output) == row_ids_and_uids(whole), delays_s
    wait_for_writers(output)
    run_here(build_arguments(source, output))  # the next command removes what a worker left that outlived `again`
    assert without_attempts(files(output)) == without_attempts(files(whole)), delays_s


def wait_for_writers(output: Path) -> None:
    """Wait until no process writes to the output. A Ray that keeps running ends the workers of a killed run only when
    it notices that their driver is gone."""
    until = time.monotonic() + 60
    while any(is_in_use(path.name) for path in output.glob("tmp/*")):
        assert time.monotonic() < until, "a worker of a killed run is still writing"
        time.sleep(0.05)


def manifests(output: Path) -> set[Path]:
    return set(output.glob("manifests/*"))


def without_attempts(names: set[str]) -> list[str]:
    """The file names without the attempt ids that a shard's files have if its first worker died while committing it."""
    return sorted(f"{name.split('.')[0]}.{name.split('.')[-1]}" for name in names)


@pytest.mark.parametrize(
    ("send", "ending", "has_own_ray"),
    [(os.killpg, signal.SIGINT, True), (os.kill, signal.SIGTERM, False), (os.killpg, signal.SIGHUP, True)],
)
def test_a_signal_leaves_a_resumable_output_and_says_so(
    web: PictureWeb, on_this_ray: list[str], tmp_path: Path,
    send: Callable[[int, int], None], ending: signal.Signals, has_own_ray: bool,
) -> None:  # fmt: skip
    """Ctrl-C, `kill`, job schedulers and closed terminals send signals. Some of these also reach Ray's processes."""
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(400)]
    output = tmp_path / "out"
    slowly = ["--set", "fetch.per_host_concurrency=1", "--set", "fetch.per_host_interval_s=0.05"]
    source, where = write_input(tmp_path / "in.parquet", rows, 100), [] if has_own_ray else on_this_ray
    process = start(build_arguments(source, output, *slowly, *where), tmp_path)
    while not list(output.glob("manifests/*")) and process.poll() is None:
        time.sleep(0.05)
    send(process.pid, ending)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + ending, err
    assert err.endswith(f"Stopped. Finished shards stay in {output}; run the same command again to resume.\n")
    assert "Traceback" not in out + err
    assert 0 < pairmill.status(output).rows_in < len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nowhere.csv", "out"], "nowhere.csv"),
        (["build", "in.csv", "out", "--url-column", "adress"], "adress"),
        (["build", "in.csv", "out", "--set", "fetch.timout_s=3"], "did you mean 'timeout_s'?"),
        (["build", "in.csv", "out", "--job", "job.yaml"], "job.yaml:3: images.size"),
        (["build", "in.csv", "out", "--preset", "laion2b"], "calibrated on ViT-B-32"),
        (["build", "in.csv", "out", "--model", "ViT-B-23:openai"], "ViT-B-32"),
        (["build", "in.csv", "out", "--set", "rules.custom=[nothing:there]"], "there is no module 'nothing'"),
        (["build", "half.parquet", "out"], "half.parquet"),
        (["build"], "give a SOURCE and an OUT"),
        (["status", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
    ],
)
def test_a_job_that_cannot_run_ends_with_one_clear_message_before_ray_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """The command runs in this process, because each new process would load pyarrow again, or even open_clip."""
    (tmp_path / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a cat\n")
    (tmp_path / "job.yaml").write_text("fetch:\n  retries: 1\nimages: {size: none}\n")
    write_input(tmp_path / "half.parquet", [{"url": "http://127.0.0.1/a.jpg", "caption": "a"}])
    whole = (tmp_path / "half.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pairmill", *arguments])
    monkeypatch.setattr("pairmill.jobs.cluster.run_shards.run_shards", lambda *_: pytest.fail("it would start Ray"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in capfd.readouterr().err


def test_a_job_that_cannot_run_ends_the_process_with_one_message(tmp_path: Path) -> None:
    done = run(["build", "nowhere.csv", "out"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("pairmill: ")
    assert "nowhere.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_low_limit_on_open_files_is_reported_once_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path / "in.parquet", [{"url": "http://127.0.0.1/a.jpg", "caption": "a"}])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400, 400))
    monkeypatch.setattr("pairmill.jobs.cluster.run_shards.run_shards", lambda *_: pytest.fail("it would start workers"))
    monkeypatch.setattr(sys, "argv", ["pairmill", "build", str(source), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith("or lower fetch.concurrency to 144")


@pytest.mark.parametrize("to", ["nobody", "a full disk"])
def test_a_build_writes_its_report_even_if_its_output_cannot_be_printed(to: str, tmp_path: Path) -> None:
    write_input(tmp_path / "in.parquet", [{"url": "http://127.0.0.1/a.jpg", "caption": "a"}])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer if to == "nobody" else "/dev/full", "wb") as stdout:
        done = subprocess.run([*PAIRMILL, "build", "in.parquet", "out"], cwd=tmp_path, stdout=stdout, timeout=60)
    assert done.returncode == 1
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_reliably_ends_with_its_own_exit_status(tmp_path: Path) -> None:
    """Arrow's threads once freed Python bytes while the interpreter shut down, which aborted one run in twenty."""
    write_dataset(tmp_path / "out", 40_000, shard_rows=4_000)
    for name, least in (("low", 0.2), ("high", 0.3)):
        assert run(["select", "out", name, "--step", f"where: similarity >= {least}"], tmp_path).returncode == 0
    ended = [run(["select", "out", "--compare", "low", "high"], tmp_path).returncode for _ in range(12)]
    assert ended == [0] * 12


@pytest.mark.parametrize(
    ("shell", "where"),
    [
        ("bash", ".bashrc"),
        ("zsh", ".zfunc/_pairmill"),
        ("fish", ".config/fish/completions/pairmill.fish"),
    ],
)
def test_completion_is_shown_and_installed_for_the_shell_that_asks(shell: str, where: str, tmp_path: Path) -> None:
    """The shell is recognized by the name of the process that runs the command."""
    asking = tmp_path / shell
    shutil.copy("/bin/sh", asking)
    environment = {**os.environ, "HOME": str(tmp_path)}

    def ask(option: str) -> str:
        line = f"{shlex.join([*PAIRMILL, option])}; exit $?"  # two commands, so that the shell stays the parent
        done = subprocess.run([asking, "-c", line], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"_PAIRMILL_COMPLETE=complete_{shell}" in ask("--show-completion")
    assert f"{shell} completion installed" in ask("--install-completion")
    assert "pairmill" in (tmp_path / where).read_text()


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    command = tmp_path / "pairmill"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(PAIRMILL)} "$@"\n')
    command.chmod(0o755)
    load = f'PATH={tmp_path}:$PATH; eval "$(_PAIRMILL_COMPLETE=source_bash pairmill)"'
    complete = '_pairmill_completion pairmill; echo "${COMPREPLY[*]}"'
    for words, expected in (("expo", "export"), ("select out --ov", "--overwrite")):
        typed = f"COMP_WORDS=(pairmill {words}); COMP_CWORD={len(words.split())}"
        line = "; ".join([load, typed, complete])
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr
