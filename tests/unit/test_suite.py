"""Tests the rules for unit tests: none imports benchmarks or integration tests, and none fails on a slow machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parents[1]
FILES = sorted([*(TESTS / "unit").rglob("*.py"), *TESTS.glob("*.py")])
"""The unit tests and the modules that all tests share."""


def imported(path: Path) -> Iterator[str]:
    text = path.read_text()
    if "bench" not in text and "integration" not in text:
        return  # parsing takes long
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"


def test_unit_tests_import_neither_benchmarks_nor_integration_tests() -> None:
    names = {(name, path) for path in FILES for name in imported(path)}
    assert ("pytest", Path(__file__)) in names
    wrong = [(name, path) for name, path in names if f"{name}.".startswith(("bench.", "tests.integration."))]
    assert wrong == []


@pytest.mark.parametrize("profile", ["pairmill", "doors"])
def test_hypothesis_has_no_deadline(profile: str) -> None:
    assert settings.get_profile(profile).deadline is None
    assert settings().deadline is None
    assert settings(max_examples=3).deadline is None  # even if a single test has its own settings


def test_at_most_25_annotations_give_up_on_the_type_of_a_dictionarys_values() -> None:
    """`dict[str, object]` can hold the same values, but mypy checks what is done with them."""
    root = TESTS.parent
    folders = ("jobs", "pipeline", "schemas", "bench", "docs", "tests")
    files = (path for folder in folders for path in (root / folder).rglob("*.py"))
    assert sum(path.read_text().count("dict[str, Any]") for path in files) <= 25
