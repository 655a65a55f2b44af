"""Tests `--explain`: it writes nothing and shows the pools of the actual run."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pairmill.jobs.check import check
from pairmill.jobs.cli.main import app
from pairmill.jobs.cluster.fork_server import ForkServer
from pairmill.jobs.cluster.live import LiveWorkers
from pairmill.jobs.cluster.pools import Node, Pool, PoolError, plan_pools, shards_in_flight
from pairmill.jobs.cluster.process_backend import ProcessBackend
from pairmill.jobs.explain import explain, rows_per_s
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.pipeline.source.plan import make_plan
from pairmill.pipeline.stages.pipelines import Pipeline, build_pipeline
from pairmill.pipeline.stages.stage import StageName
from pairmill.schemas.job.run import DOWNLOAD_CPUS
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.record import JobRecord

BUILD: list[StageName] = ["read", "download", "encode", "commit"]


def pipeline(model: str | None = "tiny", **run: Any) -> Pipeline:
    models = [{"name": model}] if model else []
    values = {"source": {"paths": ["in.parquet"]}, "output": "out", "models": models, "run": run}
    mapping = ColumnMapping("url", "caption", None, None, None, pa.schema([]), ())
    return build_pipeline(BuildJob.model_validate(values), mapping, "0" * 32)


def pools_for(spec: Pipeline, shards: int, nodes: Sequence[Node]) -> dict[StageName, Pool]:
    """The pools for full shards."""
    return plan_pools(spec, shards, shards * spec.job.shard_rows, nodes)


def test_machines_with_gpus_only_encode_if_there_are_other_machines() -> None:
    nodes = [Node(16), Node(16), Node(8, gpus=4, accelerator="A100"), Node(8, gpus=4, accelerator="H100")]
    pools = pools_for(pipeline(), 10_000, nodes)
    assert pools["encode"].actors == 8
    assert (pools["encode"].gpus, pools["encode"].calls, pools["encode"].labels) == (1.0, 2, {})
    assert pools["download"].actors == 30
    for name in ("read", "download", "commit"):
        assert pools[name].labels == {"ray.io/accelerator-type": "!in(A100, H100)"}  # type: ignore[index]


def test_a_machine_with_gpus_runs_all_stages_if_it_is_the_only_machine() -> None:
    pools = pools_for(pipeline(), 10_000, [Node(16, gpus=2, accelerator="A100")])
    assert (pools["encode"].actors, pools["download"].actors) == (2, 14)
    assert not pools["download"].labels
    assert (
        pools_for(pipeline(), 10_000, [Node(16)])["encode"].calls == 1
    )  # on a CPU, a second call would fill no idle time


@given(
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=8),
    gpus=st.integers(0, 8),
    shards=st.integers(1, 10_000),
    download=st.none() | st.integers(1, 200),
    encode=st.none() | st.integers(1, 20),
)
def test_pools_fit_the_machines_or_are_refused(
    cpus: list[int], gpus: int, shards: int, download: int | None, encode: int | None
) -> None:
    nodes = [Node(float(count)) for count in cpus] + ([Node(8.0, gpus=gpus)] if gpus else [])
    try:
        pools = pools_for(pipeline(download_actors=download, encode_actors=encode), shards, nodes)
    except PoolError as refused:
        assert "run." in str(refused)
        return
    assert all(1 <= pool.actors <= shards for pool in pools.values())
    assert sum(pool.actors * pool.cpus for pool in pools.values()) <= sum(node.cpus for node in nodes) + 1e-6
    assert pools["download"].cpus <= min(DOWNLOAD_CPUS, max(node.cpus for node in nodes))
    assert sum(pool.actors * pool.gpus for pool in pools.values()) <= gpus


def test_downloads_use_the_remaining_cores_or_half_of_them_beside_models_and_fit_on_each_machine() -> None:
    def actors(model: str | None, *cpus: int) -> int:
        return pools_for(pipeline(model), 10_000, [Node(each) for each in cpus])["download"].actors

    assert [actors(None, cpus) for cpus in (1, 2, 4, 16, 64)] == [1, 1, 2, 14, 62]
    assert [actors("tiny", cpus) for cpus in (1, 2, 4, 16, 64)] == [1, 1, 1, 7, 31]
    assert actors(None, 8, 8, 8) == 21  # a whole CPU of each machine stays free for the actors that need little
    assert actors("tiny", *[3] * 10) == 10  # one per machine, not 14 in total


def test_few_rows_get_one_download_actor_unless_the_job_asks_for_more() -> None:
    def actors(rows: int, shards: int = 100, **run: Any) -> int:
        return plan_pools(pipeline(None, **run), shards, rows, [Node(16)])["download"].actors

    assert [actors(rows) for rows in (0, 1, 1_999, 2_000, 4_500, 1_000_000)] == [1, 1, 1, 2, 4, 14]
    assert actors(4_500, shards=3) == 3
    assert actors(1_999, download_actors=3) == 3


def test_pools_may_ask_an_autoscaling_cluster_for_more_than_it_has() -> None:
    pools = pools_for(pipeline(max_download_actors=64, max_encode_actors=8), 1_000, [Node(4)])
    assert (pools["download"].actors, pools["download"].max_actors) == (1, 64)
    assert (pools["encode"].actors, pools["encode"].max_actors) == (1, 8)
    assert pools["read"].actors == 8


def test_a_fraction_of_a_gpu_per_encoder_puts_several_encoders_on_each_gpu() -> None:
    nodes = [Node(16), Node(8, gpus=4, accelerator="A100")]
    halves = pools_for(pipeline(gpus_per_encoder=0.5), 10_000, nodes)["encode"]
    assert (halves.actors, halves.gpus, halves.cpus) == (8, 0.5, 1.0)
    pairs = pools_for(pipeline(gpus_per_encoder=2), 10_000, nodes)["encode"]
    assert (pairs.actors, pairs.gpus, pairs.cpus) == (2, 2.0, 4.0)
    with pytest.raises(PoolError, match=r"gpus_per_encoder is 8, but no machine has that many"):
        pools_for(pipeline(gpus_per_encoder=8), 10, nodes)
    with pytest.raises(PoolError, match=r"there are 4 GPUs, and each encoder takes 0\.5"):
        pools_for(pipeline(gpus_per_encoder=0.5, encode_actors=9), 10, nodes)
    with pytest.raises(ValueError, match="a fraction of one GPU or a whole number"):
        pipeline(gpus_per_encoder=1.5)


def test_an_encoder_reserves_the_cpus_that_its_threads_keep_busy() -> None:
    alone = pools_for(pipeline(encode_threads=6), 10_000, [Node(16)])
    assert alone["encode"].cpus == 6.0
    assert sum(pool.actors * pool.cpus for pool in alone.values()) <= 16
    apart = pools_for(pipeline(), 10_000, [Node(16), Node(8, gpus=2, accelerator="A100")])
    with pytest.raises(PoolError, match="encode_threads is 6, but no machine has more than 4 CPUs"):
        pools_for(pipeline(encode_threads=6), 10, [Node(4), Node(4)])
    assert apart["encode"].cpus == 4.0  # half of the cores of the GPU machine, which runs only two encoders


def test_an_isolated_shard_runs_alone() -> None:
    alone = pipeline().isolated()
    pools = pools_for(alone, 50, [Node(64)])
    assert {(pool.actors, pool.calls) for pool in pools.values()} == {(1, 1)}
    assert shards_in_flight(alone, pools, 1) == 1


def manifest(download_s: float, encode_s: float) -> ShardManifest:
    values = {"uri": "in", "first_row": 0, "job_fingerprint": "0" * 32, "files": {}, "bytes_fetched": 0, "versions": {}}
    counts = {"num_rows": 100, "rows_in": 100, "pairs": 100, "rejects": 0, "kept": 100, "statuses": {"ok": 100}}
    seconds = {"download": download_s, "encode": encode_s}
    return ShardManifest.model_validate({**values, **counts, "shard": 0, "attempt": "0" * 32, "seconds": seconds})


def test_the_rate_is_estimated_from_the_slowest_pool_and_the_finished_shards() -> None:
    pools: dict[StageName, Pool] = {"download": Pool(2, 2.0, calls=4), "encode": Pool(1, 0.2)}
    assert rows_per_s(pools, []) is None
    assert rows_per_s(pools, [manifest(40.0, 1.0)] * 3) == pytest.approx(20.0)  # 8 shards at the same time, 40 s each
    assert rows_per_s(pools, [manifest(4.0, 10.0)] * 3) == pytest.approx(10.0)


def test_explain_shows_pools_memory_and_output_files_and_writes_nothing(tmp_path: Path) -> None:
    urls = [f"https://pictures.example/{number}.jpg" for number in range(100)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), tmp_path / "in.parquet")
    arguments = ["build", str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--model", "tiny", "--explain"]
    done = CliRunner().invoke(app, [*arguments, "--set", "shard_rows=10", "--set", "run.device=cpu"])
    assert done.exit_code == 0, done.output
    assert "100 rows in 10 shards of up to 10: 40 output files" in done.output
    for name in BUILD:
        assert f"  {name:<9}1 worker: " in done.output or os.cpu_count() != 2
    assert "memory: about" in done.output
    assert "rate: no shard is done yet" in done.output
    assert not (tmp_path / "out").exists()


def test_explain_counts_the_rows_that_an_earlier_limit_left_out_and_the_files_added_since(tmp_path: Path) -> None:
    def job(limit: int | None) -> BuildJob:
        source = {"paths": [str(tmp_path / "in")], "limit_rows": limit}
        values = {"source": source, "output": str(tmp_path / "out"), "shard_rows": 10, "run": {"device": "cpu"}}
        return BuildJob.model_validate(values)

    urls = [f"https://pictures.example/{number}.jpg" for number in range(100)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"url": urls}), tmp_path / "in" / "0.parquet")
    planned, fingerprint = check(job(25), dry_run=True)
    make_plan(JobRecord(planned, fingerprint), Store(str(tmp_path / "out")))
    shutil.copy(tmp_path / "in" / "0.parquet", tmp_path / "in" / "1.parquet")
    for limit, *expected in ((None, 100, 75, 1), (40, 40, 15, 0), (10, 25, 0, 0)):
        found = explain(job(limit))
        assert [found.rows_left, found.unplanned_rows, found.unplanned_files] == expected
    assert "\n".join(explain(job(None)).lines()).count("the next run adds") == 2


@given(st.integers(1, 4), st.floats(0.05, 1.0) | st.integers(1, 4).map(float))
def test_no_gpu_gets_more_encoders_than_fit(gpus: int, share: float) -> None:
    spec = pipeline(gpus_per_encoder=share)
    try:
        encode = pools_for(spec, 1_000, [Node(64, gpus)])["encode"]
    except PoolError:
        assert share > gpus
        return
    backend = ProcessBackend(spec, LiveWorkers(lambda _: None), ForkServer(), None, [str(gpu) for gpu in range(gpus)])
    for _ in range(encode.actors):
        for gpu, taken in backend._free_gpus(share).items():
            backend._gpus[gpu] += taken
    assert max(backend._gpus.values()) <= 1 + 1e-9
