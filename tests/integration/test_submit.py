"""Tests `pairmill submit` to real Ray heads, on S3, from a folder with packages named like ours."""

import gzip
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bench.faulty_s3 import CREDENTIALS, FaultyS3, credentials, s3_server
from pairmill.jobs.cli.command_line import parse_command
from pairmill.jobs.cli.main import app
from pairmill.jobs.cli.submit import submit
from pairmill.jobs.cluster.job_bundle import bundled
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.schemas.errors import JobError
from pairmill.schemas.s3 import S3Config
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, write_input
from tests.integration.test_command import PAIRMILL

assert submit  # its import registers the command

GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)


def free_port() -> int:
    """A free port that is unlikely to be taken before Ray listens on it: it is below the ports that the system assigns
    (ip_local_port_range), and above those of Ray's workers. A node accepts no jobs if its agent's port is taken."""
    for _ in range(100):
        port = random.randint(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with s3_server("mill") as url, credentials():
        proxy = FaultyS3(url)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """The port that Prometheus would scrape on `bare_head`."""
    return free_port()


@contextmanager
def ray_head(
    ray: Sequence[str | Path], environment: Mapping[str, str], metrics_ports: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Run `ray start --head`, and start another node for each additional port. Each node has two CPUs. Yields the
    addresses to submit jobs to, and to join the cluster at."""
    port, dashboard = free_port(), free_port()
    folder = Path("/tmp") / f"pairmill-ray-{port}"  # Ray's socket paths must be short
    node = ["--num-cpus=2", "--object-store-memory=500000000", "--disable-usage-stats"]
    place = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    try:
        for metrics_port in metrics_ports:
            ports = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={metrics_port}"]
            command = [*ray, "start", *place, *node, *ports]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr
            place = [f"--address=127.0.0.1:{port}"]
        yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    finally:
        for process in _processes_of(folder):
            with suppress(psutil.Error):
                process.kill()


@pytest.fixture(scope="module")
def cluster(s3: FaultyS3) -> Iterator[str]:
    """A head in an activated environment, without tokens, and a second node. S3's keys are in their environment."""
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ports = [free_port(), free_port()]
    with ray_head(ray, {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}, ports) as (address, _):
        yield address


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a user who has run a local build, which leaves a token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    return home


@pytest.fixture(scope="module")
def bare_head(s3: FaultyS3, home: Path, metrics_port: int) -> Iterator[tuple[str, str]]:
    """A head started by its absolute path, without an activated environment, by a user who has a token. The head
    therefore requires that token."""
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", **CREDENTIALS}
    with ray_head([Path(sys.executable).with_name("ray")], environment, [metrics_port]) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def bare_cluster(bare_head: tuple[str, str]) -> str:
    """Where to submit jobs to that head."""
    return bare_head[0]


def _processes_of(folder: Path) -> list[psutil.Process]:
    """The processes of this cluster only, because `ray stop` would end every Ray instance on the machine.

    Ray's agents do not have the folder in their titles. An agent that has run jobs would use a whole core for half a
    minute until it notices that its cluster is gone.
    """
    named = [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]
    found = list(named)
    for process in named:
        with suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


@pytest.fixture
def project(tmp_path: Path, s3: FaultyS3) -> Path:
    """A user's folder, with modules named like ours, a rule in one of them, and a job file."""
    (tmp_path / "schemas").mkdir()
    for name in ("schemas/__init__.py", "jobs.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module was imported')")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("")
    (tmp_path / "pipeline" / "mine.py").write_text(
        "import pyarrow.compute as pc\nfrom pairmill.pipeline.rules import at\n\n"
        "@at('caption')\ndef no_sevens(rows):\n    return pc.invert(pc.match_substring(rows['caption_clean'], '7'))\n"
    )
    (tmp_path / "bad.txt").write_text("https://bad.example/1.jpg\n")
    job = {
        "fetch": {"allow_networks": ["127.0.0.0/8"]},
        "models": [{"name": "tiny"}],
        "shard_rows": 10,
        "rules": {"custom": ["pipeline.mine:no_sevens"], "url_blocklist": "bad.txt"},
        "s3": {"endpoint": s3.url},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return tmp_path


def mill(s3: FaultyS3, folder: str = "") -> Store:
    """A folder of the bucket."""
    return Store(f"s3://mill/{folder}", S3Config(endpoint=s3.url))


def put_input(web: PictureWeb, store: Store, folder: Path, name: str, rows: int) -> str:
    values = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(rows)]
    store.create(f"in/{name}", write_input(folder / "in.parquet", values).read_bytes())
    return f"s3://mill/in/{name}"


def pairmill(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user who has set only `variables` for Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables
    command = [*PAIRMILL, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def jobs(*arguments: str) -> str:
    """What `pairmill jobs` prints. It runs in this process, because loading Ray takes seconds."""
    return CliRunner().invoke(app, ["jobs", *arguments]).stdout


@pytest.mark.timeout(400)
def test_the_same_command_continues_a_stopped_build_then_an_embed_runs_and_no_secret_is_visible(
    cluster: str, project: Path, web: PictureWeb, s3: FaultyS3
) -> None:
    source, built = put_input(web, mill(s3), project, "a.parquet", 120), mill(s3, "a")
    slow = ["--set", "fetch.per_host_concurrency=1", "--set", "fetch.per_host_interval_s=0.2"]
    build = ["build", "--job", "job.yaml", source, "s3://mill/a", "--set", "models=[]", "--json"]
    submitted = pairmill(project, "submit", "--address", cluster, *build, *slow)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job_id = re.match(r"(raysubmit_\w+): submitted", submitted.stdout)[1]  # type: ignore[index]
    deadline = time.monotonic() + 90
    while not built.list("manifests"):
        assert time.monotonic() < deadline, jobs("logs", job_id, "--address", cluster)
        time.sleep(0.3)
    assert jobs("stop", job_id, "--address", cluster) == f"{job_id}: STOPPED\n"
    assert 0 < len(built.list("manifests")) < 12
    again = pairmill(project, "submit", "--address", cluster, "--wait", *build)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "rows already done" in again.stdout
    result = json.loads(again.stdout.strip().splitlines()[-1])
    assert result["rows_in"] == 120
    assert result["statuses"]["custom_rule"] == sum("7" in f"number {n}" for n in range(120))
    assert verify(built).problems == []
    assert f"{job_id}: STOPPED" in jobs("status", job_id, "--address", cluster)
    embedded = pairmill(
        project, "submit", "--address", cluster, "--wait", "embed", "s3://mill/a", "s3://mill/b", "--model", "tiny",
        "--set", f"s3.endpoint={s3.url}", "--set", "shard_rows=40",
    )  # fmt: skip
    assert embedded.returncode == 0, embedded.stdout + embedded.stderr
    assert sum(manifest.kept for manifest in read_manifests(mill(s3, "b"))) == result["kept"]
    assert verify(mill(s3, "b")).problems == []
    told = "".join(done.stdout + done.stderr for done in (submitted, again, embedded))
    told += jobs("list", "--address", cluster, "--json")
    for store in (built, mill(s3, "b")):
        names = [f"{folder}/{name}" for folder in ("plan", "manifests", "pairs") for name in store.list(folder)]
        told += "".join(store.read(name).decode(errors="replace") for name in [*names, "job.yaml"])
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in told
    assert CREDENTIALS["AWS_ACCESS_KEY_ID"] not in told


@pytest.mark.timeout(400)
def test_a_job_runs_on_rays_own_python_and_a_token_is_found_where_a_local_build_left_it(
    bare_cluster: str, home: Path, project: Path, web: PictureWeb, s3: FaultyS3, metrics_port: int
) -> None:
    source = put_input(web, mill(s3), project, "e.parquet", 20)
    command = ["submit", "--address", bare_cluster, "--wait", "build", "--job", "job.yaml", source, "s3://mill/e"]
    built = pairmill(project, *command, "--set", "models=[]", "--json", HOME=str(home))
    assert built.returncode == 0, built.stdout + built.stderr
    assert json.loads(built.stdout.strip().splitlines()[-1])["statuses"] == {"ok": 18, "custom_rule": 2}
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        exported = answer.read().decode()
    counted = re.findall(r'^ray_pairmill_pairs_total\{.*\bstatus="(\w+)".*\} (\S+)$', exported, re.M)
    assert sorted(counted) == [("custom_rule", "2.0"), ("ok", "18.0")]
    job_id = re.search(r"raysubmit_\w+", built.stderr)[0]  # type: ignore[index]
    listed = pairmill(project, "jobs", "list", "--address", bare_cluster, HOME=str(home))
    assert listed.stdout.startswith(f"{job_id}  SUCCEEDED")
    asked = _asked_in_one_process(bare_cluster, job_id, home)
    assert asked["status"].startswith(f"{job_id}: SUCCEEDED, exit status 0")
    assert asked["logs"] == asked["logs --follow"] == built.stdout
    assert asked["stop"] == f"{job_id}: had already ended: SUCCEEDED\n"


def test_a_cluster_with_a_token_is_joined_if_ray_is_told_to_send_it_and_otherwise_one_line_says_so(
    bare_head: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    """Both commands run at the same time, because Ray tries for twenty seconds to join."""
    pq.write_table(pa.table({"url": ["http://a.invalid/1.jpg"], "caption": ["one"]}), tmp_path / "in.parquet")

    def build(output: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return pairmill(
            tmp_path, "build", "in.parquet", output, "--set", f"run.address={bare_head[1]}", HOME=str(home), **variables
        )

    with ThreadPoolExecutor() as pool:
        refused, joined = pool.submit(build, "refused").result, build("joined", RAY_AUTH_MODE="token")
        assert joined.returncode == 0, joined.stderr
        assert "dns_error" in joined.stdout
        assert refused().returncode == 1
        assert "cannot join the Ray cluster" in refused().stderr.splitlines()[-1]
        assert "RAY_AUTH_MODE=token" in refused().stderr.splitlines()[-1]
        assert "gcs" not in refused().stderr


def _asked_in_one_process(address: str, job_id: str, home: Path) -> dict[str, str]:
    """What each command of `pairmill jobs` prints about a job, in one process because loading Ray takes seconds."""
    code = """
import contextlib, io, json, sys
from pairmill.jobs.cli.main import app
said = {}
for command in ("status", "logs", "logs --follow", "stop"):
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        app(["jobs", *command.split(), *sys.argv[1:]])
    said[command] = output.getvalue()
print(json.dumps(said))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, job_id, "--address", address]
    done = subprocess.run(
        command, env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=60, check=True
    )
    said: dict[str, str] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_TOKEN": "wrong" * 8}, {"RAY_AUTH_MODE": "token"}])
def test_a_missing_or_wrong_token_is_one_clear_line(
    bare_cluster: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    done = pairmill(tmp_path, "jobs", "list", "--address", bare_cluster, HOME=str(tmp_path), **variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pairmill: the cluster at {bare_cluster} requires a token")
    assert len(done.stderr.splitlines()) == 1


def test_a_job_that_cannot_run_ends_with_its_message_and_status(cluster: str, project: Path) -> None:
    missing = ["build", "--job", "job.yaml", "s3://mill/in/nothing.parquet", "s3://mill/d"]
    done = pairmill(project, "submit", "--address", cluster, "--wait", *missing)
    assert done.returncode == 1
    assert "no input found at s3://mill/in/nothing.parquet" in done.stdout
    assert "FAILED" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "in.parquet", "s3://mill/x"], "in.parquet: is relative to the current folder of this machine"),
        (["status", "s3://mill/x"], "submit takes one of build, embed"),
        ([], "submit takes one of build, embed"),
        (["build", "s3://mill/i", "s3://mill/x", "--set", "rules.custom=[gone:rule]"], "no module 'gone'"),
        (["build", "s3://mill/i", "s3://mill/x", "--set", "nosuch.field=1"], "there is no such field"),
        (["build", "s3://mill/i", "s3://mill/x", "--set", "rules.md5_blocklist=gone.txt"], "there is no file gone.txt"),
    ],
)
def test_a_command_that_cannot_work_on_the_cluster_is_refused_before_it_is_submitted(
    arguments: list[str], says: str
) -> None:
    with pytest.raises(JobError, match=re.escape(says)), bundled(parse_command(GROUP, arguments)):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "https://me:hunter2@host/in.parquet", "s3://mill/x"],
        ["build", "https://host/in.parquet?X-Amz-Signature=hunter2", "s3://mill/x"],
        ["build", "s3://mill/i", "s3://mill/x", "--set", "s3.endpoint=http://me:hunter2@minio:9000"],
        ["build", "s3://mill/i", "s3://mill/x", "--set", "s3.endpoint=me:hunter2@minio:9000"],
        ["build", "s3://mill/i", "s3://mill/x", "--set", "rules.url_blocklist=https://me:hunter2@host/list.txt"],
        ["select", "s3://me:hunter2@mill/x", "name"],
        ["export", "s3://mill/x", "name", "s3://me:hunter2@mill/y"],
        ["retry", "s3://me:hunter2@mill/x"],
        ["embed", "s3://me:hunter2@mill/x", "--add-model", "tiny"],
    ],
)
def test_a_secret_in_a_command_is_refused_and_not_repeated(arguments: list[str]) -> None:
    with pytest.raises(JobError) as refused, bundled(parse_command(GROUP, arguments)):
        pass
    assert "hunter2" not in str(refused.value)


def test_a_compressed_blocklist_stays_compressed(tmp_path: Path) -> None:
    (tmp_path / "bad.txt.gz").write_bytes(gzip.compress(b"https://bad.example/1.jpg"))
    arguments = ["build", "s3://mill/i", "s3://mill/x", "--set", f"rules.url_blocklist={tmp_path / 'bad.txt.gz'}"]
    with bundled(parse_command(GROUP, arguments)) as bundle:
        assert bundle.blocklists == {"url_blocklist": "url_blocklist.gz"}
        assert gzip.decompress((bundle.folder / "url_blocklist.gz").read_bytes()) == b"https://bad.example/1.jpg"


def test_help_after_submit_is_that_of_the_submitted_command(tmp_path: Path) -> None:
    done = pairmill(tmp_path, "submit", "build", "--help")
    assert done.returncode == 0
    assert "--min-similarity" in done.stdout


def test_a_missing_cluster_is_reported_on_one_clear_line(tmp_path: Path) -> None:
    done = pairmill(tmp_path, "submit", "--address", "http://127.0.0.1:9", "build", "s3://mill/i", "s3://mill/x")
    assert done.returncode == 1
    assert done.stderr.startswith("pairmill: no Ray cluster answers at http://127.0.0.1:9")
    assert "Traceback" not in done.stderr
