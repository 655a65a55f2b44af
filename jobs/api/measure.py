"""`pairmill.probe` and `evaluate`: train heads on labels, and measure embeddings and scores."""

import os
from collections.abc import Sequence

from pydantic import ValidationError

from pairmill.jobs import evaluate as evaluating
from pairmill.jobs.api.keywords import S3, Paths, StrPath, s3_config, suggests_keywords, text_of
from pairmill.jobs.evaluate import Evaluation, EvaluationResult
from pairmill.jobs.probe import ProbeRequest, ProbeResult, train_probe
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.schemas.errors import JobError
from pairmill.schemas.index import EmbeddingKind
from pairmill.schemas.job.scores import ClassesScore


@suggests_keywords
def probe(
    output: StrPath,
    out: StrPath,
    *,
    labels: Paths | None = None,
    label_column: str | None = None,
    positive: str | None = None,
    model: str | None = None,
    of: EmbeddingKind = "image",
    subset: str | None = None,
    limit: int = 20_000,
    page: StrPath | None = None,
    s3: S3 | None = None,
) -> ProbeResult:
    """Train a head on labeled pairs: a logistic regression on their stored embeddings. `pairmill.score` with
    `{"head": {"weights": out}}` then computes the probability for every pair.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        out: The local file to write the head to. Its name must end in `.safetensors`.
        labels: Parquet files with the columns `uid` and `label`, such as those that `explore` writes.
        label_column: The column with the labels, in the dataset or, if `labels` is given, in these files.
        positive: The label to distinguish from all others. None: good, yes, true or 1.
        model: Alias of the model. None: the dataset's only model.
        of: The embeddings of pictures (`image`) or of captions (`text`).
        subset: Only rows of this subset.
        limit: Maximum number of labeled rows to use, chosen by a hash of the uid.
        page: Write a page with charts to this HTML file.
        s3: See `open`.

    Returns:
        How good the probe is, measured by cross-validation: accuracy, ROC AUC and calibration.

    Raises:
        EvaluateError: The labels cannot be used, or there are too few.
        JobError: A file cannot be written.
    """
    source = LabelSource(_list_of(labels), label_column, positive)
    request = ProbeRequest(source, model, of, subset, limit)
    return train_probe(Store(os.fspath(output), s3_config(s3)), request, os.fspath(out), text_of(page))


@suggests_keywords
def evaluate(
    output: StrPath,
    *,
    classes: StrPath | None = None,
    templates: str | Sequence[str] = "openai-80",
    score: str | None = None,
    retrieval: bool = False,
    labels: Paths | None = None,
    label_column: str | None = None,
    positive: str | None = None,
    precision: float = 0.9,
    overlap: StrPath | None = None,
    model: str | None = None,
    subset: str | None = None,
    limit: int = 10_000,
    page: StrPath | None = None,
    s3: S3 | None = None,
) -> EvaluationResult:
    """Measure the embeddings and scores of a dataset: retrieval, zero-shot classification, or a score against labels.

    Args:
        output: The output folder of a build or embed, local or `s3://`.
        classes: Zero-shot classification: `imagenet`, a text file with one class per line, or a `.json` file that maps
            each class to its prompts.
        templates: Prompts for the class names: `openai-80`, `simple`, or your own with `{}` for the name.
        score: Measure the precision and recall of this column against labels.
        retrieval: Measure retrieval as well. Without `classes` and `score`, it is always measured.
        labels: Parquet files with the columns `uid` and `label`.
        label_column: The column with the labels, in the dataset or, if `labels` is given, in these files. For
            `classes`, the labels are class names, or class numbers from 0.
        positive: With `score`: the label to distinguish from all others. None: good, yes, true or 1.
        precision: With `score`: find the threshold with this precision.
        overlap: With `classes`: a file that the select step `leak` wrote to `subsets/NAME/overlaps/` of the training
            set. The accuracy is also measured without the pictures that it lists.
        model: Alias of the model. None: the dataset's only model.
        subset: Only rows of this subset.
        limit: Maximum number of pictures in a retrieval test, chosen by a hash.
        page: Write a page with charts to this HTML file.
        s3: See `open`.

    Returns:
        The results. Those that were not requested are None.

    Raises:
        JobError: The evaluation cannot run as given.
        EvaluateError: The labels cannot be used, or there is nothing to compare.
        ScoreError: The classes cannot be used.
        SubsetError: There is no such subset.
    """
    evaluation = Evaluation(
        classes=class_settings(text_of(classes), templates),
        score=score,
        retrieval=retrieval,
        labels=LabelSource(_list_of(labels), label_column, positive),
        precision=precision,
        overlap=text_of(overlap),
        model=model,
        subset=subset,
        limit=limit,
    )
    return evaluating.evaluate(Store(os.fspath(output), s3_config(s3)), evaluation, text_of(page))


def class_settings(names: str | None, templates: str | Sequence[str]) -> ClassesScore | None:
    """The classes of a zero-shot evaluation, or None without `names`. Raises JobError."""
    if names is None:
        return None
    given = [templates] if isinstance(templates, str) and "{}" in templates else templates
    try:
        return ClassesScore.model_validate({"names": names, "templates": given})
    except ValidationError as error:
        raise JobError(
            f"templates: {error.errors()[0]['msg']}; give openai-80, simple, or a prompt with {{}}"
        ) from None


def _list_of(paths: Paths | None) -> list[str]:
    if paths is None:
        return []
    return [os.fspath(each) for each in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
