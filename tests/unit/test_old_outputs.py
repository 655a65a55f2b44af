"""Tests that outputs planned by earlier versions can be resumed: records are readable, and fingerprints unchanged."""

from pathlib import Path

import pyarrow as pa
import pytest

from pairmill.jobs.build import prepare
from pairmill.jobs.check import check
from pairmill.jobs.job_file import fingerprint, load_job
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.source.mapping import (
    ON_THE_WEB,
    ColumnMapping,
    ColumnPictures,
    IndexedPictures,
    NoPictures,
    PairsPictures,
    PictureSource,
)
from pairmill.pipeline.source.plan import make_plan
from pairmill.schemas.record import JobRecord

EMBED = {"source.kind": "corpus", "source.paths": ["/c"], "output": "/o", "models": [{"name": "tiny"}]}
BUILD = {"source.paths": ["/u.parquet"], "output": "/o", "models": [{"name": "tiny"}]}
RULES = {"rules.min_similarity": 0.25, "rules.caption_min_words": 2}


@pytest.mark.parametrize(
    ("fields", "before"),
    [(EMBED, "c3688c7d8d19437695939fb19facc43d"), (BUILD | RULES, "f8c41d1f08a326ab23a5582e6ae88f12")],
)
def test_the_fingerprint_of_a_job_is_the_same_as_in_version_0_1_0(fields: dict[str, object], before: str) -> None:
    assert fingerprint(load_job(None, fields), ["w"]) == before


def test_an_old_record_whose_source_is_held_loads_as_a_corpus_job_and_unknown_fields_are_ignored() -> None:
    record = JobRecord(load_job(None, EMBED), "f" * 32, {"pairmill": "0.1.0"})
    values = record.to_json()
    source = {name: value for name, value in dict(values["source"]).items() if name != "kind"}  # type: ignore[call-overload]
    old = {**values, "source": {**source, "held": True}, "dropped_since": 1}
    assert JobRecord.from_json(old) == record
    assert JobRecord.from_json(old).job.source.is_corpus


@pytest.mark.parametrize(("before", "now"), [(False, "always"), (True, "auto")])
def test_an_output_started_with_skip_reencode_is_resumed_with_the_same_behavior(before: bool, now: str) -> None:
    record = JobRecord(load_job(None, BUILD), "f" * 32)
    values = record.to_json()
    since = ("reencode", "chroma", "md5")
    images = {name: value for name, value in dict(values["images"]).items() if name not in since}  # type: ignore[call-overload]
    old = JobRecord.from_json({**values, "images": {**images, "skip_reencode": before}})
    assert old.job.images == record.job.images.model_copy(update={"reencode": now, "md5": True})


def test_a_resumed_build_takes_its_picture_settings_from_the_record_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("url,caption\nhttp://a.invalid/1.jpg,a picture\n")
    job = load_job(None, {"source.paths": [str(tmp_path / "in.csv")], "output": str(tmp_path / "out")})
    _, fingerprint = check(job)
    old = job.model_copy(update={"images": job.images.model_copy(update={"reencode": "always"})})
    make_plan(JobRecord(old, fingerprint), Store(job.output))
    pipeline, _ = prepare(job)
    assert pipeline.job.images.reencode == "always"


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
def test_a_plan_records_the_picture_source_as_earlier_versions_did(
    written: str | None, pictures: PictureSource
) -> None:
    mapping = ColumnMapping("url", "caption", None, None, None, pa.schema([]), (), pictures)
    values = mapping.to_json()
    assert values["pictures"] == written
    assert ColumnMapping.from_json(values) == mapping
