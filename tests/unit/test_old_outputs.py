"""Tests that outputs planned by earlier versions can be resumed: records are read, and fingerprints stay the same."""

import pyarrow as pa
import pytest

from pairmill.jobs.job_file import fingerprint, load_job
from pairmill.pipeline.source.mapping import (
    ON_THE_WEB,
    ColumnMapping,
    ColumnPictures,
    IndexedPictures,
    NoPictures,
    PairsPictures,
    PictureSource,
)
from pairmill.schemas.record import JobRecord

EMBED = {"source.kind": "corpus", "source.paths": ["/c"], "output": "/o", "models": [{"name": "tiny"}]}
BUILD = {"source.paths": ["/u.parquet"], "output": "/o", "models": [{"name": "tiny"}]}
RULES = {"rules.min_similarity": 0.25, "rules.caption_min_words": 2}


@pytest.mark.parametrize(
    ("fields", "before"),
    [(EMBED, "c3688c7d8d19437695939fb19facc43d"), (BUILD | RULES, "f8c41d1f08a326ab23a5582e6ae88f12")],
)
def test_the_fingerprint_of_a_job_is_what_version_0_1_0_computed(fields: dict[str, object], before: str) -> None:
    assert fingerprint(load_job(None, fields), ["w"]) == before


def test_a_record_that_says_held_is_a_corpus_and_unknown_top_level_fields_are_ignored() -> None:
    record = JobRecord(load_job(None, EMBED), "f" * 32, {"pairmill": "0.1.0"})
    values = record.to_json()
    source = {name: value for name, value in dict(values["source"]).items() if name != "kind"}  # type: ignore[call-overload]
    old = {**values, "source": {**source, "held": True}, "dropped_since": 1}
    assert JobRecord.from_json(old) == record
    assert JobRecord.from_json(old).job.source.is_corpus


@pytest.mark.parametrize(
    ("written", "pictures"),
    [
        (None, ON_THE_WEB),
        ("index", IndexedPictures()),
        ("pairs", PairsPictures()),
        ("column:a:b", ColumnPictures("a:b")),
        ("none", NoPictures()),
    ],
)
def test_a_plan_records_the_picture_source_as_it_always_did(written: str | None, pictures: PictureSource) -> None:
    mapping = ColumnMapping("url", "caption", None, None, None, pa.schema([]), (), pictures)
    values = mapping.to_json()
    assert values["pictures"] == written
    assert ColumnMapping.from_json(values) == mapping
