"""Tests that text in pictures is found where it was drawn, and is painted over."""

import io
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from pairmill.pipeline.columns.score_card import State
from pairmill.pipeline.score import text, text_detector
from pairmill.pipeline.score.kind import LEFT_OUT, PICTURE, ScoreError
from pairmill.pipeline.score.masked import painted_over
from pairmill.pipeline.score.text import Text
from pairmill.pipeline.score.text_detector import (
    VERSION,
    Box,
    TextDetector,
    Weights,
    boxes_of,
    corners_of,
    detector,
    text_mask,
)
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ScoreConfig
from pairmill.schemas.job.text import TextScore

PAIRS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pairs"
PHOTOGRAPHS = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in sorted(PAIRS.rglob("*.jpg"))[5::75]]
WORDS = "Summer sale 50 %"


@pytest.fixture(scope="module")
def detect() -> TextDetector:
    return detector(Weights.find())


def with_text(picture: Image.Image, rows: int) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
    """(the picture with lines of text, a mask that is 1 inside the boxes of these lines, uint8 [height, width])."""
    picture = picture.copy()
    draw, mask = ImageDraw.Draw(picture), np.zeros(picture.size[::-1], np.uint8)
    font = ImageFont.load_default(size=max(12, picture.width // 14))
    for row in range(rows):
        at = (picture.width * 0.12, picture.height * (0.15 + 0.3 * row))
        draw.text(at, WORDS, font=font, fill="white", stroke_width=1, stroke_fill="black")
        left, top, right, bottom = (round(each) for each in draw.textbbox(at, WORDS, font=font))
        mask[top:bottom, left:right] = 1
    return picture, mask


def test_drawn_text_is_found_where_it_is(detect: TextDetector) -> None:
    for number, picture in enumerate(PHOTOGRAPHS):
        drawn, expected = with_text(picture, 1 + number % 2)
        before = text_mask(detect(np.asarray(picture)), *picture.size)
        found = text_mask(detect(np.asarray(drawn)), *picture.size)
        assert found[expected == 1].mean() > 0.9
        elsewhere = (found == 1) & (before == 0) & (cv2.dilate(expected, np.ones((41, 41), np.uint8)) == 0)
        assert elsewhere.mean() < 0.01


def test_most_photographs_have_no_text(detect: TextDetector) -> None:
    shares = [text_mask(detect(np.asarray(picture)), *picture.size).mean() for picture in PHOTOGRAPHS]
    assert np.mean(np.array(shares) == 0) >= 0.75  # some photographs show signs with text
    assert detect(np.full((300, 400, 3), 128, np.uint8)) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 2_000), (2_000, 3), (31, 33), (1_200, 900)])
def test_pictures_of_any_size_are_supported(detect: TextDetector, shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    assert text_mask(detect(pixels), shape[1], shape[0]).mean() == 0
    assert np.isfinite(detect.probabilities(pixels)).all()


@pytest.mark.parametrize(("width", "height", "angle"), [(120, 20, 0), (90, 30, 20), (20, 100, 90), (60, 16, -45)])
def test_a_region_grows_by_its_area_over_its_perimeter(width: int, height: int, angle: int) -> None:
    probabilities = np.zeros((320, 480), np.float32)
    corners = cv2.boxPoints(((240, 160), (width, height), angle))
    cv2.fillConvexPoly(probabilities, np.rint(corners).astype(np.int32), 0.9)
    (box,) = boxes_of(probabilities)
    grow = 2 * 1.6 * width * height / (2 * (width + height))
    sides = sorted(np.linalg.norm((box[at] - box[at - 1]) * (480, 320)) for at in (1, 2))
    assert sides == pytest.approx(sorted([width + grow, height + grow]), abs=4)
    assert (box.mean(axis=0) * (480, 320)) == pytest.approx([240, 160], abs=2)


def test_regions_that_cannot_be_a_line_of_text_are_ignored() -> None:
    faint, huge, speck = (np.zeros((320, 480), np.float32) for _ in range(3))
    faint[100:120, 50:250] = 0.5
    huge[50:300, 50:400] = 0.95
    speck[7, 9] = 1
    assert [list(boxes_of(each)) for each in (faint, huge, speck)] == [[], [], []]


def rectangle(left: float, top: float, right: float, bottom: float) -> Box:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def test_text_is_painted_over_in_the_color_around_it_and_nothing_else_changes(detect: TextDetector) -> None:
    plain = np.zeros((300, 400, 3), np.uint8)
    plain[:, :200], plain[:, 200:] = (200, 30, 60), (10, 90, 240)
    boxes = [rectangle(0.05, 0.1, 0.45, 0.3), rectangle(0.6, 0.5, 0.95, 0.7)]
    spoiled = plain.copy()
    spoiled[text_mask(boxes, 400, 300) == 1] = 255
    assert np.array_equal(painted_over(spoiled, boxes), plain)
    for picture in PHOTOGRAPHS[:4]:
        drawn, _ = with_text(picture, 2)
        boxes = detect(np.asarray(drawn))
        painted = painted_over(np.asarray(drawn), boxes)
        inside = text_mask(boxes, *picture.size) == 1
        assert np.array_equal(painted[~inside], np.asarray(drawn)[~inside])
        left, top = corners_of(boxes[0], *picture.size).min(axis=0) + 4
        assert len(np.unique(painted[inside], axis=0)) <= len(boxes)  # one color per box
        assert inside[top, left]
    whole = [rectangle(0, 0, 1, 1)]
    assert (painted_over(spoiled, whole) == 255).all()
    assert (painted_over(np.zeros((1, 1, 3), np.uint8), whole) == 255).all()


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    picture.save(file := io.BytesIO(), form)
    return file.getvalue()


def test_the_columns_are_the_share_the_count_and_the_boxes_of_each_picture(
    detect: TextDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_BLOCK_ROWS", 2)
    plain, drawn = PHOTOGRAPHS[0], with_text(PHOTOGRAPHS[0], 2)[0]
    bodies = [encoded(drawn), None, encoded(plain), b"not a picture", encoded(drawn)]
    table = pa.table({"sha256": list("abcda"), PICTURE: pa.array(bodies, pa.large_binary())})
    kind = Text("words", ScoreConfig(text=TextScore()))
    values = {"version": VERSION, "detector_sha256": Weights.find().sha256, "max_pixels": 10_000_000}
    score = kind.open(State(values=values), RunConfig(encode_threads=2))
    made = score(table)
    assert made.schema.names == ["words_share", "words_count", "words_boxes", LEFT_OUT]
    boxes = detect(np.asarray(drawn))
    first = {
        "words_share": pytest.approx(text_mask(boxes, *drawn.size).mean()),
        "words_count": len(boxes),
        "words_boxes": [pytest.approx(box.ravel().tolist()) for box in boxes],
        LEFT_OUT: False,
    }
    none = {"words_share": None, "words_count": None, "words_boxes": None}
    plain_boxes = detect(np.asarray(plain))
    rows = made.to_pylist()
    assert [rows[0], rows[4]] == [first, first]
    assert rows[1] == none | {LEFT_OUT: False}
    assert rows[3] == none | {LEFT_OUT: True}
    assert rows[2]["words_count"] == len(plain_boxes)
    assert score(table.slice(0, 0)).schema == made.schema
    with pytest.raises(ScoreError, match="a different text detector"):
        kind.open(State(values=values | {"detector_sha256": "0" * 64}), RunConfig())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_detector, "find_spec", lambda name: None)
    with pytest.raises(ScoreError, match=r"pip install 'pairmill\[text\]'"):
        Weights.find()
