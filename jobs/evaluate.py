"""`pairmill evaluate`: measures a dataset's embeddings and scores by retrieval, zero-shot classes and thresholds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pairmill.pipeline.common.local_file import check_local_files, new_local_file
from pairmill.pipeline.common.progress import OnStep, Steps, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.terminal_text import PLAIN_COLUMNS
from pairmill.pipeline.common.text import counted, pairmill_command
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.labeled_rows import RowFilter
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.pipeline.evaluate.measure import measure_retrieval, measure_threshold, measure_zero_shot
from pairmill.pipeline.evaluate.overlap import Overlap
from pairmill.pipeline.evaluate.page import EvaluationPage, Section, render
from pairmill.pipeline.evaluate.results import RetrievalResult, ThresholdResult, ZeroShotResult
from pairmill.pipeline.evaluate.sections import shortest
from pairmill.pipeline.reader.embeddings import Embeddings, Floats
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.score.embeddings import chosen_model, known_models
from pairmill.schemas.errors import JobError
from pairmill.schemas.job.run import RunConfig
from pairmill.schemas.job.scores import ClassesScore
from pairmill.schemas.pairs import score_column_names

DEFAULT_LIMIT, MAX_LIMIT = 10_000, 1_000_000
"""Maximum number of pictures in a retrieval test; an embedding of 512 dimensions takes 1 KB."""
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: zero-shot classification, a score against labels, or retrieval, which is the default."""

    classes: ClassesScore | None = None
    """Classes for zero-shot classification."""
    score: str | None = None
    """A column to compare with labels."""
    retrieval: bool = False
    labels: LabelSource = field(default_factory=LabelSource)
    """The labels: the class of each picture, or which pairs are good."""
    precision: float = 0.9
    """The precision to find a threshold for."""
    overlap: str | None = None
    """With `classes`: a file that the select step `leak` wrote, with the pictures that are in a training set."""
    model: str | None = None
    """Alias. None: the dataset's only model."""
    subset: str | None = None
    """Only rows of this subset."""
    limit: int = DEFAULT_LIMIT
    """Maximum number of pictures in a retrieval test, chosen by a hash."""

    def check(self) -> None:
        """Raise JobError or EvaluateError if the evaluation cannot run as given."""
        if self.classes is not None and self.score is not None:
            raise JobError("give only one of --classes and --score: labels are either classes, or good and bad")
        if self.classes is None and self.score is None:
            if self.labels.is_given:
                raise JobError("say what to compare with the labels: --classes FILE, or --score COLUMN")
        else:
            self.labels.check()
        if self.labels.positive is not None and self.score is None:
            raise JobError("--positive names the label for which a --score should be high; use it with --score")
        if self.overlap is not None and self.classes is None:
            raise JobError("--overlap affects only zero-shot accuracy; use it with --classes")
        if not 0 < self.precision <= 1:
            raise JobError(f"--precision {self.precision:g}: give a number above 0 and at most 1")
        if not 2 <= self.limit <= MAX_LIMIT:
            raise JobError(f"--limit {self.limit}: give a number from 2 to {MAX_LIMIT:,}")

    @property
    def has_retrieval(self) -> bool:
        """Whether retrieval is measured."""
        return self.retrieval or (self.classes is None and self.score is None)


