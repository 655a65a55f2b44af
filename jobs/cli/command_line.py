"""Parses and checks the command line that `submit` will run elsewhere, using the command's own parser."""

from collections.abc import Sequence
from pathlib import Path

from typer.core import TyperGroup

from pairmill.jobs.cli.arguments import added_model, build_job, embed_job, export_job, mix_job, score_job, select_job
from pairmill.jobs.cli.help import HELP_OPTIONS
from pairmill.jobs.cli.options import (
    BuildOptions,
    EmbedOptions,
    ExportOptions,
    IndexOptions,
    Options,
    RetryOptions,
    ScoreOptions,
    SelectOptions,
)
from pairmill.jobs.cluster.job_bundle import Command
from pairmill.jobs.job_file import model_config, parse_settings, s3_of
from pairmill.pipeline.common.files import absolute
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.rules import RulesConfig
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.s3 import secret_in
from pairmill.schemas.scores import ScoreJob

COMMANDS: dict[str, type[Options]] = {
    "build": BuildOptions,
    "embed": EmbedOptions,
    "retry": RetryOptions,
    "select": SelectOptions,
    "score": ScoreOptions,
    "export": ExportOptions,
    "index": IndexOptions,
}
"""Commands that can be submitted: those that take a long time."""

_ON_GPU = ("neg_clip", "norm_sim", "text", "caption_model")
"""Kinds of scores that use a GPU if there is one."""
_FILES = ("weights", "names", "target", "toxic_words")
"""Settings of scores that name a file."""


def parse_command(group: TyperGroup, arguments: Sequence[str]) -> Command:
    """Parse `arguments` (after `pairmill`) into a checked Command. Raises JobError and click's usage errors."""
    if not arguments or arguments[0] not in COMMANDS:
        raise JobError(f"submit takes one of {', '.join(COMMANDS)}, with its own arguments")
    name, *rest = arguments
    context = group.commands[name].make_context(f"pairmill {name}", rest, help_option_names=HELP_OPTIONS)
    options = COMMANDS[name].from_parameters(context.params)
    match options:
        case BuildOptions():
            return _making(arguments, options.job_file, build_job(options))
        case EmbedOptions(add_model=None):
            return _making(arguments, options.job_file, embed_job(options))
        case EmbedOptions():
            model = model_config(added_model(options))
            return _changing(arguments, options, [*options.uris, *_on_disk(model)], has_models=True)
        case RetryOptions():
            return _changing(arguments, options, [options.output], has_models=False)
        case IndexOptions():  # runs in the driver, without a model
            return _changing(arguments, options, [options.output], has_models=False)
        case SelectOptions(is_mixture=True):
            mixed = mix_job(options)
            return _reading(arguments, None, [mixed.output, *(source.dataset for source in mixed.sources)])
        case SelectOptions():
            selected = select_job(options)
            files = [uri for step in selected.steps for uri in step.files]
            return _reading(arguments, options.job_file, [selected.dataset, *files])
        case ScoreOptions():
            scored = score_job(options)
            uris = [scored.dataset, *_files_of(scored)]
            on_gpu = not scored.given or scored.given[0] in _ON_GPU
            return Command(list(arguments), options.job_file, RulesConfig(), uris, has_models=on_gpu)
        case ExportOptions():
            job = export_job(options)
            return _reading(arguments, options.job_file, [job.dataset, job.output])
    raise AssertionError(options)


def _making(arguments: Sequence[str], job_file: str | None, job: BuildJob) -> Command:
    """A command that makes a dataset. Local weights must exist on the machine where it runs."""
    known = [each.path for each in job.rules.known]
    uris = [*job.source.paths, job.output, *known, *(path for model in job.models for path in _on_disk(model))]
    return Command(list(arguments), job_file, job.rules, uris, has_models=bool(job.models))


def _files_of(job: ScoreJob) -> list[str]:
    """The local files and folders that a score needs. They must exist on the machine where it runs."""
    values = [value for kind in job.given for field, value in getattr(job, kind) if field in _FILES]
    found = [value for value in values if isinstance(value, str) and Path(absolute(value)).exists()]
    if (caption := job.caption_model) is not None:
        found += _on_disk(ModelConfig(name=caption.model, pretrained=caption.pretrained, alias="caption"))
    return found


def _on_disk(model: ModelConfig) -> list[str]:
    """Of a model's name and weights, those that are on this machine's disk, as given."""
    from pairmill.pipeline.encode.weights import located

    found = located(model)
    paths = ((model.name, found.name), (model.pretrained, found.pretrained))
    return [given for given, local in paths if given and local and Path(local).is_absolute()]


def _changing(arguments: Sequence[str], options: Options, uris: list[str], has_models: bool) -> Command:
    """A command that takes an output folder and settings, but no job file. Raises JobError."""
    s3_of(parse_settings(options.settings or []))
    for uri in uris:
        if wrong := secret_in(uri):
            raise JobError(f"the output folder: {wrong}")
    return Command(list(arguments), None, RulesConfig(), uris, has_models)


def _reading(arguments: Sequence[str], job_file: str | None, uris: list[str]) -> Command:
    return Command(list(arguments), job_file, RulesConfig(), uris, has_models=False)
