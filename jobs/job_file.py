"""Turns a job file and flags into a checked job, or raises an error that names the line and the field.

Precedence: flags and `--set`, then the job file, then the preset, then the defaults.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pairmill.jobs.job_errors import explain
from pairmill.jobs.job_fields import job_fields
from pairmill.jobs.preset_files import load_preset, score_of, steps_for
from pairmill.jobs.yaml_loader import MAX_YAML_BYTES, YamlError, load_yaml
from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.s3_probe import check_buckets
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import pairmill_command
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportJob
from pairmill.schemas.job.models import ModelConfig
from pairmill.schemas.job.scores import ScoreKinds, merged
from pairmill.schemas.jobs import BuildJob, fingerprint_fields
from pairmill.schemas.mixture import MixJob
from pairmill.schemas.s3 import S3Config
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob

Settings = Iterable[str] | Mapping[str, object]
"""Lines `a.b=c` as after `--set`, or dotted field -> value. c is YAML; in a text field, it is the text itself, unless
it is quoted, empty or `null`."""

_NULL = ("", "null", "Null", "NULL")

_Job = TypeVar("_Job", bound=BaseModel)


def load_job(job_file: str | None, overrides: Mapping[str, Any], settings: Settings = ()) -> BuildJob:
    """The resolved job. `overrides`: dotted field -> value; None counts as not given."""
    values, text = _values(job_file, overrides, settings)
    source = values.get("source")
    if isinstance(source, dict) and source.get("kind") == "corpus" and "fetch" in values:
        raise JobError("fetch: a corpus is not downloaded")
    return resolve(values, text, job_file)


def load_select_job(
    job_file: str | None, overrides: Mapping[str, Any], settings: Settings = (), preset: str | None = None
) -> SelectJob:
    """The job of a select, from the same inputs as `load_job`. The steps of the preset come before its own."""
    values, text = _values(job_file, overrides, settings)
    if preset is not None:
        job = _validate(SelectJob, values, text, job_file)
        values["steps"] = [*steps_for(preset, Store(job.dataset, job.s3)), *(values.get("steps") or [])]
    return _validate(SelectJob, values, text, job_file)


def load_export_job(job_file: str | None, overrides: Mapping[str, Any], settings: Settings = ()) -> ExportJob:
    """The job of an export, from the same inputs as `load_job`."""
    values, text = _values(job_file, overrides, settings)
    return _validate(ExportJob, values, text, job_file)


def load_mix_job(overrides: Mapping[str, Any], settings: Settings = ()) -> MixJob:
    """The job of a mixture, from `overrides` and `settings` as in `load_job`."""
    values, text = _values(None, overrides, settings)
    return _validate(MixJob, values, text, None)


def load_score_job(
    job_file: str | None, overrides: Mapping[str, Any], settings: Settings = (), preset: str | None = None
) -> ScoreJob:
    """The job of a score, from the same inputs as `load_job`; the file and the flags override the preset."""
    values, text = _values(job_file, overrides, settings)
    of_file = _parse(text, job_file or "")
    for kind in ScoreKinds.model_fields:
        if overrides.get(kind) is not None and kind in of_file:
            raise JobError(f"{job_file} and --score both set {kind}; use only one, and --set to change a setting")
    if preset is not None:
        values = merged(score_of(preset, values.get("name")), values)
    if values.get("name") is None:
        dataset = str(values.get("dataset") or "OUT")
        raise JobError(
            f"name the score: {pairmill_command('score', dataset)} NAME; `{pairmill_command('status', dataset)}` lists "
            "the existing ones"
        )
    return _validate(ScoreJob, values, text, job_file)


def _values(job_file: str | None, overrides: Mapping[str, Any], settings: Settings) -> tuple[dict[str, Any], str]:
    """The merged values of the file, the flags and `--set`, and the file's text."""
    settings = settings if isinstance(settings, Mapping) else list(settings)
    text = _read(job_file, s3_of(parse_settings(settings))) if job_file else ""
    values = _parse(text, job_file or "the job")
    if job_file and not values:
        raise JobError(f"{job_file}: is empty: write the fields of a job in it, or leave out --job")
    for key, value in overrides.items():
        if value is not None:
            _put(values, key, value)
    parse_settings(settings, values)
    return values, text


