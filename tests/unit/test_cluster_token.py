"""Tests that the user's token is sent only to clusters that ask for one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from pairmill.jobs.cluster.submit import Cluster
from pairmill.schemas.errors import JobError

TOKEN = "0123456789abcdef" * 4
JOB = {"type": "SUBMISSION", "submission_id": "raysubmit_1", "status": "RUNNING", "entrypoint": "x", "message": "on it"}


@contextmanager
def dashboard(wanted: str | None) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A cluster's dashboard with one job. Yields its address and a list to which each request adds (request, token). If
    `wanted` is given, the dashboard refuses other tokens, as Ray does."""
    sent: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            sent.append((f"{self.command} {self.path}", token))
            answers = {
                "/api/version": {"version": "4", "ray_version": ray.__version__, "ray_commit": ""},
                "/api/jobs/": [JOB],
                "/api/jobs/raysubmit_1": JOB,
                "/api/jobs/raysubmit_1/logs": {"logs": "hello\n"},
                "/api/jobs/raysubmit_1/stop": {"stopped": True},
            }
            is_let_in = wanted is None or token == f"Bearer {wanted}"
            body = json.dumps(answers[self.path]).encode() if is_let_in else b"Unauthorized: Missing token"
            self.send_response(200 if is_let_in else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who has run a local build, which leaves a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(f"{TOKEN}\n")
    return tmp_path


def ask_everything(address: str) -> None:
    cluster = Cluster(address)
    cluster.job("raysubmit_1")
    cluster.jobs()
    assert cluster.logs("raysubmit_1") == "hello\n"


def test_a_cluster_that_asks_for_no_token_gets_none() -> None:
    with dashboard(wanted=None) as (address, sent):
        ask_everything(address)
    assert len(sent) >= 4
    assert {token for _, token in sent} == {None}


def test_a_cluster_that_asks_for_a_token_gets_it_with_every_later_request() -> None:
    with dashboard(wanted=TOKEN) as (address, sent):
        ask_everything(address)
    assert [token for _, token in sent[:1]] == [None]
    assert {token for _, token in sent[1:]} == {f"Bearer {TOKEN}"}
    assert len(sent) >= 5


@pytest.mark.parametrize("has_token", [True, False])
def test_without_the_right_token_one_line_says_where_to_put_it(home: Path, has_token: bool) -> None:
    if not has_token:
        (home / ".ray/auth_token").unlink()
    with dashboard(wanted="f" * 64) as (address, _), pytest.raises(JobError) as caught:
        Cluster(address)
    assert str(caught.value).startswith(f"the cluster at {address} requires a token, and this machine has none that it")
    assert TOKEN not in str(caught.value)
