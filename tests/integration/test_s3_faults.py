"""Tests S3 with faults (throttling, lost connections and replies, no permission), and counts requests at startup."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faulty_s3 import Faults, FaultyS3, credentials, s3_server
from bench.startup import job as startup_job
from bench.startup import plan as plan_startup
from bench.startup import start as startup
from bench.startup import write_source
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.schemas.manifest import manifest_name
from pairmill.schemas.s3 import S3Config
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, write_input
from tests.integration.test_command import run, run_here, start


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("mill") as url, credentials():
        yield url


@pytest.fixture
def faulty(server: str) -> Iterator[FaultyS3]:
    proxy = FaultyS3(server)
    yield proxy
    proxy.close()


def test_reads_and_writes_survive_throttling_and_lost_connections(faulty: FaultyS3) -> None:
    store = Store("s3://mill/throttled", S3Config(endpoint=faulty.url))
    faulty.faults = Faults(slow_down=0.15, reset=0.1)
    for number in range(30):
        assert store.create(f"a/{number}", b"content %d" % number)
    assert len(store.list("a")) == 30
    assert [store.read(f"a/{number}") for number in range(30)] == [b"content %d" % number for number in range(30)]
    assert sum(faulty.requests.values()) > 66  # some requests were repeated


@pytest.mark.parametrize(("num_bytes", "request_lost"), [(10, "PUT /mill/lost/10"), (110_000_000, "uploadId")])
def test_a_file_exists_and_its_name_is_taken_although_the_reply_to_its_write_was_lost(
    faulty: FaultyS3, num_bytes: int, request_lost: str
) -> None:
    """Small data is one PUT. Large data is sent in parts: the reply to one part is lost, and then the reply to their
    completion."""
    store = Store("s3://mill/lost", S3Config(endpoint=faulty.url))
    faulty.faults = Faults(lose_reply_to=request_lost)
    first = store.create(f"{num_bytes}/a", bytes(num_bytes))
    assert faulty.faults.lose_reply_to is None
    assert first == (request_lost == "uploadId")  # a part is sent again, but a repeated PUT finds its own object
    assert store.num_bytes(f"{num_bytes}/a") == num_bytes
    assert not store.create(f"{num_bytes}/a", b"another")
    if request_lost == "uploadId":
        faulty.faults = Faults(lose_reply_to="POST /mill/lost/110000000/b?uploadId")
        assert not store.create(f"{num_bytes}/b", bytes(num_bytes))
        assert faulty.faults.lose_reply_to is None
        assert store.num_bytes(f"{num_bytes}/b") == num_bytes


def test_starting_with_many_manifests_lists_them_without_reading_any(tmp_path: Path) -> None:
    """A page of a listing has 1,000 names. The other requests are for the plan, its listing, the ledger of withdrawals
    and the input."""
    names = [f"out/manifests/{manifest_name(shard, 0)}" for shard in range(2_500)]
    with s3_server("many", names) as url, credentials():
        proxy = FaultyS3(url)
        Store("s3://many/in", S3Config(endpoint=proxy.url)).create(
            "in.parquet", write_source(tmp_path / "in.parquet", 2_501)
        )
        what = startup_job("s3://many/in/in.parquet", "s3://many/out", proxy.url)
        plan_startup(what)
        startup(what)
        proxy.requests.clear()
        startup(what)
        requests = dict(proxy.requests)
        proxy.close()
    assert requests["LIST"] <= 3 + 13
    assert requests["GET"] <= 5
    assert set(requests) <= {"LIST", "GET", "HEAD"}  # starting a resumed run writes nothing


@pytest.mark.timeout(300)
def test_missing_write_permission_is_one_clear_error_and_the_run_resumes_once_granted(
    plain_loop: None, faulty: FaultyS3, web: PictureWeb, tmp_path: Path
) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(32)]
    source, output = write_input(tmp_path / "in.parquet", rows), "s3://mill/denied"
    settings = [f"s3.endpoint={faulty.url}", "fetch.allow_networks=[127.0.0.0/8]", "shard_rows=4"]
    slowly = ["fetch.per_host_concurrency=1", "fetch.per_host_interval_s=0.15"]
    flags, pauses = ([part for each in those for part in ("--set", each)] for those in (settings, slowly))
    command = ["build", str(source), output, "--no-report", *flags]
    slow_command = [*command, *pauses]
    faulty.faults = Faults(deny_writes=True)
    refused = run(slow_command, tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("pairmill: s3://mill/denied/plan/0.parquet: access denied")
    assert "Traceback" not in refused.stderr
    faulty.faults = Faults()
    process, store = start(slow_command, tmp_path), Store(output, S3Config(endpoint=faulty.url))
    while not store.list("manifests") and process.poll() is None:
        time.sleep(0.1)
    faulty.faults = Faults(deny_writes=True)  # permission is revoked in the middle
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "access denied" in said
    assert "Traceback" not in said
    faulty.faults = Faults()
    run_here(command)
    assert verify(store, rescore=0).problems == []
    assert sum(manifest.rows_in for manifest in read_manifests(store)) == 32
