"""Tests three simulated nodes: deaths in the middle of a build cost time, but no rows; GPU nodes only encode."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chaos import ROWS, SHARD_ROWS, World, add_node, run, world
from pairmill.jobs.cluster.pools import ACCELERATOR_LABEL
from tests.integration.test_build import write_input
from tests.integration.test_command import run as run_command

SEED = 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.mark.timeout(300)
def test_a_build_with_deaths_has_the_same_output_as_one_without(made: World) -> None:
    """The driver dies. When the same command resumes the build, a download worker dies, and then a node."""
    done = run(made, "out", ["driver", "download worker", "node"], random.Random(SEED))
    assert done.hit
    assert done.rows == sorted(f"{row // SHARD_ROWS}:{row % SHARD_ROWS} ok" for row in range(ROWS))
    assert done.problems == []
    assert done.resumed == 1


WHERE = """
import pathlib, os
import pyarrow as pa, ray
from pairmill.pipeline.rules import at

def note(step, rows):
    name = f"{step}-{os.getpid()}"
    pathlib.Path("FOLDER", name).write_text(ray.get_runtime_context().get_node_id())
    return pa.repeat(True, rows.num_rows)

@at("caption")
def read(rows):
    return note("read", rows)

@at("image")
def download(rows):
    return note("download", rows)

@at("score")
def commit(rows):
    return note("commit", rows)
"""


@pytest.mark.timeout(300)
def test_nodes_with_gpus_only_encode(made: World, tmp_path: Path) -> None:
    labels = {ACCELERATOR_LABEL: "A100"}
    gpu = add_node(made.cluster, num_cpus=8, num_gpus=1, object_store_memory=100_000_000, labels=labels)
    folder = tmp_path / "nodes"
    folder.mkdir()
    (tmp_path / "where_rules.py").write_text(WHERE.replace("FOLDER", str(folder)))
    rows = [{"url": f"{made.web}/{number}.jpg", "caption": f"number {number}"} for number in range(20)]
    source = write_input(tmp_path / "in.parquet", rows)
    rules = ", ".join(f"where_rules:{step}" for step in ("read", "download", "commit"))
    settings = [
        f"run.address={made.cluster.address}",
        f"rules.custom=[{rules}]",
        "shard_rows=5",
        "fetch.allow_networks=[127.0.0.0/8]",
    ]
    flags = [part for each in settings for part in ("--set", each)]
    done = run_command(
        ["build", str(source), str(tmp_path / "out"), "--model", "tiny", "--no-report", "--json", *flags], tmp_path
    )
    made.cluster.remove_node(gpu)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows_in"] == 20
    nodes = {path.read_text() for path in folder.iterdir()}
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"read", "download", "commit"}
    assert gpu.node_id not in nodes
