"""Flags become fields of a job: what each command's parameters mean, wherever the command is to run."""

from collections.abc import Mapping
from typing import Any

from pairmill.jobs.api.keywords import model_fields, parse_step
from pairmill.jobs.job_file import load_export_job, load_job, load_select_job
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.subset import SelectJob

Job = BuildJob | SelectJob | ExportJob


def job_of(command: str, parameters: Mapping[str, Any]) -> Job:
    """The checked job of `build`, `embed`, `select` or `export` with these parameters (as Typer names them).

    Raises JobError.
    """
    job_file, settings = parameters["job_file"], list(parameters["settings"] or [])
    if command in ("build", "embed"):
        if not job_file and len(parameters["source"] or []) < 2:
            raise JobError("give a SOURCE and an OUT, or a --job file that names them")
        fields = _build_fields(parameters) if command == "build" else _embed_fields(parameters)
        return load_job(job_file, fields, settings)
    if command == "select":
        return load_select_job(job_file, _select_fields(parameters), settings)
    settings += ["shuffle_seed=null"] if parameters["in_order"] else []
    return load_export_job(job_file, _export_fields(parameters), settings)


def _build_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    paths = list(parameters["source"] or [])
    return {
        "source.paths": paths[:-1] or None,
        "output": paths[-1] if paths else None,
        "source.limit_rows": parameters["limit"],
        "source.url_column": parameters["url_column"],
        "source.caption_column": parameters["caption_column"],
        "models": [model_fields(name) for name in parameters["model"]] if parameters["model"] else None,
        "rules.min_similarity": parameters["min_similarity"],
        "rules.preset": parameters["preset"],
    }


def _embed_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    paths = list(parameters["source"] or [])
    names = [name for each in parameters["model"] or [] for name in each.split(",")]
    dtype = {"dtype": parameters["dtype"]} if parameters["dtype"] else {}
    return {
        "source.kind": "corpus",
        "source.paths": paths[:-1] or None,
        "output": paths[-1] if paths else None,
        "source.limit_rows": parameters["limit"],
        "source.caption_from_name": parameters["caption_from_name"] or None,
        "models": [{**model_fields(name), **dtype} for name in names] or None,
        "run.device": parameters["device"],
    }


def _select_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": parameters["dataset"],
        "name": parameters["name"] or ("dry-run" if parameters["dry_run"] else None),
        "steps": [parse_step(step) for step in parameters["steps"]] if parameters["steps"] else None,
        "rows": "pairs" if parameters["all_pairs"] else None,
    }


def _export_fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": parameters["dataset"],
        "subset": parameters["subset"],
        "output": parameters["output"],
        "format": parameters["form"],
        "samples_per_file": parameters["samples_per_file"],
        "models": parameters["model"] or None,
    }