@dataclass(frozen=True)
class EvaluationResult:
    """The results of an evaluation. Those that were not requested are None."""

    output: str
    model: str | None
    """Alias of the model whose embeddings were used."""
    subset: str | None
    unfinished_shards: int
    """Number of planned shards that are not finished yet. Their rows are missing from the results."""
    retrieval: RetrievalResult | None = None
    zero_shot: ZeroShotResult | None = None
    threshold: ThresholdResult | None = None
    sections: Sequence[Section] = ()
    """The results in words, tables and charts."""

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values. JSON has no infinite numbers, so an infinite threshold is a text, as in the
        table."""
        values = asdict(self, dict_factory=_json_values)
        return {name: value for name, value in values.items() if name != "sections"}

    def lines(self, width: int = PLAIN_COLUMNS) -> Iterator[str]:
        """Yield lines of text with the results, and with tables of up to `width` columns."""
        for number, section in enumerate(self.sections):
            if number:
                yield ""
            yield from section.results
            for table in section.tables:
                if table.rows:
                    yield ""
                    yield from table.lines(_SHOWN_ROWS, width)

    def notes(self) -> Iterator[str]:
        """Yield notes on what was sampled or left out."""
        for section in self.sections:
            yield from section.notes
        if self.unfinished_shards:
            yield f"{counted(self.unfinished_shards, 'planned shard')} not finished yet: their rows are missing"


def _json_values(items: Sequence[tuple[str, object]]) -> dict[str, object]:
    return {
        name: shortest(value, pa.float64()) if isinstance(value, float) and math.isinf(value) else value
        for name, value in items
    }


def evaluate(
    store: Store, evaluation: Evaluation, page: str | None = None, on_step: OnStep = ignore_step
) -> EvaluationResult:
    """Measure what `evaluation` requests. With `page`, also write the results to that HTML file.

    Raises JobError, EvaluateError, ScoreError, DatasetError and SubsetError.
    """
    evaluation.check()
    check_local_files(page)
    store.check_access()
    on_step("reading manifests", 0, 1)
    snapshot = Snapshot.of(store)
    overlap = None if evaluation.overlap is None else Overlap.read(store, evaluation.overlap)
    rows, sections = RowFilter(snapshot, evaluation.subset), list[Section]()
    needs_model = evaluation.has_retrieval or evaluation.classes is not None
    embeddings = _model(snapshot, evaluation.model) if needs_model else None
    retrieval = zero_shot = threshold = None
    if evaluation.classes is not None and embeddings is not None:
        names, embed = _classes(embeddings, evaluation.classes, Steps(on_step, "embedding prompts of classes"))
        zero_shot, section = measure_zero_shot(rows, embeddings, evaluation.labels, names, embed, on_step, overlap)
        sections.append(section)
    if evaluation.score is not None:
        threshold, section = measure_threshold(rows, evaluation.score, evaluation.labels, evaluation.precision, on_step)
        sections.append(section)
    if evaluation.has_retrieval and embeddings is not None:
        retrieval, section = measure_retrieval(rows, embeddings.alias, evaluation.limit, on_step)
        sections.append(section)
    result = EvaluationResult(
        output=store.root,
        model=None if embeddings is None else embeddings.alias,
        subset=evaluation.subset,
        unfinished_shards=snapshot.unfinished_shards,
        retrieval=retrieval,
        zero_shot=zero_shot,
        threshold=threshold,
        sections=sections,
    )
    if page is not None:
        _write_page(page, result, embeddings)
    return result


def _model(snapshot: Snapshot, alias: str | None) -> Embeddings:
    """The model with this alias. If the dataset lacks it, raises EvaluateError, which says how to add a model."""
    known = known_models(snapshot)
    is_partial = alias is not None and snapshot.added.missing(score_column_names(alias).image_embedding)
    if alias is not None and alias not in known and not is_partial:
        root = snapshot.store.root
        raise EvaluateError(
            f"{root} has no model {alias!r}; it has: {', '.join(known) or 'none'}. To evaluate another one, embed the "
            f"dataset with it first: {pairmill_command('embed', root, '--add-model')} NAME_OR_FOLDER"
        )
    return chosen_model(snapshot, alias)


def _classes(
    embeddings: Embeddings, settings: ClassesScore, steps: Steps
) -> tuple[Sequence[str], Callable[[], Floats]]:
    """Returns (the names of the classes, a function that embeds them with the model of the stored embeddings). Raises
    ScoreError; the function raises ScoreError and ModelError."""
    from pairmill.pipeline.encode.clip_model import model_of
    from pairmill.pipeline.score.class_embeddings import embed_classes, read_classes

    classes = read_classes(settings)

    def embed() -> Floats:
        return embed_classes(model_of(embeddings.contract, RunConfig()), classes, steps.part).embeddings

    return [name for name, _ in classes], embed


def _write_page(path: str, result: EvaluationResult, embeddings: Embeddings | None) -> None:
    facts = [("dataset", result.output)]
    if embeddings is not None:
        contract = embeddings.contract
        name = f"{contract.name}:{contract.pretrained}" if contract.pretrained else contract.name
        facts.append(("model", f"{embeddings.alias} ({name})"))
    if result.subset is not None:
        facts.append(("subset", result.subset))
    made = EvaluationPage("pairmill evaluate", result.output.rstrip("/").rpartition("/")[2], facts, result.sections)
    with new_local_file(path) as file:
        file.write(render(made).encode())