def parse_settings(settings: Settings, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """Put the settings into `values`, as nested values. Raises JobError."""
    values = {} if values is None else values
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            value = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else deepcopy(value)
            _put(values, key, value)
        return values
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise JobError(f"--set {setting!r}: write it as field=value, such as --set images.size=256")
        _put(values, key, _parse_value(key, value))
    return values


def s3_of(settings: Mapping[str, Any]) -> S3Config:
    """The S3 settings from `--set s3.*`, for commands that take an output folder and no job. Raises JobError."""
    return _validate(S3Config, settings.get("s3") or {}, "", None)


def model_config(values: Mapping[str, object]) -> ModelConfig:
    """A model from its fields. Raises JobError."""
    return _validate(ModelConfig, values, "", None)


def resolve(values: Mapping[str, Any], text: str = "", job_file: str | None = None) -> BuildJob:
    """Check the values and expand the preset. `text` and `job_file` only serve to name the line in errors."""
    job = _validate(BuildJob, values, text, job_file)
    return _validate(BuildJob, _with_preset(job, values), text, job_file)


def _validate(model: type[_Job], values: Mapping[str, Any], text: str, job_file: str | None) -> _Job:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise JobError(explain(model, error, text, job_file)) from None


def fingerprint(job: BuildJob, weights: Iterable[str] = ()) -> str:
    """Hash of all settings that change the output, including the models' weights: 32 hex characters.

    Settings at their defaults are left out, so a later version with more settings can resume earlier outputs.
    """
    fields = {**fingerprint_fields(job, with_defaults=False), "weights": list(weights)}
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


def _with_preset(job: BuildJob, values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the preset's rules to the values. Rules that were set explicitly override them."""
    name = job.rules.preset
    preset = load_preset(name)
    wanted = preset.requires_model
    calibrated = wanted.among(job.models) if wanted else []
    if wanted and not calibrated:
        models = [{"name": model.name, "pretrained": model.pretrained} for model in job.models]
        raise JobError(
            f"rules.preset {name!r} was calibrated on {wanted.name} ({wanted.pretrained}) and means nothing "
            f"for {models or 'a job without models'}: add that model, or leave the preset out"
        )
    rules = dict(preset.rules)
    if wanted and "min_similarity" in rules:  # calibrated for that model, so it applies to no other
        aliases = [model.alias for model in calibrated]
        rules["min_similarity"] = dict.fromkeys(aliases, rules["min_similarity"])
    return {**values, "rules": {**rules, **(values.get("rules") or {})}}


def _read(job_file: str, s3: S3Config) -> str:
    """The file's text. Only `--set s3.*` can say how to reach the file, because its own `s3` is not known yet.

    Raises JobError, or S3AccessError within 10 s.
    """
    check_buckets([job_file], s3)
    try:
        with Files(s3).open(job_file) as file:
            data = file.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise JobError(f"{job_file}: is larger than {MAX_YAML_BYTES:,} bytes; long lists belong in blocklist files")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        missing = os.strerror(errno.ENOENT) if isinstance(error, FileNotFoundError) else None  # s3fs sets no strerror
        reason = getattr(error, "strerror", None) or missing or error
        raise JobError(f"{job_file}: cannot be read: {reason}") from None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = load_yaml(text) or {}
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise JobError(f"{name}{line}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise JobError(
            f"{name}:1: a job file consists of `field: value` lines; this one is of type {type(values).__name__}"
        )
    for record in ("fingerprint", "schema_version", "versions"):  # only in the job.yaml of an output folder
        values.pop(record, None)
    return values


def _parse_value(key: str, value: str) -> Any:
    text = value.strip() or value  # a delimiter may be a tab
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if _is_text(key) and not is_quoted and text not in _NULL:
        return text
    try:
        return load_yaml(value)
    except YamlError as error:  # the value may be a secret
        raise JobError(f"--set {key}: the value is not valid YAML: {error}") from None


def _is_text(key: str) -> bool:
    """Whether a dotted field takes only text, in every kind of job that has it."""
    name = re.sub(r"\.\d+(?=\.|$)", "[]", key)
    return name in _text_fields() or re.sub(r"^s3\.buckets\..+\.", "s3.buckets.NAME.", name) in _text_fields()


@cache
def _text_fields() -> frozenset[str]:
    fields = [field for job in (BuildJob, SelectJob, ExportJob, ScoreJob, MixJob) for field in job_fields("", job)]
    text = {field.name for field in fields if field.type in ("str", "str | null")}
    return frozenset(text - {field.name for field in fields if field.type not in ("str", "str | null")})


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted field. A whole number is a list index."""
    *folders, last = key.split(".")
    place: Any = values
    try:
        for name in folders:
            if isinstance(place, dict) and place.get(name) is None:
                place[name] = {}
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[int(last) if isinstance(place, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise JobError(f"{key}: the job has no such field") from None
