"""Tests that a mistake in `where` is shown at its position, with the form that was probably meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairmill.pipeline.select.expression_errors import SHOWN_CHARS, ExpressionError, misspelt
from pairmill.pipeline.select.expressions import Expression
from tests.unit.select.test_expressions import TABLE


def refusal(text: str) -> tuple[str, str]:
    """(message, part of the text above the carets)."""
    with pytest.raises(ExpressionError) as error:
        Expression(text).check(TABLE.schema, "boolean")
    message, shown, carets = str(error.value).split("\n")
    start = len(carets) - len(carets.lstrip())
    return message, shown.ljust(len(carets))[start : len(carets)]


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("similarity => 0.3", "use '>=' instead of '=>'", "=>"),
        ("similarity =< 0.3", "use '<=' instead of '=<'", "=<"),
        ("similarity > = 0.3", "use '>=' instead of '> ='", "> ="),
        ("width > 1 && similarity > 0.3", "use 'and' instead of '&&'", "&&"),
        ("width > 1 || similarity > 0.3", "use 'or' instead of '||'", "||"),
        ("width > 1 & similarity > 0.3", "use 'and' instead of '&'", "&"),
        ("similarity = 0.3", "use '==' instead of '='", "="),
        ("status = 'a => b'", "use '==' instead of '='", "="),
        ("status <> 'ok'", "use '!=' instead of '<>'", "<>"),
        ("status === 'ok'", "use '==' instead of '==='", "==="),
        ("width > 1 and !one_color", "use 'not' instead of '!'", "!"),
        ("width > 1 AND one_color", "use 'and' instead of 'AND'", "AND"),
        ("caption like 'a%'", "use \"contains(column, 'text')\" instead of 'like'", "like"),
        ("width between 1 and 3", "use '1 <= column <= 2' instead of 'between'", "between"),
        ("caption is null", "there is no column 'null'; for null, write `is None` or `is not None`", "null"),
        ("one_color == true", "there is no column 'true'; write 'True'", "true"),
        ("caption == None", "to compare with null, write `is None` or `is not None`", "None"),
        ("similarty > 0.3", "there is no column 'similarty'; did you mean 'similarity'?", "similarty"),
        ("width > 'wide'", "width is a number, and 'wide' is text", "'wide'"),
        ("width > '300'", "width is a number, and '300' is text; without quotation marks it is a number: 300", "'300'"),
        ("caption == 3", "caption is text, and 3 is a number; as text it is '3'", "3"),
        ("width in [1, 'a']", "width is a number, and 'a' is text", "'a'"),
        ("fetched_at > 3", "fetched_at is a time, and 3 is a number", "3"),
        (
            "fetched_at > 'May'",
            "fetched_at is a time, but 'May' is not a time; write '2024-01-31' or '2024-01-31 12:30'",
            "fetched_at > 'May'",
        ),
        (
            "clip(fetched_at, '300000-01-01', '2024-01-01') is None",
            "fetched_at is a time, but '300000-01-01' is not a time; ",
            "clip(fetched_at, '300000-01-01', '2024-01-01')",
        ),
        ("fetched_at > caption", "fetched_at is a time, and caption is text", "caption"),
        (
            "greatest(fetched_at, caption) > fetched_at",
            "'greatest(fetched_at, caption)' cannot be computed: fetched_at is a time, and caption is text",
            "greatest(fetched_at, caption)",
        ),
        (
            "fetched_at - fetched_at > 'May'",
            "'May' is not a duration; write it as '7 days' or '12 hours'",
            "fetched_at - fetched_at > 'May'",
        ),
        (
            "fetched_at - fetched_at > 7",
            "fetched_at - fetched_at is a duration, and 7 is a number; write durations as '7 days' or '12 hours'",
            "7",
        ),
        (
            "status == 'ü' and caption + 1 > 2",
            "'caption + 1' cannot be computed: caption is text, and 1 is a number",
            "caption + 1",
        ),
        ("width > 1 and length(width) > 3", "'length(width)' cannot be computed: width is a number", "length(width)"),
        ("width > 1 and (height > 2", "cannot be parsed: '(' was never closed", "("),
        ("width >", "cannot be parsed: invalid syntax", " "),
        ("width > 1 and\n\theight = 2", "use '==' instead of '='", "="),
        ("  width ** 2 > 1", "'width ** 2' is not supported", "width ** 2"),
    ],
)
def test_the_position_and_the_right_form_are_shown(text: str, message: str, place: str) -> None:
    said, pointed = refusal(text)
    assert said.startswith(message)
    assert pointed == place


def test_only_the_part_of_a_long_expression_around_the_error_is_shown() -> None:
    many = " and ".join(["width > 1"] * 100)
    message, place = refusal(f"{many} and similarity > 'high' and {many}")
    assert (message, place) == ("similarity is a number, and 'high' is text", "'high'")
    with pytest.raises(ExpressionError) as error:
        Expression(f"{many} && {many}").check(TABLE.schema, "boolean")
    assert max(map(len, str(error.value).splitlines())) <= SHOWN_CHARS + 10


@given(text=st.text(alphabet="ab1 =<>!&|'\"()+.ANDnullü\n\t", max_size=120))
def test_any_text_is_an_expression_or_is_refused_with_a_position_inside_it(text: str) -> None:
    try:
        Expression(text).check(TABLE.schema, "boolean")
    except ExpressionError as error:
        lines = str(error).split("\n")
        assert len(lines) in (1, 3)
        assert len(lines) == 1 or lines[2].strip() == "^" * len(lines[2].strip())


@pytest.mark.parametrize(
    "text", ["a >= 1 and b <= 2 or not c != 3 in [1] is d", "'a = b && c'", '"x <> NULL"', "True == None"]
)
def test_correct_expressions_are_not_corrected(text: str) -> None:
    assert misspelt(text) is None
