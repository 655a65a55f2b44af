"""Generates the pages that come from the code and from files at the root. `make docs` runs this first."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import pairmill
from docs.links import LINK, is_external
from pairmill.jobs.cli.main import app
from pairmill.jobs.job_fields import REQUIRED, JobField, job_fields
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.mixture import MixJob
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files at the root that also become pages of the site."""

JOBS: tuple[tuple[type[BaseModel], str], ...] = (
    (BuildJob, "The job file of `pairmill build` and `pairmill embed`"),
    (SelectJob, "The job file of `pairmill select`"),
    (MixJob, "The settings of `pairmill select --mix`"),
    (ScoreJob, "The job file of `pairmill score`"),
    (ExportJob, "The job file of `pairmill export`"),
)


def main() -> None:
    """Write the pages into docs/, where git ignores them."""
    pages = {
        "reference/job-fields.md": job_fields_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "decisions/index.md": decisions_page(),
    }
    pages |= {page: as_page(ROOT / name) for name, page in ROOT_PAGES.items()}
    for name, text in pages.items():
        path = DOCS / name
        if not path.exists() or path.read_text() != text:  # unchanged pages are not rebuilt
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def job_fields_page() -> str:
    """Every field of every job, in one table per section."""
    lines = [
        "# Job fields",
        "",
        "Every field of a job file, with its type and default. `--set images.size=256` sets a field from the command",
        "line and overrides the file. An unknown field is reported with its line number before anything starts.",
        "",
        "`[]` stands for an index into a list (`--set models.0.alias=clip`), `NAME` for a key of a mapping.",
    ]
    seen: set[tuple[str, ...]] = set()
    for job, title in JOBS:
        lines += ["", f"## {title}", ""]
        for section, fields in _sections(job):
            names = tuple(field.name for field in fields)
            heading = f"`{section}`" if section else ""
            if section in ("s3", "run") and names in seen:
                lines += [f"{heading} has the same fields as [above](#{section}).", ""]
                continue
            if heading:
                lines += [f"### {heading} {{ #{section} }}" if names not in seen else f"### {heading}", ""]
            seen.add(names)
            lines += ["| field | meaning |", "|---|---|", *map(_field_row, fields), ""]
    return "\n".join(lines).rstrip() + "\n"


def _sections(job: type[BaseModel]) -> Iterator[tuple[str, list[JobField]]]:
    """(section, its fields). Fields outside any section come first, under an empty name."""
    sections: dict[str, list[JobField]] = {"": []}
    for field in job_fields("", job):
        section, dot, _ = field.name.partition(".")
        sections.setdefault(section.removesuffix("[]") if dot else "", []).append(field)
    yield from sections.items()


def _field_row(field: JobField) -> str:
    meaning = f"{field.doc} {field.details}".strip()
    default = "required" if field.default == REQUIRED else f"default `{field.default}`"
    return f"| `{field.name}` <small>{_cell(field.type)}; {_cell(default)}</small> | {_cell(meaning)} |"


def commands_page() -> str:
    """Every command with its arguments and options, as in `--help`."""
    lines = ["# Commands", "", "This page has the same content as `pairmill COMMAND --help`.", ""]
    for path, command in _commands("pairmill", typer.main.get_command(app)):
        arguments = [p for p in command.params if not _is_option(p)]
        options = [p for p in command.params if _is_option(p) and not getattr(p, "hidden", False)]
        usage = " ".join([path, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
        lines += [f"## {path}", "", f"```text\n{usage}\n```", "", *_paragraphs(command.help or "")]
        if arguments or options:
            lines += ["| argument or option | meaning |", "|---|---|"]
            lines += [f"| `{_metavar(p)}` | {_cell(p.help or '')} |" for p in arguments]
            lines += [f"| {_option(p)} | {_cell(p.help or '')} |" for p in options]
            lines.append("")
        lines += ["```sh", command.epilog, "```", ""] if command.epilog else []
    return "\n".join(lines)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _commands(f"{path} {name}", inner)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    name = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return name if parameter.is_flag else f"{name[:-1]} {_metavar(parameter)}`"


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield from (" ".join(paragraph.split()), "")


def python_page() -> str:
    """Every public name of `pairmill`, for mkdocstrings to fill in from the docstrings."""
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Job models": [], "Errors": []}
    for name in pairmill.__all__:
        if not name.startswith("_"):
            groups[_group(getattr(pairmill, name))].append(name)
    lines = [
        "# Python",
        "",
        "::: pairmill",
        "    options: {members: false, show_root_heading: false, show_root_toc_entry: false}",
    ]
    for title, names in groups.items():
        if not names:
            continue
        lines += ["", f"## {title}", ""]
        if title == "Job models":
            lines += ["The fields are in [Job fields](job-fields.md).", ""]
        members = "" if title == "Classes" else ", members: false"
        for name in names:
            lines += [f"::: pairmill.{name}", f"    options: {{heading_level: 3{members}}}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _group(value: object) -> str:
    if not isinstance(value, type):
        return "Functions"
    if issubclass(value, BaseModel):
        return "Job models"
    return "Errors" if issubclass(value, Exception) else "Classes"


def decisions_page() -> str:
    """The list of decisions, by their first headings."""
    lines = ["# Decisions", "", "What was decided, which measurements support it, and what it costs.", ""]
    for path in sorted(DOCS.glob("decisions/[0-9]*.md")):
        lines.append(f"- [{path.read_text().splitlines()[0].removeprefix('# ')}]({path.name})")
    return "\n".join(lines) + "\n"


def as_page(source: Path) -> str:
    """A root file as a page: links to other pages are adapted, and links to other files become plain text."""

    def rewritten(match: re.Match[str]) -> str:
        path, anchor = re.fullmatch(r"([^#]*)(#.*)?", match["target"]).groups("")
        if is_external(path) or not path:
            return match.group()
        path = ROOT_PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        return f"[{match['text']}]({path}{anchor})" if path.endswith(".md") else match["text"]

    return LINK.sub(rewritten, source.read_text())


def _cell(text: str) -> str:
    """Text for a table cell. Escapes bars, which would end the cell even inside code."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
