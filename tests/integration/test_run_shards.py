"""Tests `run_shards` on this machine and on Ray: shards overlap, runs survive crashes, and only rows that kill every
worker are lost."""

import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, ObjectStoreFullError, OutOfMemoryError

from pairmill.jobs.build import build, prepare
from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.cluster.ray_backend import RayBackend
from pairmill.jobs.cluster.worker_backend import PayloadLost, WorkerDied
from pairmill.jobs.progress import ProgressListener
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.common.storage import Store
from pairmill.schemas.manifest import ShardManifest
from tests.integration.conftest import PictureWeb
from tests.integration.test_build import dataset, job, picture, write_input
from tests.integration.test_command import build_arguments, run


@pytest.fixture(params=["this machine", "Ray"])
def machines(request: pytest.FixtureRequest) -> list[str]:
    """Flags for a command that runs there."""
    return request.getfixturevalue("on_this_ray") if request.param == "Ray" else []


class SlowWeb:
    """A server that takes a while for every picture; `most` is the highest number of concurrent requests."""

    def __init__(self, seconds: float) -> None:
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        web = self

        class Slow(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with web._lock:
                    web._now += 1
                    web.most = max(web.most, web._now)
                time.sleep(seconds)
                with web._lock:
                    web._now -= 1
                body = picture(1)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def rows(self, count: int) -> list[dict[str, str]]:
        return [{"url": f"http://127.0.0.1:{self.server.server_port}/{n}.jpg", "caption": f"{n}"} for n in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_download_actor_works_on_four_shards_at_once(ray_session: None, tmp_path: Path) -> None:
    with SlowWeb(1.0) as web:
        source = write_input(tmp_path / "in.parquet", web.rows(16))
        settings = {"fetch": {"allow_networks": ["127.0.0.0/8"]}, "run": {"download_actors": 1}}
        build(job(source, tmp_path / "out", shard_rows=1, **settings))
    assert web.most == 4  # one row in each of four shards


def test_progress_advances_within_a_shard(ray_session: None, tmp_path: Path) -> None:
    class Told(ProgressListener):
        def __init__(self) -> None:
            self.work: list[WorkCounts] = []
            self.moves = 0

        def working(self, work: Mapping[str, WorkCounts]) -> None:
            self.work.append(work.get("download", WorkCounts()))

        def committed(self, manifest: ShardManifest) -> None:
            self.moves = len({counts.rows for counts in self.work})

    told = Told()
    with SlowWeb(1.0) as web:
        source = write_input(tmp_path / "in.parquet", web.rows(24))
        fetch = {"allow_networks": ["127.0.0.0/8"], "per_host_concurrency": 4}
        build(job(source, tmp_path / "out", shard_rows=24, fetch=fetch), told)
    assert told.moves >= 4  # six batches of responses, a second apart, arrive before the only shard is committed
    rows = [counts.rows for counts in told.work]
    assert rows == sorted(rows)
    assert max(counts.in_flight for counts in told.work) == 4
    assert max(counts.num_bytes for counts in told.work) > 0


FATAL_RULE = """
import os, pathlib, signal
import pyarrow as pa
from pairmill.pipeline.rules import at

@at("image")
def deadly(rows):
    marker = pathlib.Path({marker!r})
    if any(caption == "number {number}" for caption in rows["caption"].to_pylist()) and {condition}:
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.repeat(True, rows.num_rows)
"""


POISONED_DECODER = """
import os
import pyarrow as pa
from pairmill.pipeline.image import processor as images
from pairmill.pipeline.image import isolated as isolate

_in_thread, _in_child = images.ImageProcessor.process, isolate._process

def _die_on_poison(body):
    if body.endswith(b"poison"):
        os.abort()

def process_in_thread(self, body):
    _die_on_poison(body)
    return _in_thread(self, body)

def process_in_child(body):
    isolate._processor = isolate._processor or images.ImageProcessor(CONFIG)
    _die_on_poison(body)
    return _in_thread(isolate._processor, body)

images.ImageProcessor.process, isolate._process = process_in_thread, process_in_child

def keep_all(rows):
    return pa.repeat(True, rows.num_rows)
"""


def test_a_custom_rule_that_raises_stops_the_run_early_with_its_name(
    web: PictureWeb, machines: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("def look(rows):\n    return rows['no_such_column']\n")
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(80)]
    source = write_input(tmp_path / "in.parquet", rows)
    done = run(build_arguments(source, tmp_path / "out", "--set", "rules.custom=[broken:look]", *machines), tmp_path)
    assert done.stdout, (done.returncode, done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert len(result["failures"]) == 3
    assert "custom rule broken:look failed: KeyError" in result["stopped"]
    assert "Traceback" not in done.stderr


def test_rows_that_kill_every_worker_cost_only_themselves_and_a_death_that_does_not_recur_costs_nothing(
    web: PictureWeb, machines: list[str], tmp_path: Path
) -> None:
    """Row 5 kills every process that runs the rule. The decoder aborts on picture 11, as with a bug in a codec, in the
    worker and then in its child. Row 21 kills its worker once. The three rows are in different shards."""
    marker = str(tmp_path / "marker")
    (tmp_path / "fatal.py").write_text(FATAL_RULE.format(marker=f"{marker}5", number=5, condition="True"))
    (tmp_path / "once.py").write_text(FATAL_RULE.format(marker=marker, number=21, condition="not marker.exists()"))
    (tmp_path / "poisoned.py").write_text(POISONED_DECODER)
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(40)]
    rows[11]["url"] = web.add("/11.jpg", picture(11) + b"poison")
    source, output = write_input(tmp_path / "in.parquet", rows), tmp_path / "out"
    rules = "rules.custom=[fatal:deadly, once:deadly, poisoned:keep_all]"
    done = run(build_arguments(source, output, "--set", rules, *machines), tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["statuses"] == {"ok": 38, "rule_crashed": 1, "decoder_crashed": 1}
    rejected = {row["caption"]: row["status"] for row in dataset(output, "rejects").to_pylist()}
    assert rejected == {"number 5": "rule_crashed", "number 11": "decoder_crashed"}
    assert (tmp_path / "marker").exists()
    assert verify(Store(str(output)), rescore=0).problems == []


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (OutOfMemoryError("killed"), WorkerDied),
        (ActorDiedError(), WorkerDied),
        (ObjectLostError("00" * 28, None, ""), PayloadLost),
        (ObjectStoreFullError("full"), PayloadLost),
    ],
)
def test_a_worker_killed_for_its_memory_counts_as_dead_but_one_with_a_lost_object_does_not(
    tmp_path: Path, error: Exception, means: type[Exception]
) -> None:
    """Otherwise, the scheduler would keep giving shards to the dead worker. Ray reports both with its own errors."""
    source = write_input(tmp_path / "in.parquet", [{"url": "http://127.0.0.1:9/1.jpg", "caption": "one"}])
    backend = RayBackend(prepare(job(source, tmp_path / "out"))[0], LiveWorkers(lambda _: None))
    backend._futures["token"] = Future()
    backend._futures["token"].set_exception(error)
    with pytest.raises(means):
        backend.result("token")
