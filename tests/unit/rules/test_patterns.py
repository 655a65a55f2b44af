"""Tests which captions count as a file name, a date, a hash, a URL or boilerplate, and which are real captions."""

import time
from typing import Any

import pytest

from pairmill.pipeline.rules import SourceRules, apply_rules
from pairmill.schemas.status import Step

RULES = SourceRules(
    require_caption=False,
    caption_drop_file_names=True,
    caption_drop_dates=True,
    caption_drop_hashes=True,
    caption_drop_urls=True,
    caption_boilerplate=["default"],
)

DROPPED = {
    "caption_is_file_name": [
        "IMG_1234.JPG", "img_1234", "_MG_1234", "DSC00012", "DSC_0012", "DSCN1234.jpg", "P1010001",
        "100_1234", "photo.png", "my cat in the garden.jpeg", "photo (1).png", "photo.png (2)",
        "a.b-c_d.webp", "фото.jpg", "IMG-20200101-WA0001", "PXL_20210101_123456789", "20200101_123456",
        "screenshot_2020-01-01", "Screenshot 2020-01-01 at 10.11.12", "Screen Shot 2016-05-06 at 3.04.05 PM",
        "Screenshot_20200101-123456", "Screenshot_2020-01-01-10-11-12_com.android.chrome",
        "WhatsApp Image 2020-01-01 at 10.11.12", "image001", "image-3-1024x768", "untitled-1", "Photo 12",
        "image (3)", "Bildschirmfoto 2020-01-01 um 10.11.12", "sam_1234",
    ],
    "caption_is_date": [
        "2020-01-31", "31.01.2020", "1/2/20", "2020/01/31 12:30", "2020-01-31T12:30:00Z", "January 1, 2020",
        "1 January 2020", "1st of May 2020", "Mar 10", "Jan 2020", "2020", "1999-2003", "12:30", "10:30 PM",
        "12 mai 2019", "3. Oktober 1990", "Sunday, June 5, 2016", "5 de mayo de 2010", "2020年1月31日",
        "2020년 1월 31일", "Dec 24th, 2010 at 10:15 am",
    ],
    "caption_is_hash": [
        "d41d8cd98f00b204e9800998ecf8427e", "D41D8CD98F00B204", "0x1234567890abcdef", "1234567890123456",
        "123e4567-e89b-12d3-a456-426614174000", "{123E4567-E89B-12D3-A456-426614174000}",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "dGhpcyBpcyBhIHRlc3Qgb2YgYmFzZTY0", "aGVsbG8gd29ybGQgaGVsbG8=",
    ],
    "caption_is_url": [
        "https://example.com/a", "http://example.com", "www.example.com", "example.com",
        "img.example.co.uk/a/b?c=d", "data:image/png;base64,AAAA", "//cdn.example.com/x",
        "mailto:a@b.example", "bücher.de", "example.com:8080/x",
    ],
    "caption_is_boilerplate": [
        "image", "Image:", "PHOTO", "thumbnail", "logo", "No image available.", "click to enlarge",
        "placeholder", "untitled", "Loading...", "[...]  placeholder", "Kein Bild vorhanden", "нет фото",
        "写真", "sin imagen", "pas d'image", "“Untitled”", "n/a",
    ],
}  # fmt: skip

KEPT = [
    None, "a dog", "photo of IMG_1234.JPG on a wall", "image of a dog", "The .png format explained",
    "MG 1100 sports car", "GP 2019 in Monaco", "Photograph by Ansel Adams", "the year 2020 in review",
    "May the force be with you", "3.45", "version 1.2.3-beta", "10 dogs", "12:30 to London", "January sale",
    "March of the penguins", "Spring-Summer-2020-Collection", "Supercalifragilisticexpialidocious",
    "Donaudampfschifffahrtsgesellschaft", "deadbeef", "facade", "St. Petersburg",
    "read https://example.com/a for more", "hello.world", "Dr.Who", "the logo of a bank",
    "no image is better than this", "Mr. and Mrs. Smith", "e=mc2", "B-52", "iPhone12ProMaxSilicone",
    "page turner", "?!", "a/b", "1080p", "sam smith", "東京タワー",
]  # fmt: skip


@pytest.mark.parametrize(("status", "caption"), [(status, text) for status, texts in DROPPED.items() for text in texts])
def test_captions_that_name_or_number_a_picture_are_dropped(in_flight: Any, status: str, caption: str) -> None:
    assert apply_rules(in_flight([{"caption_clean": caption}]), Step.CAPTION, RULES)["status"].to_pylist() == [status]


@pytest.mark.parametrize("caption", KEPT)
def test_captions_that_describe_the_picture_are_kept(in_flight: Any, caption: str | None) -> None:
    assert apply_rules(in_flight([{"caption_clean": caption}]), Step.CAPTION, RULES)["status"].to_pylist() == ["ok"]


@pytest.mark.parametrize(
    ("term", "caption", "found"),
    [
        ("nude", "A NUDE figure", "NUDE"),
        ("nude", "denuded hills", None),
        ("nude", "nudes", None),
        ("nude", "nude", "nude"),
        ("nude", "semi-nude_art", None),
        ("café", "das Café Central", "Café"),
        ("cafe", "das Café Central", None),
        ("ÄPFEL", "rote äpfel", "äpfel"),
        ("c++", "learn c++ now", "c++"),
        ("c++", "learn c now", None),
        ("a.b", "axb", None),
        ("two  words", "Two words", "Two words"),
        ("привет", "Скажи ПРИВЕТ миру", "ПРИВЕТ"),
        ("東京", "私は東京タワーへ行く", "東京"),
        ("42", "route 42a", None),
    ],
)
def test_blocked_terms_match_whole_words_ignoring_case(
    in_flight: Any, term: str, caption: str, found: str | None
) -> None:
    rules = SourceRules(caption_blocked_terms=["unrelated", term, "other"])
    table = apply_rules(in_flight([{"caption_clean": caption}]), Step.CAPTION, rules)
    assert table["status"].to_pylist() == ["caption_blocked_term" if found else "ok"]
    assert table["status_detail"].to_pylist() == [found]


def test_thousands_of_long_terms_in_any_script_compile(in_flight: Any) -> None:
    terms = [f"запрещённое выражение номер {number}" for number in range(3000)]
    rules = SourceRules(caption_blocked_terms=terms)
    table = in_flight([{"caption_clean": "Запрещённое выражение НОМЕР 2999!"}, {"caption_clean": "номер 2999"}])
    assert apply_rules(table, Step.CAPTION, rules)["status"].to_pylist() == ["caption_blocked_term", "ok"]


@pytest.mark.parametrize("unit", ["a", "a.", "1-", "1 ", "a b ", "<", "0", "IMG_", "a1", "2020-", "http://", "é", "-"])
def test_hostile_captions_take_linear_time(in_flight: Any, unit: str) -> None:
    caption = unit * (1_000_000 // len(unit)) + "!x"
    rules = RULES.model_copy(update={"caption_blocked_terms": ["a b", "1-"], "caption_languages": ["en"]})
    started = time.perf_counter()
    apply_rules(in_flight([{"caption_clean": caption}]), Step.CAPTION, rules)
    assert time.perf_counter() - started < 40  # it takes about 0.1 s; quadratic time would take hours
