"""`pairmill probe`: trains a head on the stored embeddings of labeled pairs, or learns a mix of columns."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from safetensors.numpy import save

from pairmill.pipeline.common.local_file import check_local_files, new_local_file
from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.terminal_text import PLAIN_COLUMNS
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.dataset.versions import versions
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.examples import distinct, gather
from pairmill.pipeline.evaluate.intervals import wilson
from pairmill.pipeline.evaluate.labeled_rows import Booleans, RowFilter, Target, target_of
from pairmill.pipeline.evaluate.labels import LabelSource
from pairmill.pipeline.evaluate.learned_mix import gather_columns, learn_mix
from pairmill.pipeline.evaluate.page import EvaluationPage, Section, render
from pairmill.pipeline.evaluate.probe import Probe, folds_of, log_losses, train
from pairmill.pipeline.evaluate.reliability import calibration_error, reliability, reliability_lines
from pairmill.pipeline.evaluate.results import ProbeFigures
from pairmill.pipeline.evaluate.sections import probe_lines, probe_section
from pairmill.pipeline.evaluate.thresholds import roc_auc
from pairmill.pipeline.reader.embeddings import Embeddings
from pairmill.pipeline.reader.snapshot import Snapshot
from pairmill.pipeline.report.axis import four_digits
from pairmill.pipeline.score.embeddings import chosen_model
from pairmill.pipeline.score.head_weights import HeadModel, head_metadata
from pairmill.schemas.errors import JobError
from pairmill.schemas.index import EmbeddingKind

DEFAULT_LIMIT = 20_000
_RARE = 0.1
"""A label with a smaller share is called rare."""


@dataclass(frozen=True)
class ProbeRequest:
    """What to train on."""

    labels: LabelSource
    model: str | None = None
    """Alias. None: the dataset's only model."""
    of: EmbeddingKind = "image"
    """The embeddings of pictures or of captions."""
    subset: str | None = None
    """Only rows of this subset."""
    limit: int = DEFAULT_LIMIT
    """Maximum number of labeled rows, chosen by a hash of the uid."""


@dataclass(frozen=True)
class ProbeResult:
    """A probe that was trained, and how good it is."""

    output: str
    """The dataset."""
    head: str
    """The file with the weights."""
    model: str
    of: EmbeddingKind
    figures: ProbeFigures

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return asdict(self)

    def lines(self, width: int = PLAIN_COLUMNS) -> Iterator[str]:
        """Yield lines of text with the results, and the reliability diagram in up to `width` columns."""
        name = self.figures.positive
        what = "pictures" if self.of == "image" else "captions"
        yield (
            f"{counted(self.figures.examples, 'example')} ({self.figures.positives:,} {name}), embeddings of {what} by "
            f"{self.model}"
        )
        yield from probe_lines(self.figures)
        yield ""
        yield from reliability_lines(self.figures.reliability, name, width)


def train_probe(
    store: Store, request: ProbeRequest, out: str, page: str | None = None, on_step: OnStep = ignore_step
) -> ProbeResult:
    """Train a probe and write it to `out`, a local .safetensors file; with `page`, also an HTML page about it.

    Raises JobError, EvaluateError, ScoreError and DatasetError.
    """
    if not out.endswith(".safetensors"):
        raise JobError(f"{out}: the file's name must end in .safetensors")
    if request.limit < 1:
        raise JobError(f"--limit {request.limit}: give a positive number")
    request.labels.check()
    check_local_files(out, page)
    store.check_access()
    on_step("reading manifests", 0, 1)
    snapshot = Snapshot.of(store)
    embeddings = chosen_model(snapshot, request.model, request.of)
    contract = embeddings.contract
    examples = gather(embeddings, request.labels.open(snapshot), request.limit, request.subset, on_step)
    with _explained(examples.facts):
        target = target_of(examples.labels, request.labels.positive)
    examples, is_positive = distinct(examples, target.is_positive)
    target = target._replace(is_positive=is_positive)
    with _explained(examples.facts):
        folds = folds_of(examples.hashes, is_positive, (target.name, "others"))
    probe = train(examples.unit_vectors(), target.is_positive, folds, on_step)
    unfinished = snapshot.unfinished_shards
    late = [f"{counted(unfinished, 'planned shard')} not finished yet: their rows are missing"] if unfinished else []
    figures = _figures(probe, target, [*examples.facts, *late])
    head = HeadModel((contract.name,), contract.pretrained, contract.weights_sha256)
    _write_head(out, probe, head_metadata(head, "none", "sigmoid", request.of, _about(figures)))
    result = ProbeResult(store.root, out, embeddings.alias, request.of, figures)
    if page is not None:
        _write_page(page, result, embeddings, probe_section(figures, probe, is_positive))
    return result


@dataclass(frozen=True)
class MixRequest:
    """Which columns to mix, and by which labels."""

    columns: Sequence[str]
    labels: LabelSource
    subset: str | None = None
    """Only rows of this subset."""
    limit: int = DEFAULT_LIMIT
    """Maximum number of labeled rows, chosen by a hash of the uid."""


