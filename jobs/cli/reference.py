"""`pairmill models`, `presets` and `fields`: list the available models, presets and job fields."""

import sys
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Json
from pairmill.jobs.cli.terminal import errors, print_json, say, say_as_is
from pairmill.pipeline.common.terminal_text import columns_of
from pairmill.pipeline.common.text import pairmill_command

if TYPE_CHECKING:
    from pairmill.jobs.job_fields import JobField

_MAX_WIDTH = 100
_INDENT = "    "


def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Part of a name, such as ViT-B.")] = "",
    as_json: Json = False,
) -> None:
    """List the models that open_clip knows.

    Shows each model's embedding size, picture size, number of parameters and weights, and which weights are on disk.
    """
    from dataclasses import asdict

    with errors():
        from pairmill.pipeline.encode.catalog import known_models

        found = known_models(pattern)
    if not found:
        say(f"pairmill: open_clip has no model with {pattern!r} in its name", err=True)
        raise typer.Exit(1)
    lines_of = partial(wrap, width=min(columns_of(sys.stdout), _MAX_WIDTH), break_on_hyphens=False)
    for model in found:
        size = f", {model.millions_of_parameters:,.0f} M parameters" if model.millions_of_parameters else ""
        say(f"{model.name}  {model.embedding_dim:,} dimensions, {model.image_side} pixels{size}")
        tags = ", ".join(f"{tag}{'*' if tag in model.on_disk else ''}" for tag in model.tags) or "no weights"
        say("\n".join(lines_of(tags, initial_indent=_INDENT, subsequent_indent=_INDENT)))
    say("Weights with * are on disk")
    say("Also: CLIP or SigLIP checkpoints of transformers, as ORG/REPO on the Hugging Face hub or as a folder")
    if not any(model.millions_of_parameters for model in found):
        say("To see parameters, narrow the search: pairmill models ViT-B")
    if as_json:
        print_json([asdict(model) for model in found])


def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the file of this preset.")] = None,
    as_json: Json = False,
) -> None:
    """List published filters.

    Shows what each keeps, which command takes it, where it was published, and what it was calibrated on.
    """
    with errors():
        from pairmill.jobs.preset_files import load_preset, preset_names, preset_text

        names = preset_names() if name is None else [name]
        found = {each: load_preset(each) for each in names}
        if name is not None and not as_json:
            say_as_is(preset_text(name))
            return
    if as_json:
        print_json([{"name": each, **preset.model_dump()} for each, preset in found.items()])
        return
    wrapped = partial(wrap, width=min(columns_of(sys.stdout), _MAX_WIDTH), subsequent_indent=_INDENT)
    for each, preset in found.items():
        commands = ", ".join(preset.commands) or "build"
        lines = (preset.description, f"Source: {preset.source}", f"Calibrated on: {preset.calibrated_on}")
        say("\n".join([f"{each}  ({commands})", *(text for line in lines for text in wrapped(_INDENT + line))]))


def fields(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Beginning of a field's name, such as fetch.")] = "",
    command: Annotated[
        str,
        typer.Option("--of", metavar="COMMAND", help="Which job: build (and embed), select, score, export."),
    ] = "build",
    as_json: Json = False,
) -> None:
    """List every field of a job file.

    Shows name, type, default and meaning. --set takes the same names, with a number in place of []: models.0.alias=b32.
    """
    from dataclasses import asdict

    with errors():
        found = _fields(prefix, command)
    if as_json:
        print_json([asdict(field) for field in found])
        return
    width = min(columns_of(sys.stdout), _MAX_WIDTH)
    for field in found:
        say("\n".join(field_lines(field, width)))


def field_lines(field: "JobField", width: int) -> list[str]:
    """The lines that `fields` prints for a field: name, type and default, then its meaning, wrapped to `width`."""
    wrapped = partial(wrap, width=width, break_long_words=False, break_on_hyphens=False)
    default = field.default if field.default == "required" else f"default {field.default}"
    head = wrapped(f"{field.name}  {field.type}, {default}", subsequent_indent=_INDENT)
    return [*head, *wrapped(field.doc, initial_indent=_INDENT, subsequent_indent=_INDENT)]


def _fields(prefix: str, command: str) -> list["JobField"]:
    """The matching fields. Raises JobError if there are none."""
    from difflib import get_close_matches

    from pydantic import BaseModel

    from pairmill.jobs.job_fields import job_fields
    from pairmill.schemas.errors import JobError
    from pairmill.schemas.export import ExportJob
    from pairmill.schemas.jobs import BuildJob
    from pairmill.schemas.mixture import MixJob
    from pairmill.schemas.scores import ScoreJob
    from pairmill.schemas.subset import SelectJob

    jobs: dict[str, type[BaseModel]] = {
        "build": BuildJob,
        "embed": BuildJob,
        "select": SelectJob,
        "score": ScoreJob,
        "export": ExportJob,
        "mix": MixJob,
    }
    if command not in jobs:
        raise JobError(f"--of {command}: choose build, embed, select, mix, score or export")
    found = job_fields(prefix, jobs[command])
    if not found:
        names = [field.name for field in job_fields("", jobs[command])]
        names += [name.partition(".")[0] for name in names]
        close = get_close_matches(prefix, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"`{pairmill_command('fields', '--of', command)}` lists all"
        raise JobError(f"no field of {command} begins with {prefix!r}; {hint}")
    return found
