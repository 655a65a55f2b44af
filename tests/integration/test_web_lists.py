"""Tests lists on web servers, with and without a query behind the file's name."""

import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import ClientTimeout
from fsspec.implementations.http import HTTPFileSystem

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import make_plan
from pairmill.schemas.errors import JobError
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.record import JobRecord
from tests.unit.test_plan import read_all

URLS = [f"http://web.invalid/{number}.jpg?{'x' * 1000}" for number in range(6_000)]
"""So many that the list has more bytes (6 MB) than fsspec reads in one request."""


class WithoutRanges(SimpleHTTPRequestHandler):
    """Always sends whole files, as Python's own web server does."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class WithRanges(WithoutRanges):
    """Sends the requested part of a file."""

    def send_head(self) -> Any:
        name = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not name.is_file():
            return super().send_head()
        first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        data = name.read_bytes()
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)


class Slow(WithoutRanges):
    """Always sends something, but takes longer for a file than aiohttp allows in these tests."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        for part in range(5):
            outputfile.write(data[part * len(data) // 5 : (part + 1) * len(data) // 5])
            time.sleep(0.3)


class Stalled(WithoutRanges):
    """Sends the beginning of each file and then nothing, until the client hangs up."""

    is_waiting = threading.Event()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(1_500))
        self.is_waiting.set()
        self.connection.recv(1)


class Refusing(WithoutRanges):
    """Answers with the status that the path begins with; a redirect leads to itself."""

    def send_head(self) -> Any:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


class CutShort(WithoutRanges):
    """Sends only the beginning of each file."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(1_500))


class PartsCutShort(WithRanges):
    """Sends only the beginning of each part."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(4))


@pytest.fixture(params=[WithoutRanges, WithRanges])
def web(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    monkeypatch.chdir(tmp_path / "web")
    text = "".join(f"{url}\n" for url in URLS).encode()
    Path("l.txt").write_bytes(text)
    Path("l.txt.gz").write_bytes(gzip.compress(text, 1))
    Path("l.csv").write_bytes(b"url\n" + text)
    Path("get").write_bytes(b"url\n" + text)
    Path("l.jsonl").write_text("".join(json.dumps({"url": url}) + "\n" for url in URLS))
    Path("l.json").write_text(json.dumps([{"url": url} for url in URLS]))
    pq.write_table(pa.table({"url": URLS}), "l.parquet", compression="none", use_dictionary=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # fsspec closes connections early
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def urls_read(url: str, folder: Path) -> list[str]:
    """The URLs of all shards that a build of this list plans."""
    job = BuildJob.model_validate({"source": {"paths": [url]}, "output": str(folder / "out"), "shard_rows": 4_000})
    return read_all(folder, make_plan(JobRecord(job, "job"), Store(job.output)))


@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz?v=1#top", "l.csv?v=1", "get?name=a.csv", "l.jsonl", "l.json?v=1"])
def test_a_text_list_on_any_web_server_is_read_whole(web: str, tmp_path: Path, name: str) -> None:
    assert urls_read(f"{web}/{name}", tmp_path) == URLS


@pytest.mark.parametrize("web", [CutShort], indirect=True)
@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz", "l.csv", "l.jsonl", "l.json"])
def test_a_text_list_of_which_only_a_part_arrives_is_refused_by_name(web: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(JobError, match=rf"{web}/{name}: the web server did not send the whole file"):
        urls_read(f"{web}/{name}", tmp_path)


@pytest.mark.parametrize("web", [Refusing], indirect=True)
@pytest.mark.parametrize("name", ["l.csv", "l.parquet"])
@pytest.mark.parametrize(("status", "cause"), [(403, "with HTTP 403"), (500, "with HTTP 500"), (302, "too often")])
def test_a_list_that_the_server_refuses_is_named_with_the_cause(
    web: str, tmp_path: Path, name: str, status: int, cause: str
) -> None:
    with pytest.raises(JobError, match=rf"^{web}/{status}/{name}: the web server .*{cause}$"):
        urls_read(f"{web}/{status}/{name}", tmp_path)


@pytest.mark.parametrize("web", [PartsCutShort], indirect=True)
def test_parquet_of_which_only_a_part_arrives_is_named_with_the_cause(web: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=rf"^{web}/l\.parquet: the web server did not send the whole file"):
        urls_read(f"{web}/l.parquet", tmp_path)


def test_a_web_server_that_does_not_respond_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/l.csv"
    with pytest.raises(JobError, match=rf"^{url}: the web server cannot be reached: "):
        urls_read(url, tmp_path)


@pytest.mark.parametrize("web", [WithRanges], indirect=True)
def test_nothing_but_the_list_is_requested(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: set[str] = set()
    monkeypatch.setattr(WithRanges, "log_request", lambda self, *_: requested.add(self.path))
    urls_read(f"{web}/l.parquet", tmp_path)
    assert requested == {"/l.parquet"}


@pytest.mark.parametrize("web", [Stalled], indirect=True)
def test_ctrl_c_stops_a_build_whose_list_does_not_arrive(web: str, tmp_path: Path) -> None:
    Stalled.is_waiting.clear()
    command = [sys.executable, "-m", "pairmill", "build", f"{web}/l.csv", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as build:
        Stalled.is_waiting.wait(60)
        time.sleep(1)
        build.send_signal(signal.SIGINT)
        assert "Stopped." in build.communicate(timeout=10)[1]
    assert build.returncode == 130


@pytest.mark.parametrize("web", [CutShort], indirect=True)
def test_a_blocklist_of_which_only_a_part_arrives_is_refused_by_name(web: str) -> None:
    with pytest.raises(JobError, match=rf"{web}/l\.txt: the web server did not send the whole file"):
        list(Files().read_text_lines(f"{web}/l.txt"))


@pytest.mark.parametrize("web", [Slow], indirect=True)
def test_a_list_may_take_any_time_to_arrive(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", ClientTimeout(total=1))
    HTTPFileSystem.clear_instance_cache()
    assert urls_read(f"{web}/l.txt", tmp_path) == URLS


@pytest.mark.parametrize("web", [Stalled], indirect=True)
def test_a_web_server_that_sends_nothing_more_is_given_up(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairmill.pipeline.common.web_files._WEB_TIMEOUT_S", 0.3)
    with pytest.raises(JobError, match=rf"{web}/l\.txt: the web server sent nothing for "):
        list(Files().read_text_lines(f"{web}/l.txt"))


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_parquet_is_read_from_web_servers_that_send_parts_and_refused_for_others(
    web: str, tmp_path: Path, query: str, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["web"] is WithRanges:
        assert urls_read(f"{web}/l.parquet{query}", tmp_path) == URLS
    else:
        with pytest.raises(SourceError, match=r"l\.parquet.* read in parts, which this server does not offer"):
            urls_read(f"{web}/l.parquet{query}", tmp_path)
