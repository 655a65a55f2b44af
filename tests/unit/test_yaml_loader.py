"""Tests alias bombs and YAML that PyYAML does not expect. test_law_types.py tests what words such as `no` mean."""

import time
import unicodedata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pairmill.jobs.api.keywords import parse_step
from pairmill.jobs.job_file import load_job, parse_settings
from pairmill.jobs.yaml_loader import MAX_YAML_BYTES, YamlError, dump_yaml, load_yaml
from pairmill.schemas.errors import JobError

LISTS = "x0: &x0 [a, a, a]\n" + "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9))
MERGED = "x0: &x0 {a: 1}\n" + "".join(f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
LONG = f"x: &x {'a' * 100_000}\ny: [{', '.join(['*x'] * 100)}]\n"
BOMBS = {
    "lists": LISTS,
    "merged": MERGED,
    "long text": LONG,
    "itself": "x: &x [*x]\n",
    "inside": "x: &x {y: {z: *x}}\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_aliases_that_expand_to_too_much_are_refused_quickly(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(JobError, match=r"job.yaml:\d+: not valid YAML: aliases stand for more than") as error:
        load_job(str(tmp_path / "job.yaml"), {})
    with pytest.raises(JobError, match="--set images: the value is not valid YAML: aliases stand for"):
        parse_settings([f"images={text}"])
    with pytest.raises(JobError, match="is not valid YAML: aliases stand for"):
        parse_step(text)
    assert time.monotonic() - start < 1
    assert "\n" not in str(error.value)


def test_aliases_of_a_reasonable_size_are_read() -> None:
    assert load_yaml("x: &x [a, b]\ny: [*x, *x]\nz: &z {a: 1}\nw: {<<: *z, b: 2}") == {
        "x": ["a", "b"],
        "y": [["a", "b"], ["a", "b"]],
        "z": {"a": 1},
        "w": {"a": 1, "b": 2},
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab: -#'\"\n\té🙂", max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
)


@given(st.lists(plain, min_size=1), st.booleans())
def test_text_without_aliases_is_never_refused_for_its_size(value: list[object], is_flow: bool) -> None:
    """The counted size is at most twice the size of the text."""
    text = yaml.dump(value, Dumper=_NoAliases, default_flow_style=is_flow, allow_unicode=True)
    loaded = load_yaml(text)
    assert loaded == value
    assert _size(loaded) <= 2 * len(text.encode())


@pytest.mark.parametrize("text", [f"{'[0,' * 2}{'],' * 2}"[:-1], "{a,b,c}", "-\n-\n-", "[a,b,c]", "{a: {b,c}}"])
def test_the_shortest_documents_are_counted_as_at_most_twice_their_length(text: str) -> None:
    assert _size(load_yaml(text)) <= 2 * len(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!bool x",
        "!!int x",
        "!!int ''",
        "!!float x",
        "!!timestamp x",
        "!!binary x",
        "9" * 5_000,
        "0x" + "f" * 5_000,
        "[",
    ],
)
def test_values_that_cannot_be_constructed_are_reported_in_a_short_message(text: str) -> None:
    with pytest.raises(YamlError) as error:
        load_yaml(f"images: {text}")
    assert len(str(error.value)) < 300


def test_a_setting_that_is_not_yaml_is_not_quoted_because_it_may_be_a_secret() -> None:
    with pytest.raises(JobError) as error:
        parse_settings(["s3.secret_access_key=@hunter2"])
    assert "hunter2" not in str(error.value)


def test_a_step_interprets_words_as_a_job_file_does() -> None:
    assert parse_step("dedup: {by: no, best: 012}") == {"dedup": {"by": "no", "best": 12}}
    with pytest.raises(JobError, match="is not valid YAML: maximum"):
        parse_step("[" * 1_000)


def test_a_job_file_may_be_as_long_as_the_documented_limit() -> None:
    text = f"[{'a,' * (MAX_YAML_BYTES // 40)}]"
    assert len(load_yaml(text)) == MAX_YAML_BYTES // 40


CONTROLS_AND_SEPARATORS = [
    chr(n)
    for n in chain(range(0x40000), range(0xE0000, 0xF0000))  # the other planes are unassigned or private
    if unicodedata.category(chr(n)) in ("Cc", "Zl", "Zp", "Zs", "Cf")
]


@pytest.mark.parametrize("shape", ["a: 1 # x{}b: 2", "a: 1 #{}b: 2", "# x\r\n#{}b: 2", "a: 'x{}b: 2'", "a: x{}b"])
def test_only_carriage_return_and_line_feed_end_a_line(shape: str) -> None:
    """YAML 1.2.2, section 5.4. Every other character is refused or is read as an ordinary character."""
    for mark in set(CONTROLS_AND_SEPARATORS) - {"\r", "\n"}:
        try:
            loaded = load_yaml(shape.format(mark))
        except YamlError as error:
            assert error.line is None or error.line == 1 + shape.count("\n")
            continue
        text = shape.partition("'")[2][:-1] if "'" in shape else "x{}b"
        assert loaded in (None, {"a": 1}, {"a": text.format(mark)}), f"U+{ord(mark):04X}"


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
def test_a_line_break_of_yaml_1_1_is_refused_with_its_line_number(tmp_path: Path, mark: str) -> None:
    (tmp_path / "job.yaml").write_text(f"# one\r\n# two{mark}fetch: {{retries: 9}}\n", newline="")
    with pytest.raises(JobError, match=rf"job.yaml:2: not valid YAML: U\+{ord(mark):04X} is"):
        load_job(str(tmp_path / "job.yaml"), {})
    with pytest.raises(JobError, match="--set fetch: the value is not valid YAML: U"):
        parse_settings([f"fetch={{}} #{mark}"])
    assert load_yaml(f'"\\u{ord(mark):04X}"') == mark
    assert load_yaml(dump_yaml({"b": f"é{mark} x", "a": mark})) == {"b": f"é{mark} x", "a": mark}


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _size(value: object) -> int:
    """The size of a value as the loader counts it: the number of values plus the number of characters."""
    if isinstance(value, dict):
        return 1 + sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return 1 + sum(map(_size, value))
    return 1 + (len(value) if isinstance(value, str) else len(str(value)) if isinstance(value, int) else 0)
