"""Recomputes some picture scores that a build or embed job computed itself (`scores` in its job)."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.check.report import VerifyReport
from pairmill.pipeline.check.rescore_columns import differences, sample_of, spread
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.chunks import ShardFiles
from pairmill.pipeline.image.processor import ImageProcessor
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.kind import PICTURE
from pairmill.pipeline.score.picture_rows import threads_of
from pairmill.pipeline.score.pictures import OpenPictures
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.job.run import RunConfig

_ENCODED_AGAIN = 0.02
"""Maximum change in the mean brightness of a picture, on a scale of 0 to 1, when a build encodes it."""


def rescore_built(
    snapshot: Snapshot, num_rows: int, report: VerifyReport, on_step: OnStep = ignore_step
) -> Iterator[str]:
    """Measure the pictures of `num_rows` rows, spread evenly over the shards, a second time. Yields problems.

    For a corpus, all measures must match up to rounding. A build may have encoded pictures after it measured
    them, so only their mean brightness is compared.
    """
    if not snapshot.plan.job.scores:
        return
    shards = snapshot.chunk.shards
    chosen = spread(num_rows, len(shards))
    for position in chosen:
        on_step("measuring pictures", position, len(shards))
        try:
            yield from _rescore_shard(snapshot, shards[position], -(-num_rows // len(chosen)), report)
        except PairmillError as error:
            yield f"shard {shards[position].shard:09d}: {error}"


def _rescore_shard(snapshot: Snapshot, shard: ShardFiles, num_rows: int, report: VerifyReport) -> Iterator[str]:
    job = snapshot.plan.job
    rows = sample_of(snapshot, shard, ["uid", "sha256", *job.score_columns.names], num_rows, with_pictures=True)
    rows = rows.filter(rows[PICTURE].is_valid())
    if not rows.num_rows:
        return
    report.scores_recomputed += rows.num_rows
    for name, settings in job.picture_scores.items():
        made = OpenPictures(name, settings, ImageProcessor(job.images), threads_of(RunConfig()))(rows)
        for column in settings.columns(name).names:
            if job.source.is_corpus:
                wrong = differences(rows[column], made[column])
            elif column == f"{name}_exposure":
                wrong = _far(rows[column], made[column])
            else:
                continue
            if wrong:
                uids = ", ".join(rows["uid"][row].as_py() for row in wrong[:3])
                count = counted(len(wrong), "row")
                yield f"shard {shard.shard:09d}: {column} of {count} does not match the picture: {uids}"


def _far(stored: pa.ChunkedArray, made: pa.ChunkedArray) -> list[int]:
    gaps = pc.abs(pc.subtract(stored, made)).fill_null(np.inf).to_numpy()
    return [int(row) for row in np.flatnonzero(gaps > _ENCODED_AGAIN)]
