"""Tests what all HTML pages share: the handling of untrusted text, and the templates."""

import pytest
from jinja2 import UndefinedError

from pairmill.pipeline.pages.templates import environment
from pairmill.pipeline.pages.visible_text import visible_text


def test_long_text_is_truncated_and_characters_that_hide_or_reorder_text_are_replaced() -> None:
    assert visible_text("a" * 500, 10) == "a" * 9 + "…"
    assert visible_text("pay\u202egnp.exe\u200b\x1b[31m\U000e0041", 99) == "pay\ufffdgnp.exe\ufffd\ufffd[31m\ufffd"
    assert visible_text("naïve 猫 🐈", 99) == "naïve 猫 🐈"


def test_templates_escape_whatever_they_print_and_refuse_a_missing_variable() -> None:
    made = environment().from_string('<p title="{{ x|visible(20) }}">{{ x }}</p>{{ 12345|count }} {{ 0.1234|share }}')
    assert made.render(x='"><script>') == '<p title="&#34;&gt;&lt;script&gt;">&#34;&gt;&lt;script&gt;</p>12,345 12.3%'
    with pytest.raises(UndefinedError):
        made.render()
