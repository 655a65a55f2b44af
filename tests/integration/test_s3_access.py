"""Tests that every command reports a wrong endpoint, key or bucket in one line with the remedy, within 10 s, and that
it refuses folders on S3 that are not pairmill's.
"""

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

import pairmill
from bench.faulty_s3 import CREDENTIALS, Faults, FaultyS3, credentials, s3_server
from pairmill.jobs.add_model import add_model
from pairmill.jobs.build import build, prepare
from pairmill.jobs.explain import explain
from pairmill.jobs.export import export
from pairmill.jobs.job_file import load_export_job, load_job, load_select_job
from pairmill.jobs.results import current
from pairmill.jobs.retry import retry
from pairmill.jobs.select import select
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.s3_probe import S3AccessError, check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.feed.pair_dataset import FeedConfig, PairDataset
from pairmill.pipeline.select.subset_diff import compare
from pairmill.pipeline.source.corpus.folders import folder_rows
from pairmill.pipeline.source.files import SourceError
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.subset import SelectJob
from tests.integration.test_command import run

LIMIT_S = 10.0


@pytest.fixture(autouse=True)
def without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all credentials except those that a test sets."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", *CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that does not check credentials."""
    with s3_server("mill") as url:
        yield url


def strict_user(server: str) -> dict[str, str]:
    """Make the server check credentials. Returns the keys of its only user, who has no permissions on S3."""
    client = boto3.client("iam", endpoint_url=server)
    client.create_user(UserName="user")
    key = client.create_access_key(UserName="user")["AccessKey"]
    client.close()
    ask = urllib.request.Request(f"{server}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(ask).close()
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def s3_job(source: str, output: str, s3: S3Config, kind: str = "urls") -> BuildJob:
    models = [{"name": "tiny"}] if kind == "corpus" else []
    values = {"source": {"paths": [source], "kind": kind}, "output": output, "models": models}
    return BuildJob.model_validate({**values, "s3": s3.model_dump()})


def commands(s3: S3Config, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> operation, for all operations that begin by accessing a bucket."""
    (folder / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    here, there, settings = str(folder / "in.csv"), "s3://mill/out", {"s3": s3.model_dump()}
    job_file = "s3://mill/job.yaml"
    select_job = SelectJob.model_validate({"dataset": there, "name": "some", "s3": settings["s3"]})
    exports = {
        name: ExportJob.model_validate({"dataset": dataset, "subset": "some", "output": output, "s3": settings["s3"]})
        for name, dataset, output in (("from", there, str(folder / "x")), ("to", str(folder / "y"), there))
    }
    return {
        "build from": lambda: build(s3_job("s3://mill/in/*.csv", str(folder / "out"), s3)),
        "build to": lambda: build(s3_job(here, there, s3)),
        "explain": lambda: explain(s3_job(here, there, s3)),
        "embed": lambda: build(s3_job("s3://mill/tars", str(folder / "emb"), s3, "corpus")),
        "status": lambda: current(Store(there, s3)),
        "open": lambda: pairmill.open(there, s3=s3),
        "verify": lambda: verify(Store(there, s3)),
        "retry": lambda: retry(there, settings=settings),
        "add model": lambda: add_model(there, {"name": "tiny"}, settings),
        "select": lambda: select(select_job),
        "compare": lambda: compare(Store(there, s3), "one", "other"),
        "export from": lambda: export(exports["from"]),
        "export to": lambda: export(exports["to"]),
        "build --job": lambda: load_job(job_file, {}, settings),
        "select --job": lambda: load_select_job(job_file, {}, settings),
        "export --job": lambda: load_export_job(job_file, {}, settings),
        "feed": lambda: PairDataset(FeedConfig(there, s3=s3)),
    }


def check_that_all_refuse(s3: S3Config, folder: Path, message: str, *names: str) -> None:
    """Check that all commands, or those named, fail in time, with one line that names the bucket and the endpoint."""

    def refused(command: Callable[[], object]) -> tuple[str, float]:
        started = time.monotonic()
        with pytest.raises(S3AccessError) as caught:
            command()
        return str(caught.value), time.monotonic() - started

    wanted = {name: command for name, command in commands(s3, folder).items() if name in names or not names}
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(wanted, pool.map(refused, wanted.values()), strict=True))
    for name, (text, seconds) in found.items():
        assert text.startswith(f"s3://mill at {s3.endpoint}: {message}"), (name, text)
        assert "\n" not in text, name
        assert seconds < LIMIT_S, (name, seconds)
    assert not list(folder.glob("out/*"))


