"""Tests that the commands, options, job fields, columns and statuses that the README and the docs mention exist."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
import yaml

import pairmill
from docs.generate import DOCS, ROOT, ROOT_PAGES, as_page, commands_page, job_fields_page, python_page
from docs.links import broken_links
from pairmill.jobs.api.keywords import parse_score, parse_step
from pairmill.jobs.cli.main import app
from pairmill.jobs.job_fields import job_fields
from pairmill.jobs.job_file import resolve
from pairmill.pipeline.score.mix import parse
from pairmill.pipeline.select.expressions import Expression
from pairmill.schemas.export import ExportJob
from pairmill.schemas.job.scores import ScoreKinds
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.pairs import pairs_schema, score_columns
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.status import Status, retryable
from pairmill.schemas.subset import SelectJob

GENERATED = {"changelog.md", "contributing.md", "commands.md", "job-fields.md", "python.md", "index.md"}
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", DOCS / "index.md"]
TEXTS += sorted(path for path in DOCS.rglob("*.md") if path.name not in GENERATED)


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced code blocks in these languages, without their indentation."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(f"(?m)^{indent}", "", text) for indent, language, text in found if language in languages]


def command_lines(path: Path) -> Iterator[list[str]]:
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" | ")[0], comments=True)
            if words[:1] == ["pairmill"]:
                yield words[1:]


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def resolve_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command and the words after its name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_command_line_names_commands_and_options_that_exist(path: Path) -> None:
    for words in command_lines(path):
        command, rest = resolve_command(words)
        known = options_of(command)
        if command.name == "submit":
            submitted = next(i for i, word in enumerate(rest) if word in typer.main.get_command(app).commands)  # type: ignore[attr-defined]
            inner, rest_of_inner = resolve_command(rest[submitted:])
            assert {word for word in rest_of_inner if word.startswith("--")} <= options_of(inner), words
            rest = rest[:submitted]
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, words


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_step_and_score_on_a_command_line_is_valid(path: Path) -> None:
    for words in command_lines(path):
        for option, text in pairwise(words):
            if option == "--step" and "..." not in text:
                step = {"dataset": "out", "name": "clean", "steps": [parse_step(text)]}
                for each in SelectJob.model_validate(step).steps:
                    _ = each.where is None or Expression(each.where).columns  # raises if this is not an expression
            if option == "--score" and words[0] == "score":
                job = ScoreJob.model_validate({"dataset": "out", "name": "score", **parse_score(text)})
                _ = job.score is None or job.score.mix is None or parse(job.score.mix.formula).columns


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_job_file_is_valid(path: Path) -> None:
    for block in blocks(path, "yaml"):
        values = yaml.safe_load(block)
        if "steps" in values:
            SelectJob.model_validate({"dataset": "out", "name": "clean", **values})
            continue
        if not values.keys().isdisjoint(ScoreKinds.model_fields):
            ScoreJob.model_validate({"dataset": "out", "name": "score", **values})
            continue
        values = {"source": {"paths": ["urls.csv"]}, "output": "out", **values}
        if (values.get("rules") or {}).get("min_similarity"):
            values = {"models": [{"name": "tiny"}], **values}
        resolve(values, block)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_name_that_python_examples_use_from_pairmill_exists(path: Path) -> None:
    for block in blocks(path, "python"):
        if block.startswith("@rule") or re.match(r"[A-Za-z_]+( =|:)|\(", block):
            continue  # an excerpt of a file
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pairmill"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pairmill":
                assert node.attr in pairmill.__all__


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_field_that_is_named_exists(path: Path) -> None:
    known = {field.name.replace("[]", "") for job in (BuildJob, SelectJob, ExportJob) for field in job_fields("", job)}
    sections = {name.partition(".")[0] for name in known if "." in name}
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_0-9.]+)[`:]", path.read_text())
    assert [name for name in named if name not in known and not name.endswith(".py")] == []


def test_the_page_of_statuses_lists_every_status_in_order_and_whether_it_is_retried() -> None:
    text = (DOCS / "reference/statuses.md").read_text()
    rows = re.findall(r"^\| `([a-z_0-9]+)` \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == [status.value for status in Status]
    assert {name for name, rest in rows if rest.endswith("| retry ")} == retryable()


def test_the_page_of_the_output_lists_every_column() -> None:
    text = (DOCS / "reference/output.md").read_text()
    table = text.partition("## Columns")[2].partition("\nAfter these")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    expected = pairs_schema(pa.schema([]), [score_columns("M", 2)]).names
    assert sorted(named) == sorted(expected)


def test_the_architecture_page_lists_the_folders_of_the_import_contract_in_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    modules = [name.strip().replace(".", "/") for floor in floors for name in floor.split("|")]
    listed = re.findall(
        r"^\| (?:`([a-z/]+)`|\*\*(schemas)\*\*) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE
    )
    folders = [module for module in modules if (ROOT / module).is_dir()]
    assert [name or other for name, other in listed] == folders


def test_every_page_is_in_the_navigation_and_every_entry_leads_to_a_page() -> None:
    entries = re.findall(r": (\S+)$", (DOCS / ".nav.yml").read_text(), re.MULTILINE)
    written = {path.relative_to(DOCS).as_posix() for path in TEXTS if path.is_relative_to(DOCS)}
    assert written <= {*entries, *(f"decisions/{path.name}" for path in DOCS.glob("decisions/*.md"))}
    made = {
        "decisions",
        *ROOT_PAGES.values(),
        *(f"reference/{name}" for name in ("commands.md", "job-fields.md", "python.md")),
    }
    assert set(entries) <= written | made


def test_pages_generated_from_the_code_have_every_field_and_command() -> None:
    fields = job_fields_page()
    assert all(
        f"| `{field.name}` <small>" in fields
        for job in (BuildJob, SelectJob, ExportJob)
        for field in job_fields("", job)
    )
    commands = commands_page()
    assert "## pairmill build\n" in commands and "## pairmill jobs list\n" in commands
    assert "| `--set FIELD=VALUE` |" in commands
    public = [name for name in pairmill.__all__ if not name.startswith("_")]
    assert all(f"::: pairmill.{name}\n" in python_page() for name in public)


def test_broken_links_are_found_but_links_in_code_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# What `it` is, and why\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#what-it-is-and-why) [c](https://example.com/x) `x[1](y)`\n"
        "[d](gone.md)\n```\n[e](gone.md)\n```\n[f](there.md#elsewhere) [g](#here)\n"
    )
    assert [line.split(": ")[:2] for line in broken_links(page)] == [
        ["page.md:2", "gone.md"],
        ["page.md:6", "there.md#elsewhere"],
        ["page.md:6", "#here"],
    ]


def test_links_in_a_file_at_the_root_lead_to_pages_of_the_site_or_become_text(tmp_path: Path) -> None:
    source = tmp_path / "CONTRIBUTING.md"
    source.write_text("[a](docs/train.md#x) [b](CHANGELOG.md) [c](schemas/jobs.py) [d](https://e.org) [e](#f)")
    assert as_page(source) == "[a](train.md#x) [b](changelog.md) c [d](https://e.org) [e](#f)"
