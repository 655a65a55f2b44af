"""Tests scores on Ray: the columns are the same for any number of workers, and after kills."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ray

from pairmill.jobs.cluster.ray_tasks import RayTasks
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.prepare import prepared
from pairmill.pipeline.score.score_shard import ScoreTask, score_shard
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from tests.unit.scores.embedded import add, column, unit_vectors, write_embedded

IMAGES, TEXTS = unit_vectors(1, 600), unit_vectors(2, 600)
KINDS: dict[str, dict[str, object]] = {
    "neg": {"neg_clip": {"batch": 100, "repeats": 2}},
    "dense": {"density": {"sample": 200, "clusters": 5}},
    "mixed": {"mix": "rank(similarity) + zscore(similarity)"},
}


def test_scores_on_ray_equal_those_from_one_process(ray_session: None, tmp_path: Path) -> None:
    for folder in ("alone", "ray"):
        write_embedded(tmp_path / folder, IMAGES, TEXTS, 75)
    store, run = Store(str(tmp_path / "ray")), RunConfig(address=ray.get_runtime_context().gcs_address)
    tasks = RayTasks()
    for name, kind in KINDS.items():
        add(tmp_path / "alone", name, **kind)
        snapshot = Snapshot.of(store)
        card = prepared(snapshot, name, ScoreConfig.model_validate(kind), tasks, run)
        calls = [(ScoreTask(store, name, (), run), *shard) for shard in reversed(snapshot.generations)]
        assert list(tasks.get(tasks.map(score_shard, calls))) == [None] * 8
        for each in card.columns:
            assert np.array_equal(column(tmp_path / "alone", each.name), column(tmp_path / "ray", each.name))


def test_a_score_that_was_killed_resumes_and_equals_one_that_was_not(tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        write_embedded(tmp_path / folder, IMAGES, TEXTS, 6)
    kind = {"neg_clip": {"batch": 500, "repeats": 20}}
    add(tmp_path / "whole", "neg", **kind)
    command = [sys.executable, "-m", "pairmill", "score", "killed", "neg"]
    command += ["--score", "neg_clip: {batch: 500, repeats: 20}"]
    scoring = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    manifests = tmp_path / "killed/columns/neg/manifests"
    deadline = time.monotonic() + 100
    while scoring.poll() is None and time.monotonic() < deadline:
        if manifests.is_dir() and len(list(manifests.iterdir())) > 2:
            scoring.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    scoring.communicate()
    done = len(list(manifests.iterdir()))
    assert scoring.returncode == -signal.SIGKILL and 2 < done < 100
    result = add(tmp_path / "killed", "neg", **kind)
    assert (result.shards_scored, result.shards_missing) == (100 - done, [])
    assert np.array_equal(column(tmp_path / "whole", "neg"), column(tmp_path / "killed", "neg"))
    assert verify(Store(str(tmp_path / "killed")), rescore=20).problems == []