@dataclass(frozen=True)
class MixResult:
    """A mix that was learned, and how good it is."""

    output: str
    """The dataset."""
    formula: str
    """The formula of the mix, for the score `mix`."""
    figures: ProbeFigures

    def as_dict(self) -> dict[str, object]:
        """The result as plain JSON values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield lines of text with the results, then the formula, to paste after `--score`."""
        name = self.figures.positive
        yield f"{counted(self.figures.examples, 'example')} ({self.figures.positives:,} {name})"
        yield from probe_lines(self.figures)
        yield ""
        yield shlex.quote(f"mix: {self.formula}")


def train_mix(store: Store, request: MixRequest, on_step: OnStep = ignore_step) -> MixResult:
    """Learn a mix of columns from labels. Writes nothing. Raises JobError, EvaluateError and DatasetError."""
    if len(set(request.columns)) < len(request.columns) or len(request.columns) < 2:
        raise JobError("--column: name two or more different columns to mix")
    request.labels.check()
    store.check_access()
    on_step("reading manifests", 0, 1)
    snapshot = Snapshot.of(store)
    rows = RowFilter(snapshot, request.subset)
    found = gather_columns(rows, request.labels.open(snapshot), request.columns, request.limit, on_step)
    with _explained(found.facts):
        mix = learn_mix(found, request.columns, request.labels.positive, on_step)
    return MixResult(store.root, mix.formula, _figures(mix.probe, Target(mix.name, mix.is_positive), found.facts))


@contextmanager
def _explained(facts: Sequence[str]) -> Iterator[None]:
    """Add to an EvaluateError which labels were left out."""
    try:
        yield
    except EvaluateError as error:
        raise EvaluateError("\n".join([str(error), *facts])) from None


def _figures(probe: Probe, target: Target, facts: Sequence[str]) -> ProbeFigures:
    is_positive, count = target.is_positive, len(target.is_positive)
    is_right = (probe.probabilities >= 0.5) == is_positive
    bins = reliability(probe.probabilities, is_positive)
    return ProbeFigures(
        positive=target.name,
        examples=count,
        positives=int(is_positive.sum()),
        c=probe.c,
        has_converged=probe.weights.has_converged,
        accuracy=float(is_right.mean()),
        accuracy_interval=wilson(int(is_right.sum()), count),
        baseline=max(float(is_positive.mean()), 1 - float(is_positive.mean())),
        recall=float(is_right[is_positive].mean()),
        specificity=float(is_right[~is_positive].mean()),
        auc=roc_auc(probe.logits, is_positive),
        log_loss=float(log_losses(probe.logits, is_positive).mean()),
        calibration_error=calibration_error(bins),
        reliability=bins,
        notes=[*facts, *_warnings(probe, target.name, is_positive)],
    )


def _warnings(probe: Probe, name: str, is_positive: Booleans) -> Iterator[str]:
    share = float(is_positive.mean())
    same = np.full(len(is_positive), np.log(share / (1 - share)))
    if log_losses(probe.logits, is_positive).mean() >= log_losses(same, is_positive).mean():
        yield (
            f"the probe has learned nothing: predicting the share of {name!r} for every pair is just as good. "
            "These embeddings do not show what the labels are about, or there are too few labels"
        )
    if min(share, 1 - share) < _RARE:
        yield (
            f"{100 * share:.1f}% of the labels are {name!r}: look at the ROC AUC, because a probe that always predicts "
            "the more frequent label has a high accuracy too"
        )
    if probe.exponent in (min(probe.losses), max(probe.losses)):
        yield f"C {four_digits(probe.c)} is at the end of the range that was tried"
    if not probe.weights.has_converged:
        yield "the training stopped after 1,000 iterations, before it had converged"


def _about(figures: ProbeFigures) -> dict[str, object]:
    names = ("positive", "examples", "positives", "c", "accuracy", "accuracy_interval", "auc")
    values = {name: getattr(figures, name) for name in names}
    return {**values, "versions": versions()}


def _write_head(path: str, probe: Probe, metadata: dict[str, str]) -> None:
    tensors = {
        "layers.0.weight": probe.weights.weight[None].astype(np.float32),
        "layers.0.bias": np.array([probe.weights.bias], np.float32),
    }
    with new_local_file(path) as file:
        file.write(save(tensors, metadata))


def _write_page(path: str, result: ProbeResult, embeddings: Embeddings, section: Section) -> None:
    contract = embeddings.contract
    facts = [
        ("dataset", result.output),
        ("head", result.head),
        ("model", f"{contract.name}:{contract.pretrained}" if contract.pretrained else contract.name),
        ("embeddings of", "pictures" if result.of == "image" else "captions"),
        ("examples", f"{result.figures.examples:,}"),
    ]
    made = EvaluationPage("pairmill probe", f"Is it {result.figures.positive}?", facts, [section])
    with new_local_file(path) as file:
        file.write(render(made).encode())
