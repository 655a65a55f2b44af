"""Tests scores of pictures: their columns equal the measures of each stored picture, for all kinds of pictures."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pairmill.jobs.results import finish
from pairmill.jobs.score import ScoreResult, score
from pairmill.pipeline.check.verify import verify
from pairmill.pipeline.columns.score_card import read_score_card
from pairmill.pipeline.common.child import ChildDied
from pairmill.pipeline.common.hooks import WorkerHooks
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.image.measures import VERSION, measure
from pairmill.pipeline.image.pdq import pdq
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score import isolated, picture_rows, pictures
from pairmill.pipeline.score.isolated import IsolatedScore
from pairmill.pipeline.score.kind import LEFT_OUT, PICTURE, ScoreError
from pairmill.pipeline.score.score_shard import opened
from pairmill.pipeline.source.plan import load_plan
from pairmill.pipeline.stages.pipelines import process_batch, score_pipeline
from pairmill.schemas.batch import planned_batches
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.images import ImagesConfig
from pairmill.schemas.job.pictures import MEASURES
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.scores import ScoreJob
from tests.committed_shards import pair, reject, write_dataset

PAIRS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pairs"
PHOTOGRAPHS = [path.read_bytes() for path in sorted(PAIRS.rglob("*.jpg"))[::230]]
BROKEN = PHOTOGRAPHS[0][:300]


def with_picture(body: bytes | None, **columns: Any) -> dict[str, object]:
    return pair("a picture", image=body, sha256=hashlib.sha256(body or b"").hexdigest(), **columns)


ROWS = [
    [with_picture(PHOTOGRAPHS[0]), reject("gone"), with_picture(PHOTOGRAPHS[0]), with_picture(PHOTOGRAPHS[1])],
    [with_picture(PHOTOGRAPHS[2]), with_picture(BROKEN), with_picture(PHOTOGRAPHS[3])],
]
IN_ORDER = [PHOTOGRAPHS[0], PHOTOGRAPHS[0], PHOTOGRAPHS[1], PHOTOGRAPHS[2], None, PHOTOGRAPHS[3]]


pytestmark = pytest.mark.usefixtures("no_workers")


def add(root: Path, name: str = "look", **settings: object) -> ScoreResult:
    return score(ScoreJob.model_validate({"dataset": str(root), "name": name, "pictures": settings}))


def rows_of(root: Path, columns: list[str]) -> list[dict[str, object]]:
    snapshot = Snapshot.of(Store(str(root)))
    return [row for shard in snapshot.chunk.shards for row in snapshot.read(shard, columns).to_pylist()]


def expected(body: bytes | None, name: str = "look") -> Mapping[str, Any]:
    """The expected columns of one row, from its picture alone."""
    names = ["sharpness", "exposure", "exposure_dark", "exposure_bright", "colorfulness", "jpeg_quality", "border"]
    found = {} if body is None else measure(ImageProcessor(ImagesConfig()).pixels(body), body, MEASURES)
    return {f"{name}_{each}": pytest.approx(found[each]) if found else None for each in names}


def test_each_row_has_the_measures_of_its_picture_and_unscored_rows_are_null_and_counted(tmp_path: Path) -> None:
    store = write_dataset(tmp_path / "out", ROWS)
    result = add(tmp_path / "out")
    assert result.columns == list(expected(None))
    assert (result.shards_scored, result.rows_scored, result.failures) == (2, 6, {})
    assert result.pictures_left_out == {"000000001.json": 1}
    assert rows_of(tmp_path / "out", list(result.columns)) == [expected(body) for body in IN_ORDER]
    finish(store, load_plan(store), {}, 0)  # writes images/sizes.json
    assert verify(store, rescore=0).problems == []


def test_pdq_columns_have_their_own_names_and_each_picture_has_its_hash(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", ROWS)
    result = score(ScoreJob.model_validate({"dataset": str(tmp_path / "out"), "name": "hash", "pictures": "pdq"}))
    assert result.columns == ["pdq", "pdq_quality"]
    wanted = [None if body is None else ImageProcessor(ImagesConfig()).pixels(body) for body in IN_ORDER]
    grays = [None if each is None else np.asarray(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), np.uint8) for each in wanted]
    found = rows_of(tmp_path / "out", ["pdq", "pdq_quality"])
    expected = [(None, None) if gray is None else tuple(pdq(gray)) for gray in grays]
    assert [(row["pdq"], row["pdq_quality"]) for row in found] == expected


def test_the_scores_of_a_row_do_not_depend_on_other_rows_and_a_picture_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_dataset(tmp_path / "out", ROWS)
    add(tmp_path / "out")
    seen: list[bytes] = []
    whole = ImageProcessor.pixels
    monkeypatch.setattr(ImageProcessor, "pixels", lambda self, body: (seen.append(body), whole(self, body))[1])
    score = opened(store, read_score_card(store, "look"), RunConfig(encode_threads=3))
    bodies = [PHOTOGRAPHS[1], None, PHOTOGRAPHS[0], PHOTOGRAPHS[1], BROKEN]
    digests = [None if body is None else hashlib.sha256(body).hexdigest() for body in bodies]
    table = pa.table({"sha256": pa.array(digests, pa.string()), PICTURE: pa.array(bodies, pa.large_binary())})
    together = score(table)
    assert sorted(seen) == sorted([PHOTOGRAPHS[1], PHOTOGRAPHS[0], BROKEN])
    assert together[LEFT_OUT].to_pylist() == [False, False, False, False, True]
    alone = pa.concat_tables([score(table.slice(row, 1)) for row in range(table.num_rows)])
    assert together.to_pylist() == alone.to_pylist()


def test_only_the_requested_measures_become_columns(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", ROWS)
    result = add(tmp_path / "out", "file", measures=["jpeg_quality"])
    assert result.columns == ["file_jpeg_quality"]
    assert rows_of(tmp_path / "out", ["file_jpeg_quality"]) == [
        {"file_jpeg_quality": expected(body, "file")["file_jpeg_quality"]} for body in IN_ORDER
    ]
    for measures in ([], ["beauty"]):
        with pytest.raises((JobError, ValueError)):
            add(tmp_path / "out", "other", measures=measures)


def test_a_dataset_without_pictures_and_a_different_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "bare", ROWS, pictures="none")
    with pytest.raises(ScoreError, match="has no pictures"):
        add(tmp_path / "bare")
    store = write_dataset(tmp_path / "out", ROWS)
    add(tmp_path / "out")
    monkeypatch.setattr(pictures, "VERSION", VERSION + 1)
    with pytest.raises(ScoreError, match=f"made by version {VERSION} of the measures"):
        opened(store, read_score_card(store, "look"), RunConfig(encode_threads=5))


class FragileChild:
    """A fake child process that dies when it scores a certain picture. A real process would take seconds to start."""

    def __init__(self, start: Callable[..., None], *arguments: Any) -> None:
        start(*arguments)

    def call(self, function: Callable[..., pa.Table], row: pa.Table, timeout_s: float) -> pa.Table:
        assert row.num_rows == 1
        if row[PICTURE][0].as_py() == b"dies":
            raise ChildDied("its process died")
        return function(row)

    def close(self) -> None: ...


def test_in_isolation_only_the_row_of_a_picture_that_kills_the_process_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_dataset(tmp_path / "out", ROWS)
    add(tmp_path / "out")
    monkeypatch.setattr(isolated, "Child", FragileChild)
    card = read_score_card(store, "look")
    bodies = [PHOTOGRAPHS[0], b"dies", None, BROKEN, PHOTOGRAPHS[1]]
    rows = pa.table({"sha256": list("abcde"), PICTURE: pa.array(bodies, pa.large_binary())})
    score = IsolatedScore(store, card, RunConfig())
    made, whole = score(rows), opened(store, card, RunConfig())(rows)  # without isolation, b"dies" is just refused
    assert made.equals(whole)
    assert made[LEFT_OUT].to_pylist() == [False, True, False, True, False]
    assert score(rows.slice(0, 0)).equals(made.slice(0, 0))


def test_a_decoder_that_hangs_ends_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_dataset(tmp_path / "out", ROWS[:1])
    add(tmp_path / "out")
    ended, release = list[bool](), Event()
    monkeypatch.setattr(picture_rows, "DECODE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(ImageProcessor, "pixels", lambda self, body: release.wait(10))
    snapshot = Snapshot.of(store)
    pipeline = score_pipeline(snapshot.plan.job, snapshot.plan.mapping, "look", ())
    shards = snapshot.plan.shards.append_column("generation", pa.array([0]))
    hooks = WorkerHooks(on_hang=lambda: ended.append(True))
    with ExitStack() as opened_stages:
        stages = [opened_stages.enter_context(closing(spec.open(hooks))) for spec in pipeline.stages]
        with pytest.raises(TimeoutError):
            process_batch(next(planned_batches(shards)), list(zip(pipeline.stages, stages, strict=True)))
    release.set()
    assert ended == [True]
