"""Tests what happens if the hub does not provide weights: within 10 s, an error of one line says what to do, and the
hub's client does not retry."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import constants

from pairmill.pipeline.encode import hub
from pairmill.pipeline.encode.catalog import known_models
from pairmill.pipeline.encode.weights import is_on_disk

WITHOUT = "without a network, set `pretrained` to a local file, or the model's name to a local folder"


@contextmanager
def hub_that_answers(status: int) -> Iterator[str]:
    """A hub that answers every request with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(autouse=True)
def online_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def problem(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str | None:
    """The download problem that is reported for this endpoint."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    started = time.monotonic()
    found = hub.download_problem()
    assert time.monotonic() - started < 10
    return found


def test_a_hub_on_a_closed_port_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = closed_port()
    assert problem(monkeypatch, endpoint) == f"{endpoint} cannot be reached ([Errno 111] Connection refused); {WITHOUT}"


def test_a_hub_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert problem(monkeypatch, endpoint) == f"{endpoint} cannot be reached (timed out); {WITHOUT}"


def test_a_hub_that_is_down_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that_answers(503) as endpoint:
        assert problem(monkeypatch, endpoint) == f"{endpoint} cannot be reached (HTTP 503); {WITHOUT}"


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_hub_that_answers_has_no_problem(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with hub_that_answers(status) as endpoint:
        assert problem(monkeypatch, endpoint) is None


def test_offline_mode_says_where_the_weights_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = problem(monkeypatch, closed_port())
    assert said == f"HF_HUB_OFFLINE is set, and {tmp_path}/hub (HF_HOME) lacks the files; {WITHOUT}"


def test_listing_models_asks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(host: str, *_: object, **__: object) -> NoReturn:
        asked.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert [model.name for model in known_models("coca_roberta")] == ["coca_roberta-ViT-B-32"]
    assert asked == []
    assert not constants.HF_HUB_OFFLINE


def test_an_unwritable_cache_is_named_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/sys/pairmill/hub")
    said = problem(monkeypatch, closed_port()) or ""
    assert said.startswith("/sys/pairmill/hub is not writable (")
    assert said.endswith("); set HF_HOME to a folder that is writable")


def test_weights_in_the_cache_are_found_by_their_tag(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert not is_on_disk({"hf_hub": "a/b/own.bin"})
    (snapshot / "own.safetensors").touch()  # the format that open_clip prefers
    assert is_on_disk({"hf_hub": "a/b/own.bin"})
    assert not is_on_disk({"hf_hub": "a/b/"})
    (snapshot / "open_clip_pytorch_model.bin").touch()
    assert is_on_disk({"hf_hub": "a/b/"})


@pytest.mark.parametrize(
    ("name", "offline", "what", "reason"),
    [
        ("ViT-B-32:laion2b_s34b_b79k", "0", "weights laion2b_s34b_b79k of 'ViT-B-32'", "cannot be reached"),
        ("hf-hub:a/b", "1", "model 'hf-hub:a/b'", "lacks the files"),
    ],
)
def test_the_command_reports_the_problem_on_one_line(
    tmp_path: Path, name: str, offline: str, what: str, reason: str
) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    hub = {"HF_ENDPOINT": closed_port(), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-m", "pairmill", "build", "in.csv", "out", "--model", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **hub}, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pairmill: the {what} cannot be fetched: ")
    assert reason in line
    assert "a local file" in line
    assert not (tmp_path / "out").exists()
