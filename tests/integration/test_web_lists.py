"""Tests lists on web servers, with and without a query behind the file's name."""

import gzip
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.files import SourceError
from pairmill.pipeline.source.plan import make_plan
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


class CutShort(WithoutRanges):
    """Sends only the beginning of each file."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(1_500))


@pytest.fixture(params=[WithoutRanges, WithRanges])
def web(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    monkeypatch.chdir(tmp_path / "web")
    text = "".join(f"{url}\n" for url in URLS).encode()
    Path("l.txt").write_bytes(text)
    Path("l.txt.gz").write_bytes(gzip.compress(text, 1))
    Path("l.csv").write_bytes(b"url\n" + text)
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


@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz?download=true#top", "l.csv?v=1", "l.jsonl", "l.json?raw=true"])
def test_a_text_list_on_any_web_server_is_read_whole(web: str, tmp_path: Path, name: str) -> None:
    assert urls_read(f"{web}/{name}", tmp_path) == URLS


@pytest.mark.parametrize("web", [CutShort], indirect=True)
@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz", "l.csv", "l.jsonl", "l.json"])
def test_a_text_list_of_which_only_a_part_arrives_is_refused_by_name(web: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=rf"{web}/{name}: the web server did not send the whole file"):
        urls_read(f"{web}/{name}", tmp_path)


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_parquet_is_read_from_web_servers_that_send_parts_and_refused_for_others(
    web: str, tmp_path: Path, query: str, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["web"] is WithRanges:
        assert urls_read(f"{web}/l.parquet{query}", tmp_path) == URLS
    else:
        with pytest.raises(SourceError, match=r"l\.parquet.* read in parts, which this server does not offer"):
            urls_read(f"{web}/l.parquet{query}", tmp_path)
