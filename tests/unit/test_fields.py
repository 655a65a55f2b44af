"""Tests that `pairmill fields` and the docs list every field with its default and meaning.

The oracles are pydantic's JSON schema and the source text. The command uses neither.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from docs.generate import job_fields_page
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.mixture import MixJob
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob
from tests.unit.test_command_line import run

JOBS = {"build": BuildJob, "select": SelectJob, "score": ScoreJob, "export": ExportJob, "mix": MixJob}
REQUIRED = object()
SCHEMAS = Path(__file__).parents[2] / "schemas"
SOURCES = [" ".join(path.read_text().split()) for path in SCHEMAS.rglob("*.py")]


def schema_fields(model: type[BaseModel]) -> dict[str, object]:
    """Dotted name of every field -> its default, or REQUIRED."""
    whole = model.model_json_schema()

    def target(part: dict[str, object]) -> dict[str, object] | None:
        """The model to which this part of the schema refers, if any."""
        found: dict[str, object] = whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        return found if "properties" in found else None

    def walk(parent: str, model: dict[str, object]) -> Iterator[tuple[str, Any]]:
        for name, part in model["properties"].items():
            options = [part, *part.get("anyOf", [])]
            nested = [("", each) for each in options]
            nested += [("[]", each["items"]) for each in options if "items" in each]
            nested += [
                (".NAME", values)
                for each in options
                for values in [each.get("additionalProperties"), *each.get("patternProperties", {}).values()]
                if isinstance(values, dict)
            ]
            below = [(suffix, found) for suffix, each in nested if (found := target(each))]
            if not below or below[0][0]:  # a section is not a field itself
                yield (
                    f"{parent}{name}",
                    part.get("default", REQUIRED) if name not in model.get("required", []) else REQUIRED,
                )
            for suffix, found in below:
                yield from walk(f"{parent}{name}{suffix}.", found)

    return dict(walk("", whole))


def printed(command: str) -> dict[str, str]:
    """Field name -> what the command prints about the field, joined into one line."""
    status, text = run("fields", "--of", command, columns=100)
    assert status == 0
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    return {block.split("  ")[0]: " ".join(block.split()) for block in blocks}


def printed_default(default: object) -> str:
    """A default as the command prints it, which is valid YAML."""
    if default is REQUIRED:
        return "required"
    return f"default {default if isinstance(default, str) and default else json.dumps(default)}"


def has_docstring(name: str, meaning: str) -> bool:
    """Whether the source has this text below a field of this name."""
    text = re.escape(meaning).replace("null", "(?:null|None)")
    for source in SOURCES:
        for match in re.finditer(f'"""{text}', source):
            before = source[: match.start()].rpartition('"""')[2]
            if re.search(rf"(?:^| ){name}: ", before):
                return True
    return False


@pytest.mark.parametrize("command", JOBS)
def test_the_command_and_the_docs_have_every_field_with_its_default_and_its_meaning(command: str) -> None:
    expected, found = schema_fields(JOBS[command]), printed(command)
    page = job_fields_page().replace("\\", "").replace("&#124;", "|")
    assert list(found) == list(expected)
    for name, text in found.items():
        default = re.escape(printed_default(expected[name]))
        match = re.fullmatch(rf"{re.escape(name)} \S.*?, {default} (.+\.)", text)
        assert match, text
        meaning = match[1]
        assert has_docstring(re.split(r"\.", name)[-1], meaning), text
        default = default.replace("default\\ ", "default `", 1) + ("`" if "default" in default else "")
        row = rf"^\| `{re.escape(name)}` <small>\S.*; {default}</small> \| {re.escape(meaning)}"
        assert re.search(row, page, re.MULTILINE), name
