import pytest
from pydantic import BaseModel

from pairmill.jobs.job_fields import REQUIRED, job_fields
from pairmill.jobs.job_file import load_export_job, load_job, load_mix_job, load_score_job, load_select_job
from pairmill.schemas.export import ExportJob
from pairmill.schemas.jobs import BuildJob
from pairmill.schemas.mixture import MixJob
from pairmill.schemas.scores import ScoreJob
from pairmill.schemas.subset import SelectJob

JOBS = [BuildJob, SelectJob, ScoreJob, ExportJob, MixJob]
LOADERS = {
    BuildJob: (load_job, {"source.paths": ["urls.csv"], "output": "out"}),
    SelectJob: (load_select_job, {"dataset": "out", "name": "clean"}),
    ScoreJob: (load_score_job, {"dataset": "out", "name": "aesthetic"}),
    ExportJob: (load_export_job, {"dataset": "out", "output": "tars"}),
    MixJob: (
        lambda _, fields, settings=(): load_mix_job(fields, settings),
        {"output": "mix", "sources": [{"dataset": "out", "share": 1}]},
    ),
}


def is_always_there(job: type[BaseModel], name: str) -> bool:
    """Whether a field is in every job, rather than in a list, a mapping or a section that can be null."""
    section, dot, _ = name.partition(".")
    if "[]" in name or "NAME" in name:
        return False
    return not dot or job.model_fields[section].default is not None


@pytest.mark.parametrize("job", JOBS)
def test_every_field_is_described_by_a_sentence(job: type[BaseModel]) -> None:
    without = [field.name for field in job_fields("", job) if not field.doc.endswith(".")]
    assert without == []


@pytest.mark.parametrize("job", JOBS)
def test_set_accepts_every_field_and_setting_the_printed_default_changes_nothing(job: type[BaseModel]) -> None:
    load, required = LOADERS[job]
    plain = load(None, required)
    for field in job_fields("", job):
        if is_always_there(job, field.name) and field.default != REQUIRED:
            assert load(None, required, [f"{field.name}={field.default}"]) == plain, field


def test_the_fields_listed_as_required_are_those_that_a_job_cannot_do_without() -> None:
    for job, (_, required) in LOADERS.items():
        fields = [field for field in job_fields("", job) if is_always_there(job, field.name)]
        outermost = {field.name for field in fields if field.default == REQUIRED}
        assert outermost == set(required)


def test_types_are_described_in_plain_notation() -> None:
    types = {field.name: field.type for field in job_fields()}
    assert types["images.quality"] == "int 1..100"
    assert types["images.format"] == "jpg | png | webp"
    assert types["fetch.timeout_s"] == "float > 0, <= 3600"
    assert types["source.paths"] == "list of str"
    assert types["source.url_column"] == "str | null"
    assert types["rules.min_similarity"] == "float -1..1 | mapping of str to float -1..1 | null"
    assert types["models"] == "list of mapping"


def test_fields_can_be_selected_by_prefix_and_nested_fields_have_dotted_names() -> None:
    names = [field.name for field in job_fields("models")]
    assert names[0] == "models" and "models[].alias" in names
    assert all(field.name.startswith("fetch.") for field in job_fields("fetch."))
    assert "s3.buckets.NAME.endpoint" in {field.name for field in job_fields("s3.")}
    assert "steps[].top.by" in {field.name for field in job_fields("steps", SelectJob)}
    assert job_fields("no.such") == []
