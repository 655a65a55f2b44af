"""Tests that only the needed files of a checkpoint are downloaded from the hub. The hub is a loopback server that
responds like the real one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pairmill.pipeline.encode.weights import ModelError, find_weights
from pairmill.schemas.job.models import ModelConfig
from tests.checkpoints import files_of, save_clip

REPO, COMMIT = "people/clip-held", "a" * 40


@contextmanager
def hub_with(folder: Path) -> Iterator[tuple[str, set[str]]]:
    """Run a hub with one repository. Yields (its endpoint, the names of the files that were downloaded)."""
    fetched: set[str] = set()
    files = {name: (folder / name).stat().st_size for name in files_of(folder)}
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": size, "oid": "b" * 40} for name, size in files.items()]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            if self.path.startswith(f"/api/models/{REPO}"):
                body, tag = json.dumps(tree if "/tree/" in self.path else info).encode(), "info"
            elif (folder / Path(self.path).name).is_file() and "/resolve/" in self.path:
                body = (folder / Path(self.path).name).read_bytes()
                tag = hashlib.sha256(body).hexdigest()
                fetched.update({Path(self.path).name} if with_body else ())
            else:
                body, tag = b"", "none"
            self.send_response(200 if body or self.path == "/" else 404)
            for name, value in (("ETag", f'"{tag}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_the_needed_files_are_downloaded_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_clip(tmp_path / "held")
    expected = find_weights(ModelConfig(name=str(tmp_path / "held"))).sha256()
    (tmp_path / "held" / "README.md").write_text("# A model")
    (tmp_path / "held" / "pytorch_model.bin").write_bytes(b"older")
    with hub_with(tmp_path / "held") as (endpoint, fetched):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert find_weights(ModelConfig(name=REPO)).sha256() == expected
        assert fetched == set(files_of(tmp_path / "held")) - {"README.md", "pytorch_model.bin"}
        with pytest.raises(ModelError, match="'people/other' on the Hub cannot be fetched"):
            find_weights(ModelConfig(name="people/other"))
    assert find_weights(ModelConfig(name=REPO)).sha256() == expected  # there is no hub anymore
