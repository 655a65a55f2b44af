"""`pairmill.select` and `export`: select rows to train on and write them for other tools."""

from collections.abc import Sequence

from pairmill.jobs import export_mixture as exporting
from pairmill.jobs import select as selecting
from pairmill.jobs.api.keywords import (
    Settings,
    Step,
    StrPath,
    refuse_beside_job,
    step_of,
    suggests_keywords,
    text_of,
)
from pairmill.jobs.export import ExportResult
from pairmill.jobs.job_file import load_export_job, load_select_job
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportFormat, ExportJob
from pairmill.schemas.subset import SelectJob, Subset


@suggests_keywords
def select(
    dataset: SelectJob | StrPath | None = None,
    name: str | None = None,
    *,
    steps: Step | Sequence[Step] | None = None,
    preset: str | None = None,
    all_pairs: bool | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    refresh: bool = False,
    job_file: StrPath | None = None,
    settings: Settings | None = None,
) -> Subset:
    """Select rows of a finished dataset and save them in it as the subset `name`.

    Args:
        dataset: The output folder of a build or embed, or a complete SelectJob.
        name: Name of the subset.
        steps: One or more steps, as in a job file: `{"where": "similarity >= 0.28"}`, `"sample: {count: 1000}"`.
        preset: Begin with the steps of this preset, such as `clip-score-30`; see `pairmill presets`.
        all_pairs: Also consider rows that a score rule of the build dropped.
        dry_run: Only count; nothing is written.
        overwrite: Replace a subset of this name.
        refresh: Select this subset again with its own steps, for example after a retry.
        job_file: A job file (YAML); keywords override it.
        settings: Any other field of a job file: `{"partial": True}`.

    Returns:
        The record of the subset: `rows_in`, `rows_out`, and a report for each step.

    Raises:
        JobError: The job cannot run as given, or no row is left. Nothing was written.
    """
    keywords = {
        "name": name,
        "preset": preset,
        "steps": None if steps is None else [step_of(step) for step in _several(steps)],
        "rows": "pairs" if all_pairs else None,
    }
    if isinstance(dataset, SelectJob):
        refuse_beside_job({**keywords, "job_file": job_file, "settings": settings or None})
        job = dataset
    else:
        del keywords["preset"]
        fields = {"dataset": dataset, **keywords, "name": name or ("dry-run" if dry_run else None)}
        job = load_select_job(text_of(job_file), fields, settings or {}, preset)
    if not refresh:
        return selecting.select(job, dry_run, overwrite)
    if job.steps or overwrite:
        raise JobError("refresh reuses the steps of the subset: give neither steps nor overwrite")
    return selecting.refresh(job, dry_run)


@suggests_keywords
def export(
    dataset: ExportJob | StrPath | None = None,
    subset: str | None = None,
    output: StrPath | None = None,
    *,
    format: ExportFormat | None = None,
    samples_per_file: int | None = None,
    models: str | Sequence[str] | None = None,
    in_order: bool | None = None,
    job_file: StrPath | None = None,
    settings: Settings | None = None,
) -> ExportResult:
    """Write the rows of a subset for other tools to read. If interrupted, make the same call again to resume.

    Args:
        dataset: The output folder of a build or embed, a mixture, or a complete ExportJob.
        subset: The name of a subset that `select` made; a mixture has none.
        output: A new folder, local or `s3://`.
        format: `webdataset` (the default), `parquet`, `clip-retrieval` or `datacomp`.
        samples_per_file: 10,000 by default; the last file holds the remainder.
        models: Aliases of the models whose embeddings are written; for `clip-retrieval` and `datacomp`.
        in_order: Keep the dataset's order instead of shuffling across shards.
        job_file: A job file (YAML); keywords override it.
        settings: Any other field of a job file: `{"shuffle_seed": 1}`.

    Raises:
        JobError: The job cannot run as given, or the output contains other files. Nothing was written.
        SubsetError: There is no such subset.
    """
    keywords = {
        "subset": subset,
        "output": output,
        "format": format,
        "samples_per_file": samples_per_file,
        "models": [models] if isinstance(models, str) else models,
    }
    if isinstance(dataset, ExportJob):
        refuse_beside_job({**keywords, "in_order": in_order, "job_file": job_file, "settings": settings or None})
        return exporting.export_any(dataset)
    unshuffled = {"shuffle_seed": None} if in_order else {}
    job = load_export_job(text_of(job_file), {"dataset": dataset, **keywords}, {**(settings or {}), **unshuffled})
    return exporting.export_any(job)


def _several(steps: Step | Sequence[Step]) -> Sequence[Step]:
    return steps if isinstance(steps, Sequence) and not isinstance(steps, str) else [steps]
