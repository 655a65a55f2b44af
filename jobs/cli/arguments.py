"""Converts command-line options to fields of a job."""

from pairmill.jobs.api.keywords import model_fields, parse_score, parse_step
from pairmill.jobs.cli.options import BuildOptions, EmbedOptions, ExportOptions, ScoreOptions, SelectOptions
from pairmill.jobs.job_file import (
    load_export_job,
    load_job,
    load_mix_job,
    load_score_job,
    load_select_job,
    parse_settings,
    s3_of,
)
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.mixture import MixJob, MixSource
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob


def build_job(options: BuildOptions) -> BuildJob:
    """The checked job of `build`. Raises JobError."""
    fields = {
        **_source_fields(options),
        "source.url_column": options.url_column,
        "source.caption_column": options.caption_column,
        "models": [model_fields(name) for name in options.model or []] or None,
        "rules.min_similarity": options.min_similarity,
        "rules.preset": options.preset,
    }
    return load_job(options.job_file, fields, options.settings or [])


def embed_job(options: EmbedOptions) -> BuildJob:
    """The checked job of `embed`. Raises JobError."""
    if options.alias:
        raise JobError("--alias is for --add-model; in a job file, use models[].alias")
    names = [name for each in options.model or [] for name in each.split(",")]
    dtype = {"dtype": options.dtype} if options.dtype else {}
    fields = {
        **_source_fields(options),
        "source.kind": "corpus",
        "source.caption_from_name": options.caption_from_name or None,
        "models": [{**model_fields(name), **dtype} for name in names] or None,
        "run.device": options.device,
    }
    return load_job(options.job_file, fields, options.settings or [])


def select_job(options: SelectOptions) -> SelectJob:
    """The checked job of `select`. Raises JobError."""
    steps = [parse_step(step) for step in options.steps or []]
    fields = {
        "dataset": options.dataset,
        "name": options.name or ("dry-run" if options.dry_run else None),
        "steps": steps or None,
        "rows": "pairs" if options.all_pairs else None,
    }
    return load_select_job(options.job_file, fields, options.settings or [], options.preset)


def mix_job(options: SelectOptions) -> MixJob:
    """The checked job of `select --mix`, or of `select MIX --refresh`. Raises JobError."""
    settings = options.settings or []
    if options.mix:
        fields: dict[str, object] = {"sources": [_source(each) for each in options.mix], "count": options.count}
    else:
        from pairmill.jobs.mix import fields_of

        fields = fields_of(Store(options.dataset, s3_of(parse_settings(settings))))
    return load_mix_job({"output": options.dataset, **fields}, settings)


def _source(text: str) -> dict[str, object]:
    try:
        return MixSource.parse(text).model_dump()
    except ValueError as error:
        raise JobError(f"--mix: {error}") from None


def export_job(options: ExportOptions) -> ExportJob:
    """The checked job of `export`. Raises JobError."""
    paths = [each for each in (options.subset, options.output) if each is not None]
    if not paths and not options.job_file:
        example = pairmill_command("export", options.dataset, "clean", "train")
        raise JobError(f"give a subset and OUT, a new folder for the files, as in: {example}; a mixture has no subsets")
    fields = {
        "dataset": options.dataset,
        "subset": paths[0] if len(paths) > 1 else None,
        "output": paths[-1] if paths else None,
        "format": options.form,
        "samples_per_file": options.samples_per_file,
        "models": options.model or None,
    }
    settings = [*(options.settings or []), *(["shuffle_seed=null"] if options.in_order else [])]
    return load_export_job(options.job_file, fields, settings)


def score_job(options: ScoreOptions) -> ScoreJob:
    """The checked job of `score`. Raises JobError."""
    given = {} if options.given is None else parse_score(options.given)
    fields = {"dataset": options.output, "name": options.name, **given}
    return load_score_job(options.job_file, fields, options.settings or [], options.preset)


def added_model(options: EmbedOptions) -> dict[str, object]:
    """The model of `embed --add-model`, as fields of ModelConfig. Raises JobError."""
    if len(options.source or []) != 1:
        raise JobError("--add-model takes one argument, the output folder of a job")
    other = {
        "--limit": options.limit,
        "--model": options.model,
        "--job": options.job_file,
        "--caption-from-name": options.caption_from_name,
    }
    if unused := [flag for flag, value in other.items() if value]:
        raise JobError(f"--add-model adds one model to all rows of a dataset; leave out {', '.join(unused)}")
    given = {"dtype": options.dtype, "alias": options.alias}
    return {**model_fields(options.add_model or ""), **{name: value for name, value in given.items() if value}}


def _source_fields(options: BuildOptions | EmbedOptions) -> dict[str, object]:
    """The fields that `build` and `embed` share. Raises JobError."""
    paths = list(options.source or [])
    if not options.job_file and len(paths) < 2:
        raise JobError("give a SOURCE and an OUT, or a --job file that names them")
    return {
        "source.paths": paths[:-1] or None,
        "output": paths[-1] if paths else None,
        "source.limit_rows": options.limit,
    }
