"""Tests the demo's rows: equal seeds give equal rows, and kinds, ground truth and the comparison are correct."""

from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pairmill.jobs.demo.pairs import KIND, KINDS, MIN_SIDE, SHARD_ROWS, DemoRow, Web, compare, demo_pairs
from pairmill.jobs.demo.web import picture_body
from pairmill.schemas.status import Status

SEED = 7
WEB = Web(port=8080, dead_port=8081, hosts=tuple(f"127.1.0.{number}" for number in range(1, 41)))
ROWS = demo_pairs(SEED, 2400, WEB)
RELATIVES = ("wrong_caption", "wrong_color", "wrong_shape", "swapped_order")


def of_kind(kind: str) -> list[DemoRow]:
    return [row for row in ROWS if row.kind == kind]


def opened(row: DemoRow) -> Image.Image:
    return Image.open(BytesIO(picture_body(row, SEED)))


def test_rows_and_pictures_depend_only_on_seed_size_and_web() -> None:
    assert demo_pairs(SEED, 2400, WEB) == ROWS
    assert demo_pairs(SEED + 1, 2400, WEB) != ROWS
    assert picture_body(ROWS[5], SEED) == picture_body(ROWS[5], SEED)
    assert picture_body(ROWS[5], SEED) != picture_body(ROWS[5], SEED + 1)


@pytest.mark.parametrize("pairs", [200, 301, 2400, 5000])
def test_every_kind_occurs_and_the_number_of_rows_is_exact(pairs: int) -> None:
    rows = demo_pairs(SEED, pairs, WEB)
    assert [row.index for row in rows] == list(range(pairs))
    assert {row.kind for row in rows} == {kind.name for kind in KINDS}


def test_at_least_15_percent_of_rows_are_near_misses() -> None:
    near = sum(len(of_kind(kind)) for kind in ("wrong_color", "wrong_shape", "swapped_order"))
    assert near / len(ROWS) >= 0.15


def test_kinds_are_mixed_throughout_the_list() -> None:
    for kind in ("right_caption", "wrong_caption", "not_found"):
        halves = Counter(row.index < len(ROWS) // 2 for row in of_kind(kind))
        assert min(halves.values()) > 0.3 * halves.total()


def test_many_hosts_share_the_pictures() -> None:
    hosts = Counter(row.url.split("/")[2] for row in of_kind("right_caption"))
    assert set(hosts) == {f"{host}:{WEB.port}" for host in WEB.hosts}


@pytest.mark.parametrize("pairs", [200, 301, 2400])
def test_a_duplicate_repeats_an_earlier_correct_pair_of_its_shard(pairs: int) -> None:
    rows = demo_pairs(SEED, pairs, WEB)
    first_seen: dict[tuple[str, str | None], DemoRow] = {}
    for row in rows:
        original = first_seen.setdefault((row.url, row.caption), row)
        if row.kind == "duplicate":
            assert original.kind == "right_caption"
            assert original.index < row.index and original.index // SHARD_ROWS == row.index // SHARD_ROWS
        elif row.caption and row.url.startswith("http"):
            assert original is row


def test_wrong_captions_describe_another_scene() -> None:
    from pairmill.pipeline.encode.tiny.draw import WORDINGS

    def words(row: DemoRow) -> set[str]:
        scene = row.scene
        text = " ".join(thing.words for thing in scene.things)
        text += f" {scene.relation}" if scene.relation else ""
        return {wording.format(f"{text} on a {scene.background} background") for wording in WORDINGS}

    for kind in RELATIVES:
        assert all(row.caption not in words(row) for row in of_kind(kind))
        assert all(row.truth is (None if kind == "swapped_order" else False) for row in of_kind(kind))


def test_pictures_have_the_format_of_their_kind() -> None:
    for kind, expected in {"png": "PNG", "webp": "WEBP", "gif": "GIF", "cmyk": "JPEG", "right_caption": "JPEG"}.items():
        with opened(of_kind(kind)[0]) as picture:
            assert picture.format == expected
            assert (picture.mode == "CMYK") == (kind == "cmyk")


def test_a_rotated_picture_is_upright_after_applying_its_exif_tag() -> None:
    from PIL import ImageOps

    row = of_kind("exif_turned")[0]
    with opened(row) as picture, opened(DemoRow(row.index, "right_caption", row.url, row.caption, row.scene)) as plain:
        upright = ImageOps.exif_transpose(picture)
        assert upright.size == plain.size and picture.getexif()
        difference = np.abs(np.asarray(upright, np.float32) - np.asarray(plain, np.float32)).mean()
    assert difference < 4


def test_broken_pictures_do_not_load_and_small_pictures_are_small() -> None:
    for kind in ("corrupt", "half_a_file"):
        with pytest.raises(OSError):
            opened(of_kind(kind)[0]).load()
    with opened(of_kind("too_small")[0]) as picture:
        assert min(picture.size) < MIN_SIDE


def test_a_row_with_an_expected_status_is_not_a_mismatch() -> None:
    comparison = compare(ROWS, [outcome(row, row.expected[0]) for row in ROWS])
    assert comparison.mismatches == comparison.rows_missing == 0
    assert comparison.recall == 1.0
    wrong = sum(len(of_kind(kind)) for kind in RELATIVES if kind != "swapped_order")
    right = sum(row.truth is True for row in ROWS)
    assert comparison.precision == pytest.approx(right / (right + wrong))


def test_a_perfect_model_has_precision_and_recall_of_one() -> None:
    outcomes = [
        outcome(row, Status.LOW_SIMILARITY if KIND[row.kind].is_scored and not row.truth else row.expected[0])
        for row in ROWS
    ]
    comparison = compare(ROWS, outcomes)
    assert (comparison.precision, comparison.recall, comparison.mismatches) == (1.0, 1.0, 0)


def test_unexpected_and_missing_rows_are_counted() -> None:
    outcomes = [outcome(row, Status.TIMEOUT if row.kind == "gone" else row.expected[0]) for row in ROWS[:-1]]
    comparison = compare(ROWS, outcomes)
    gone = next(kind for kind in comparison.kinds if kind.kind.name == "gone")
    assert comparison.rows_missing == 1
    assert comparison.mismatches == gone.others["timeout"] == gone.rows


def test_without_kept_rows_there_is_no_precision() -> None:
    comparison = compare(ROWS, [outcome(row, row.expected[-1]) for row in ROWS])
    assert comparison.precision is None and comparison.recall == 0


def outcome(row: DemoRow, status: Status) -> dict[str, str]:
    return {"kind": row.kind, "expected": ",".join(row.expected), "status": status.value}