@contextmanager
def silent_server() -> Iterator[str]:
    """Run a server that accepts connections but never responds. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_closed_port_is_reported_with_the_remedy(tmp_path: Path) -> None:
    endpoint = closed_port()
    with credentials():
        message = "cannot connect: check s3.endpoint (or AWS_ENDPOINT_URL) and the network"
        check_that_all_refuse(S3Config(endpoint=endpoint), tmp_path, message)


def test_an_unresponsive_host_is_reported_with_the_remedy(tmp_path: Path) -> None:
    few = ("build from", "build --job", "verify", "feed")
    with silent_server() as endpoint, credentials():
        check_that_all_refuse(S3Config(endpoint=endpoint), tmp_path, "no response within 5 s: check s3.endpoint", *few)


def test_missing_credentials_are_reported_with_the_remedy(server: str, tmp_path: Path) -> None:
    message = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.profile, or s3.anonymous: true"
    check_that_all_refuse(S3Config(endpoint=server), tmp_path, message)


def test_wrong_credentials_are_reported_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("mill") as server, credentials():
        keys, s3 = strict_user(server), S3Config(endpoint=server)
        message = "InvalidAccessKeyId: correct the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        check_that_all_refuse(s3, tmp_path, message)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AWS_ACCESS_KEY_ID"])
        with pytest.raises(S3AccessError, match="SignatureDoesNotMatch: correct the credentials") as caught:
            check_buckets(["s3://mill/out"], s3)
        assert keys["AWS_ACCESS_KEY_ID"] not in str(caught.value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["AWS_SECRET_ACCESS_KEY"])
        with pytest.raises(S3AccessError, match=r"AccessDenied: grant s3:ListBucket, or use other credentials"):
            check_buckets(["s3://mill/out"], s3)


def test_a_missing_bucket_is_reported_with_the_remedy(server: str, tmp_path: Path) -> None:
    with credentials():
        s3 = S3Config(endpoint=server)
        message = "NoSuchBucket: create the bucket, or correct its name or s3.endpoint"
        started = time.monotonic()
        with pytest.raises(S3AccessError, match=rf"^s3://mole at {server}: {message}$"):
            build(s3_job(str(tmp_path / "in.csv"), "s3://mole/out", s3))
        with pytest.raises(S3AccessError, match=rf"^s3://mole at {server}: {message}$"):
            current(Store("s3://mole/out", s3))
        assert time.monotonic() - started < LIMIT_S


def test_commands_report_s3_problems_on_one_line(server: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    at = ["--set", f"s3.endpoint={server}"]
    nowhere = closed_port()
    with credentials():
        for arguments, message in (
            (["build", "in.csv", "s3://mole/out", *at], f"s3://mole at {server}: NoSuchBucket: create the bucket"),
            (["status", "s3://mole/out", *at], f"s3://mole at {server}: NoSuchBucket: create the bucket"),
            (
                ["verify", "s3://mill/out", "--set", f"s3.endpoint={nowhere}"],
                f"s3://mill at {nowhere}: cannot connect",
            ),
            (
                ["status", "s3://mill/out", "--set", "s3.profile=nobody", *at],
                f"s3://mill at {server}: The config profile (nobody) could not",
            ),
        ):
            done = run(arguments, tmp_path)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"pairmill: {message}"), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_a_job_file_on_s3_is_read_with_the_s3_settings_of_the_command(server: str, tmp_path: Path) -> None:
    with credentials():
        Store("s3://mill/jobs", S3Config(endpoint=server)).create("a.yaml", b"output: out\nimages: {size: 99}\n")
        settings = [f"s3.endpoint={server}", "source.paths=[in.csv]"]
        job = load_job("s3://mill/jobs/a.yaml", {}, settings)
        assert (job.images.size, job.s3.endpoint) == (99, server)
        with pytest.raises(JobError, match=r"^s3://mill/jobs/b.yaml: cannot be read: No such file"):
            load_job("s3://mill/jobs/b.yaml", {}, settings)


def test_temporary_problems_pass_the_check(server: str) -> None:
    """Throttling and lost connections are ignored, and a bucket that passed is not checked again."""
    with credentials():
        for faults in (Faults(slow_down=1.0), Faults(reset=1.0), Faults(down=True)):
            proxy = FaultyS3(server, faults=faults)
            check_buckets(["s3://mill/out"], S3Config(endpoint=proxy.url))
            proxy.close()
        proxy = FaultyS3(server)
        for _ in range(3):
            check_buckets(
                ["s3://mill/out", "s3://mill/in/a.csv", "/here", "s3a://mill/x"], S3Config(endpoint=proxy.url)
            )
        assert proxy.requests == {"LIST": 1}
        proxy.close()


def test_an_object_that_is_readable_but_not_listable_passes_the_check(server: str) -> None:
    with credentials():
        store = Store("s3://mill/read", S3Config(endpoint=server))
        store.create("a.csv", b"url\n")
        proxy = FaultyS3(server, faults=Faults(deny_lists=True))
        s3 = S3Config(endpoint=proxy.url)
        check_buckets(["s3://mill/read/a.csv"], s3)
        proxy.close()
        proxy = FaultyS3(server, faults=Faults(deny_lists=True))
        with pytest.raises(S3AccessError, match="AccessDenied: grant s3:ListBucket"):
            check_buckets(["s3://mill/read/*.csv"], S3Config(endpoint=proxy.url))
        proxy.close()


@pytest.mark.parametrize(
    ("folder", "names", "denied"),
    [
        ("lists", ["a.csv", "b.csv"], "b.csv"),
        ("tables", ["a.parquet"], "a.parquet"),
        ("tars", ["a.tar"], "a.tar"),
        ("pictures", ["a.jpg", "a.txt"], "a."),
    ],
)
def test_one_unreadable_object_is_named(
    server: str, tmp_path: Path, folder: str, names: list[str], denied: str
) -> None:
    with credentials():
        for name in names:
            Store("s3://mill/denied", S3Config(endpoint=server)).create(f"{folder}/{name}", b"url\nhttp://a.invalid/\n")
        proxy = FaultyS3(server, faults=Faults(deny_reads_of=denied))
        uri, kind = f"s3://mill/denied/{folder}", "urls" if folder == "lists" else "corpus"
        values = {"source": {"paths": [uri], "kind": kind}, "output": str(tmp_path), "s3": {"endpoint": proxy.url}}
        with pytest.raises((OSError, SourceError), match=re.escape(f"{uri}/{denied}")):
            prepare(BuildJob.model_validate({**values, "models": [{"name": "tiny"}]}))
        proxy.close()


def test_an_unreadable_object_in_a_folder_of_pictures_costs_its_row(server: str, tmp_path: Path) -> None:
    with credentials():
        for name in ("a.jpg", "a.txt", "b.jpg", "b.txt"):
            Store("s3://mill/pictures", S3Config(endpoint=server)).create(name, b"x")
        proxy = FaultyS3(server, faults=Faults(deny_reads_of="pictures/a"))
        files = Files(S3Config(endpoint=proxy.url))
        names = [(name, 1) for name in ("a.jpg", "a.txt", "b.jpg", "b.txt")]
        rows = folder_rows("s3://mill/pictures", names, False, files)
        assert [(row.caption, row.caption_problem) for row in rows] == [
            (None, "a.txt: cannot be read: Forbidden"),
            (b"x", None),
        ]
        proxy.close()


@pytest.mark.parametrize("name", ["thesis.docx", "images/cat.jpg", "input/list.csv", "deep/down/a"])
def test_a_prefix_with_foreign_objects_is_refused_after_shallow_listings(
    server: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    with credentials():
        root = f"s3://mill/foreign-{name.partition('/')[0]}"
        Store(root, S3Config(endpoint=server)).create(name, b"mine")
        proxy = FaultyS3(server)
        with pytest.raises(JobError, match="is not empty and is not pairmill's"):
            prepare(s3_job(str(tmp_path / "in.csv"), root, S3Config(endpoint=proxy.url)))
        assert set(proxy.requests) == {"LIST", "HEAD"}  # s3fs turns one listing into two or three requests
        assert proxy.requests["LIST"] <= 12
        assert proxy.requests["HEAD"] <= 6  # for the records of exports and mixtures
        proxy.close()


def test_folder_objects_and_hidden_objects_are_not_foreign(server: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    with credentials():
        client = boto3.client("s3", endpoint_url=server)
        client.put_object(Bucket="mill", Key="made-by-hand/", Body=b"")  # as S3 consoles create a folder
        client.put_object(Bucket="mill", Key="made-by-hand/.keep", Body=b"")
        client.close()
        s3 = S3Config(endpoint=server)
        for _ in range(2):
            _, plan = prepare(s3_job(str(tmp_path / "in.csv"), "s3://mill/made-by-hand", s3))
            assert plan.num_rows == 1
