"""Tests the check of buckets: no server answers, the server is not an S3 server, or the profile does not exist."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pairmill.pipeline.common.s3_probe import S3AccessError, check_buckets
from pairmill.schemas.s3 import S3Config
from tests.unit.test_command_line import run

LIMIT_S = 10.0
WITH_JOB = [["build"], ["export", "out", "some", "tars"]]
PAGE = b"<!doctype html><meta charset=utf-8><p>It works!"  # valid HTML, but not XML
ENDPOINTS = [
    ({}, [], "https://s3.amazonaws.com"),
    ({"AWS_ENDPOINT_URL": "http://all:1"}, [], "http://all:1"),
    ({"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2"}, [], "http://s3:2"),
    ({"AWS_ENDPOINT_URL": "http://all:1"}, ["s3.endpoint=http://job:3"], "http://job:3"),
]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")


@contextmanager
def plain_server(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every GET with this status and page. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("command", WITH_JOB, ids=" ".join)
def test_an_unreachable_job_file_is_reported_in_one_line_with_a_remedy(command: list[str]) -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        started = time.monotonic()
        status, text = run(*command, "--job", "s3://mill/job.yaml", "--set", f"s3.endpoint={endpoint}")
    assert time.monotonic() - started < LIMIT_S
    remedy = "cannot connect: check s3.endpoint (or AWS_ENDPOINT_URL) and the network"
    assert (status, text) == (1, f"pairmill: s3://mill at {endpoint}: {remedy}\n")


@pytest.mark.parametrize(("status", "body"), [(200, PAGE), (200, b"<html/>"), (404, PAGE), (404, b""), (301, b"")])
def test_a_server_that_is_not_an_s3_server_is_recognized(status: int, body: bytes) -> None:
    with plain_server(status, body) as endpoint, pytest.raises(S3AccessError) as caught:
        check_buckets(["s3://mill/out"], S3Config(endpoint=endpoint))
    code = "" if status == 200 else f"HTTP {status}: "
    remedy = "the response is not from an S3 server: check s3.endpoint (or AWS_ENDPOINT_URL) and the network"
    assert str(caught.value) == f"s3://mill at {endpoint}: {code}{remedy}"


@pytest.mark.parametrize(("environment", "settings", "endpoint"), ENDPOINTS)
def test_a_wrong_profile_is_reported_with_the_endpoint(
    environment: dict[str, str], settings: list[str], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = [part for each in ("s3.profile=nobody", *settings) for part in ("--set", each)]
    status, text = run("status", "s3://mill/out", *given)
    assert (status, len(text.splitlines())) == (1, 1)
    assert text.startswith(f"pairmill: s3://mill at {endpoint}: The config profile (nobody) could not be found: check")
