"""`pairmill.score`: adds scores to a finished dataset."""

from collections.abc import Mapping

from pairmill.jobs import score as scoring
from pairmill.jobs.api.keywords import Settings, StrPath, parse_score, refuse_beside_job, suggests_keywords, text_of
from pairmill.jobs.job_file import load_score_job
from pairmill.jobs.score import ScoreResult
from pairmill.schemas.scores import ScoreJob


@suggests_keywords
def score(
    dataset: ScoreJob | StrPath | None = None,
    name: str | None = None,
    score: str | Mapping[str, object] | None = None,
    *,
    preset: str | None = None,
    job_file: StrPath | None = None,
    settings: Settings | None = None,
) -> ScoreResult:
    """Add a score to a finished dataset, as columns in `columns/NAME/`. Make the same call again to resume after an
    interruption, or to cover new shards.

    Args:
        dataset: The output folder of a build or embed, or a complete ScoreJob.
        name: Name of the score. Its columns' names start with it.
        score: As in a job file: `{"head": {"weights": "aesthetic.safetensors"}}`, or `"head: aesthetic.safetensors"`.
            None: add the existing score of this name to new shards.
        preset: Take the score `name` from this preset, such as `negcliploss-normsim`; see `pairmill presets`.
        job_file: A job file (YAML); keywords override it.
        settings: Any other field of a job file: `{"run.device": "cuda"}`.

    Returns:
        What the dataset contains now. Failed shards are in `failures` and `shards_missing`; they raise no error.

    Raises:
        JobError: The job cannot run as given.
        ScoreError: The dataset lacks what the score needs, or has another score with this name.
    """
    if isinstance(dataset, ScoreJob):
        refuse_beside_job(
            {"name": name, "score": score, "preset": preset, "job_file": job_file, "settings": settings or None}
        )
        return scoring.score(dataset)
    given = parse_score(score) if isinstance(score, str) else dict(score or {})
    fields = {"dataset": dataset, "name": name, **given}
    return scoring.score(load_score_job(text_of(job_file), fields, settings or {}, preset))
