"""Provides one Ray instance for the whole test session, and a plain web server for pictures on loopback addresses."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

LONGEST = [
    f"test_{name}"
    for name in (
        "submit",
        "cluster",
        "command",
        "run_shards",
        "api",
        "notebook",
        "install",
        "build",
        "s3_faults",
        "readme",
        "s3",
        "encode",
        "score",
        "demo",
    )
]
"""The test files that take longest, as a whole or in a single test. They run first, because if they ran last, no other
tests would run in parallel with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket. Its server runs in its own process, because moto's memory would outlive a server in
    this one."""
    from s3fs import S3FileSystem

    from bench.faulty_s3 import credentials, s3_server

    with s3_server("mill") as url, credentials(url):
        S3FileSystem.clear_instance_cache()  # cached instances may use another environment
        yield "s3://mill"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Its workers have the credentials of the S3 servers that tests start."""
    from bench.faulty_s3 import credentials
    from pairmill.jobs.cluster.session import ray_session as start
    from pairmill.schemas.job.run import RunConfig

    with ExitStack() as session:
        with credentials():
            session.enter_context(start(RunConfig()))
        yield


@pytest.fixture(scope="session")
def on_this_ray(ray_session: None) -> list[str]:
    """Flags that let a command join the session's Ray instance, because starting another takes longer than most
    jobs."""
    import ray

    return ["--set", f"run.address={ray.get_runtime_context().gcs_address}"]


def run_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Make jobs run their shards in this process. The tables are the same as on Ray, where each job would start its own
    workers."""
    from pairmill.jobs.cluster.lost_shards import Outcome
    from pairmill.pipeline.stages.pipelines import Pipeline, open_stages, process_batch
    from pairmill.schemas.batch import planned_batches

    def run_shards(shards: pa.Table, pipeline: Pipeline, on_outcome: Callable[[Outcome], None], *_: object) -> None:
        stages = open_stages(pipeline)
        try:
            for batch in planned_batches(shards):
                on_outcome(Outcome(batch.info.shard.shard, process_batch(batch, stages)))
        finally:
            for _spec, stage in stages:
                stage.close()

    patch.setattr("pairmill.jobs.cluster.run_shards.run_shards", run_shards)


@pytest.fixture
def plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs of this test run their shards in this process."""
    run_in_this_process(monkeypatch)


class PictureWeb:
    """Serves `pages` (path -> status, headers, body) on 127.0.0.0/8; `log` records the requested paths."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.log: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed in these tests
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def add(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        """Serve `body` at `path`; returns its URL."""
        self.pages[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.log.append(self.path)
                status, headers, body = web.pages.get(self.path, (404, {}, b"no such page"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        return Handler


@pytest.fixture
def web() -> Iterator[PictureWeb]:
    web = PictureWeb()
    yield web
    web.close()
