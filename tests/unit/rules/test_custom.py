"""Tests that `module:function` is found, and that a user's folder never shadows our packages."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairmill.pipeline.rules import CustomRule, SourceRules, apply_rules, at, load_custom_rule
from pairmill.schemas.status import Step

RULE = """
import pyarrow as pa, pyarrow.compute as pc
from pairmill.pipeline.rules import at

@at("caption")
def no_cats(rows):
    return pc.not_equal(rows["caption_clean"], "cat")

def late(rows):
    return pa.array([False] * rows.num_rows)

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A user's folder. Modules imported from it, always named own_something, are forgotten afterwards."""
    (tmp_path / "own_rules.py").write_text(RULE)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_a_rule_is_loaded_from_a_file_and_runs(folder: Path, in_flight: Any) -> None:
    rule = load_custom_rule("own_rules:no_cats", folder)
    assert (rule.name, rule.step) == ("own_rules:no_cats", Step.CAPTION)
    assert load_custom_rule("own_rules:late", folder).step is Step.SCORE
    assert sys.modules["own_rules"].no_cats is rule.function
    assert str(folder) not in sys.path
    table = in_flight([{"caption_clean": "cat"}, {"caption_clean": "dog"}])
    after = apply_rules(table, Step.CAPTION, SourceRules(), [rule])
    assert after["status"].to_pylist() == ["custom_rule", "ok"]
    assert after["status_detail"].to_pylist() == ["own_rules:no_cats", None]


def test_loading_twice_gives_the_same_function(folder: Path) -> None:
    first = load_custom_rule("own_rules:late", folder)
    assert load_custom_rule("own_rules:late", folder).function is first.function
    assert load_custom_rule("own_rules:late").function is first.function  # once it is loaded, no folder is needed


def test_the_folder_can_be_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_custom_rule("own_rules:late", Path()).function.__module__ == "own_rules"


def test_packages_and_files_beside_the_module_are_found(folder: Path) -> None:
    for package, init in (("own_package", True), ("own_namespace", False)):
        (folder / package / "inner").mkdir(parents=True)
        if init:
            (folder / package / "__init__.py").write_text("import own_helper")
            (folder / package / "inner" / "__init__.py").write_text("")
        (folder / package / "inner" / "deep.py").write_text("def keep(rows): ...")
    (folder / "own_helper.py").write_text("")
    assert load_custom_rule("own_package.inner.deep:keep", folder).function.__module__ == "own_package.inner.deep"
    assert load_custom_rule("own_namespace.inner.deep:keep", folder).function.__module__ == "own_namespace.inner.deep"


def test_installed_modules_need_no_folder() -> None:
    assert isinstance(load_custom_rule("operator:not_"), CustomRule)
    assert load_custom_rule("os.path:exists").name == "os.path:exists"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:f", "there is no module 'no_such_module' in"),
        ("own_rules.deeper:f", "there is no module 'own_rules.deeper'"),
        ("own_rules:no_such", "the module own_rules has no function 'no_such'"),
        ("own_rules:NUMBER", "'NUMBER' is no function; its type is int"),
        ("pairmill.pipeline.rules:at", "pairmill's own"),
        ("pairmill:x", "pairmill's own"),
        ("json:loads", "has the name of another module"),
        ("crashes:f", "importing crashes raised ZeroDivisionError"),
        ("lacks:f", "importing lacks raised ModuleNotFoundError.*no_such_dependency"),
        ("typo:f", "importing typo raised SyntaxError"),
        ("exits:f", "importing exits raised SystemExit: 0"),
        ("__main__:f", "workers cannot import what is defined in a notebook or in the program that runs"),
        ("plain", "module:function"),
        (":f", "module:function"),
    ],
)
def test_errors_name_what_is_missing(folder: Path, name: str, says: str) -> None:
    (folder / "crashes.py").write_text("1 / 0")
    (folder / "lacks.py").write_text("import no_such_dependency")
    (folder / "typo.py").write_text("def f(:")
    (folder / "exits.py").write_text("import sys; sys.exit(0)")
    (folder / "json.py").write_text("def loads(rows): ...")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").write_text("raise RuntimeError('shadowed')")
    for _ in range(2):  # twice: a failed import leaves nothing behind that would change the result
        with pytest.raises(ValueError, match=says):
            load_custom_rule(name, folder)
    assert str(folder) not in sys.path


def test_a_users_folder_does_not_shadow_our_packages_in_a_new_process(folder: Path) -> None:
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").write_text("raise RuntimeError('shadowed')")
    (folder / "own_rules.py").write_text(
        "import pairmill.pipeline.common.storage, pairmill.schemas.jobs\ndef keep(rows): ..."
    )
    code = (
        "from pathlib import Path\nfrom pairmill.pipeline.rules import load_custom_rule\n"
        "print(load_custom_rule('own_rules:keep', Path.cwd()).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "own_rules:keep\n"), done.stderr


def test_a_rule_can_run_only_at_a_step_that_has_rules() -> None:
    with pytest.raises(ValueError, match="caption, url, image or score, but not at 'fetch'"):
        at("fetch")
