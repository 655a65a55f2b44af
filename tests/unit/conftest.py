"""Keeps Ray out of the unit tests: starting it takes seconds and leaves a token that other tests would see."""

from collections.abc import Iterator
from typing import NoReturn

import pyarrow as pa
import pytest

from pairmill.pipeline.stages.pipelines import Pipeline, open_stages, process_batch
from pairmill.schemas.batch import planned_batches


@pytest.fixture(scope="session", autouse=True)
def _ray_does_not_start() -> Iterator[None]:
    def start(*_: object) -> NoReturn:
        raise AssertionError("a unit test starts Ray: use the fixture no_ray, or make it an integration test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairmill.jobs.cluster.session._init", start)
        yield


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the shards of score jobs in this process."""

    def run_shards_of(pipeline: Pipeline, shards: pa.Table, *_: object) -> None:
        stages = open_stages(pipeline)
        for batch in planned_batches(shards):
            process_batch(batch, stages)
        for _spec, stage in stages:
            stage.close()

    monkeypatch.setattr("pairmill.jobs.score.run_shards_of", run_shards_of)
