"""Tests how untrusted text is cleaned for columns such as `status_detail`."""

from pairmill.pipeline.common.text import clean_text


def test_clean_text_makes_any_text_safe_for_a_column() -> None:
    assert clean_text("a\r\nb\x00c\udc80 d") == "a b c d"
    assert clean_text("x" * 1000) == "x" * 200
    assert clean_text("  \n") is None
    assert clean_text(None) is None
