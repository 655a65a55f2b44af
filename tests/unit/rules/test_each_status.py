"""Tests each rule with a row that it drops, the resulting `status_detail`, and a row that it keeps."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.known.prepare import prepared
from pairmill.pipeline.rules import SourceRules, apply_rules, rules_at
from pairmill.pipeline.source.mapping import ColumnMapping
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.known import KnownRows
from pairmill.schemas.status import Status, Step

S = Status
ENGLISH = "a small brown dog is sleeping on the green sofa"
GERMAN = "ein kleiner brauner Hund schläft auf dem grünen Sofa"

# status, settings, dropped row, detail, kept row
CASES: list[tuple[Status, dict[str, object], dict[str, object], str | None, dict[str, object]]] = [
    (S.KNOWN_UID, {"output": "known"}, {"uid": "f" * 32}, None, {}),
    (S.KNOWN_URL, {"output": "known"}, {"url": " http://a.example/1 "}, None, {"url": None}),
    (S.KNOWN_PICTURE, {"output": "known"}, {"sha256": "ab" * 32}, "sha256", {"sha256": None}),
    (S.KNOWN_PICTURE, {"output": "known"}, {"md5": "cd" * 16}, "md5", {"md5": None}),
    (S.KNOWN_PICTURE, {"output": "known"}, {"phash": "00000000000000ff"}, "phash", {"phash": "0000000000000fff"}),
    (S.CAPTION_MISSING, {}, {"caption_clean": None}, None, {}),
    (S.CAPTION_MISSING, {}, {"caption_clean": ""}, None, {"caption_clean": "x"}),
    (S.CAPTION_TOO_SHORT, {"caption_min_chars": 5}, {"caption_clean": "äöüß"}, "4", {"caption_clean": "äöüßx"}),
    (
        S.CAPTION_TOO_SHORT,
        {"caption_min_chars": 1, "require_caption": False},
        {"caption_clean": None},
        "0",
        {"caption_clean": "x"},
    ),
    (S.CAPTION_TOO_LONG, {"caption_max_chars": 3}, {"caption_clean": "abcd"}, "4", {"caption_clean": "äöü"}),
    (
        S.CAPTION_TOO_LONG,
        {"caption_max_chars": 3, "require_caption": False},
        {"caption_clean": "abcd"},
        "4",
        {"caption_clean": None},
    ),
    (
        S.CAPTION_TOO_FEW_WORDS,
        {"caption_min_words": 3},
        {"caption_clean": "two words"},
        "2",
        {"caption_clean": "a b c"},
    ),
    (S.CAPTION_TOO_MANY_WORDS, {"caption_max_words": 2}, {"caption_clean": "a b c"}, "3", {"caption_clean": "a b"}),
    (S.CAPTION_IS_FILE_NAME, {"caption_drop_file_names": True}, {"caption_clean": "IMG_1234.JPG"}, None, {}),
    (
        S.CAPTION_IS_FILE_NAME,
        {"caption_drop_file_names": True, "require_caption": False},
        {"caption_clean": "DSC00012"},
        None,
        {"caption_clean": None},
    ),
    (S.CAPTION_IS_DATE, {"caption_drop_dates": True}, {"caption_clean": "12 March 2019"}, None, {}),
    (S.CAPTION_IS_HASH, {"caption_drop_hashes": True}, {"caption_clean": "d41d8cd98f00b204"}, None, {}),
    (S.CAPTION_IS_URL, {"caption_drop_urls": True}, {"caption_clean": "https://a.example/b.html"}, None, {}),
    (
        S.CAPTION_IS_BOILERPLATE,
        {"caption_boilerplate": ["default"]},
        {"caption_clean": "[Click to enlarge!]"},
        None,
        {"caption_clean": "click to enlarge the dog"},
    ),
    (
        S.CAPTION_IS_BOILERPLATE,
        {"caption_boilerplate": ["House Ad"]},
        {"caption_clean": "house ad"},
        None,
        {"caption_clean": "image"},
    ),
    (
        S.CAPTION_BLOCKED_TERM,
        {"caption_blocked_terms": ["stock photo"]},
        {"caption_clean": "best Stock Photo, ever"},
        "Stock Photo",
        {"caption_clean": "a stock photograph"},
    ),
    (
        S.CAPTION_LANGUAGE,
        {"caption_languages": ["EN"], "require_caption": False},
        {"caption_clean": ""},
        None,
        {"caption_clean": ENGLISH},
    ),
    (
        S.LICENSE_NOT_ALLOWED,
        {"license_allow": ["cc-by-4.0"]},
        {"license": "All rights reserved"},
        "All rights reserved",
        {"license": " CC-BY-4.0 "},
    ),
    (S.LICENSE_NOT_ALLOWED, {"license_allow": ["cc-by-4.0"]}, {"license": None}, None, {}),
    (S.URL_MISSING, {}, {"url": None}, None, {}),
    (S.URL_MISSING, {}, {"url": " "}, None, {}),
    (S.URL_INVALID, {}, {"url": "/images/a.jpg"}, "no scheme", {}),
    (S.URL_SCHEME, {}, {"url": "ftp://example.com/a.jpg"}, "ftp", {"url": "HTTP://example.com/a.jpg"}),
    (S.URL_SCHEME, {"url_schemes": ["https"]}, {"url": "http://example.com/a.jpg"}, "http", {}),
    (
        S.URL_HOST_BLOCKED,
        {"url_block_hosts": ["evil.example"]},
        {"url": "http://img.EVIL.example/"},
        "evil.example",
        {"url": "http://notevil.example/"},
    ),
    (
        S.URL_HOST_NOT_ALLOWED,
        {"url_allow_hosts": ["good.example"]},
        {"url": "http://good.example.evil.example/"},
        "good.example.evil.example",
        {"url": "http://img.good.example/"},
    ),
    (S.URL_BLOCKLISTED, {"url_blocklist": "urls"}, {"url": "http://a.example/1"}, None, {"url": "http://a.example/2"}),
    (S.MD5_BLOCKLISTED, {"md5_blocklist": "md5"}, {"md5": "ab" * 16}, "ab" * 16, {"md5": "cd" * 16}),
    (S.SHA256_BLOCKLISTED, {"sha256_blocklist": "sha256"}, {"sha256": "00" * 32}, "00" * 32, {"sha256": "01" * 32}),
    (S.IMAGE_TOO_SMALL, {"image_min_side": 200}, {"original_height": 199}, "640x199", {"original_height": 200}),
    (S.IMAGE_TOO_SMALL, {"image_min_side": 200}, {"original_height": None}, None, {}),
    (S.IMAGE_ASPECT, {"image_max_aspect": 3}, {"original_height": 213}, "640x213", {"original_width": 1440}),
    (S.IMAGE_AREA, {"image_min_area": 640 * 480}, {"original_width": 639}, "639x480", {}),
    (
        S.IMAGE_AREA,
        {"image_max_area": 640 * 480},
        {"original_width": 70_000, "original_height": 70_000},
        "70000x70000",
        {},
    ),
    (S.IMAGE_BYTES, {"image_min_bytes": 5000}, {"original_bytes": 4999}, "4999", {"original_bytes": 5000}),
    (S.IMAGE_BYTES, {"image_max_bytes": 5000}, {"original_bytes": 5001}, "5001", {"original_bytes": 5000}),
    (S.IMAGE_ONE_COLOR, {"image_drop_one_color": True}, {"one_color": True}, None, {"one_color": False}),
    (S.LOW_SIMILARITY, {"min_similarity": 0.28}, {"similarity_tiny": 0.2134}, "tiny 0.213", {"similarity_tiny": 0.28}),
    (S.LOW_SIMILARITY, {"min_similarity": 0.28}, {"similarity_big": 0.1}, "big 0.1", {"similarity_big": 0.3}),
    (S.LOW_SIMILARITY, {"min_similarity": 0.28}, {"similarity_tiny": None}, "tiny no score", {}),
    (
        S.LOW_SIMILARITY,
        {"min_similarity": {"big": 0.7}},
        {"similarity_big": 0.69},
        "big 0.69",
        {"similarity_tiny": None, "similarity_big": 0.7},
    ),
    (S.LOW_SIMILARITY, {"min_similarity": -1.0}, {"similarity_tiny": float("nan")}, "tiny nan", {}),
]


@pytest.fixture(scope="module")
def blocklists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocklists")
    (folder / "md5").write_text("# comment\n\n" + "AB" * 16 + "\n")
    (folder / "sha256").write_text("00" * 32 + "\n")
    (folder / "urls").write_text(hashlib.sha256(b"http://a.example/1").hexdigest() + "\n")
    table = {"uid": ["f" * 32], "url": ["http://a.example/1"], "sha256": ["ab" * 32], "md5": ["cd" * 16]}
    pq.write_table(pa.table({**table, "phash": ["000000000000000f"]}), folder / "known.parquet")
    known = {"path": str(folder / "known.parquet"), "by": [*table, "phash"], "distance": 4}
    prepared(Store(str(folder / "known")), [KnownRows.model_validate(known)])
    return folder


@pytest.mark.parametrize(("status", "settings", "dropped", "detail", "kept"), CASES)
def test_a_rule_drops_and_keeps_the_right_rows(
    status: Status,
    settings: dict[str, object],
    dropped: dict[str, object],
    detail: str | None,
    kept: dict[str, object],
    blocklists: Path,
    in_flight: Any,
) -> None:
    paths = {key: str(blocklists / value) for key, value in settings.items() if key.endswith(("_blocklist", "output"))}
    rules = SourceRules.model_validate({"license_column": "license", **settings, **paths})
    table = apply_rules(in_flight([dropped, kept]), status.step, rules)
    assert table["status"].to_pylist() == [status, "ok"]
    assert table["status_detail"].to_pylist() == [detail, None]


def test_every_rule_has_a_case() -> None:
    registered = {status for step in Step for status, _ in rules_at(step)}
    assert registered == {case[0] for case in CASES}


def test_every_status_of_the_caption_and_url_steps_has_a_rule_unless_the_read_stage_sets_it() -> None:
    registered = {status for step in Step for status, _ in rules_at(step)}
    without = {status for status in Status if status.step in (Step.CAPTION, Step.URL)} - registered
    assert without == {Status.CAPTION_INVALID}


def test_rules_that_are_off_drop_nothing(in_flight: Any) -> None:
    table = in_flight([{"caption_clean": "IMG_1234.JPG", "original_width": 1, "similarity_tiny": None}])
    for step in Step:
        assert apply_rules(table, step, SourceRules())["status"].to_pylist() == ["ok"]


def test_a_source_without_captions_does_not_report_missing_captions(in_flight: Any) -> None:
    rows = [{"caption_clean": None}]
    job = BuildJob.model_validate({"source": {"paths": ["-"]}, "output": "out"})
    for caption_column, status in ((None, "ok"), ("text", "caption_missing")):
        mapping = ColumnMapping("url", caption_column, None, None, None, pa.schema([]), ())
        table = apply_rules(in_flight(rows), Step.CAPTION, SourceRules.of(job, mapping))
        assert table["status"].to_pylist() == [status]


def test_a_license_rule_without_its_column_is_an_error(in_flight: Any) -> None:
    with pytest.raises(ValueError, match=r"source\.license_column"):
        apply_rules(in_flight([{}]), Step.CAPTION, SourceRules(license_allow=["cc0"]))


def test_a_threshold_for_a_model_that_did_not_run_is_an_error(in_flight: Any) -> None:
    with pytest.raises(ValueError, match="huge"):
        apply_rules(in_flight([{}]), Step.SCORE, SourceRules(min_similarity={"huge": 0.1}))
    unscored = in_flight([{}]).drop_columns(["similarity_tiny", "similarity_big"])
    with pytest.raises(ValueError, match="needs a model"):
        apply_rules(unscored, Step.SCORE, SourceRules(min_similarity=0.1))


def test_the_detail_of_a_language_rule_names_language_and_score(in_flight: Any) -> None:
    rows = [{"caption_clean": text} for text in (ENGLISH, GERMAN, None)]
    rules = SourceRules(caption_languages=["en"], require_caption=False)
    table = apply_rules(in_flight(rows), Step.CAPTION, rules)
    assert table["status"].to_pylist() == ["ok", "caption_language", "caption_language"]
    assert [detail and detail.partition(" ")[0] for detail in table["status_detail"].to_pylist()] == [None, "de", None]
    sure = SourceRules(caption_languages=["en", "de"], caption_min_language_score=1.0, require_caption=False)
    assert set(apply_rules(in_flight(rows), Step.CAPTION, sure)["status"].to_pylist()) == {"caption_language"}
