"""Runs each evaluation on the stored embeddings and scores of a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from pairmill.pipeline.common.progress import OnStep, ignore_step
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.evaluate.errors import EvaluateError
from pairmill.pipeline.evaluate.intervals import wilson
from pairmill.pipeline.evaluate.labeled_rows import RowFilter, Target, labeled_rows, target_of
from pairmill.pipeline.evaluate.labels import LabelSource, check_column
from pairmill.pipeline.evaluate.lowest_hashes import LowestHashes
from pairmill.pipeline.evaluate.overlap import Overlap, compare
from pairmill.pipeline.evaluate.page import Section
from pairmill.pipeline.evaluate.results import (
    ClassAccuracy,
    Direction,
    NamedConfusion,
    RetrievalResult,
    ThresholdPoint,
    ThresholdResult,
    ZeroShotResult,
)
from pairmill.pipeline.evaluate.retrieval import Ranks, picture_to_text, text_to_picture
from pairmill.pipeline.evaluate.retrieval_rows import read_retrieval
from pairmill.pipeline.evaluate.sections import retrieval_section, threshold_section, zero_shot_section
from pairmill.pipeline.evaluate.thresholds import Point, ThresholdCurve
from pairmill.pipeline.evaluate.zero_shot import Accuracy, ClassIndex, check_dim
from pairmill.pipeline.reader.embeddings import Embeddings, Floats
from pairmill.pipeline.score.embeddings import read_vectors
from pairmill.pipeline.select.comparisons import exact_numbers
from pairmill.pipeline.select.keys import SAMPLE, uid_hashes

_MAX_POINTS, _MAX_CONFUSIONS = 20, 50
_MAX_ROWS = 1_000_000
"""If there are more labeled rows than this, the thresholds of a score are measured on a sample."""


def measure_retrieval(
    rows: RowFilter, alias: str, limit: int, on_step: OnStep = ignore_step
) -> tuple[RetrievalResult, Section]:
    """Measure retrieval in both directions, among at most `limit` pictures. Raises EvaluateError, DatasetError and
    SubsetError."""
    read = read_retrieval(rows, alias, limit, on_step)
    to_picture, to_text = text_to_picture(read.data, on_step=on_step), picture_to_text(read.data, on_step=on_step)
    notes = [*read.facts]
    if tied := to_picture.tied + to_text.tied:
        notes.append(
            f"{tied:,} of the queries tied: other embeddings are exactly as similar as the match, which is ranked first"
        )
    result = RetrievalResult(
        pictures=len(read.data.pictures),
        captions=len(read.data.captions),
        text_to_picture=_direction(to_picture),
        picture_to_text=_direction(to_text),
        mean_recall_at_1=(to_picture.recall_at(1) + to_text.recall_at(1)) / 2,
        notes=notes,
    )
    return result, retrieval_section(result, to_picture, to_text)


def measure_zero_shot(
    rows: RowFilter,
    embeddings: Embeddings,
    source: LabelSource,
    names: Sequence[str],
    embed: Callable[[], Floats],
    on_step: OnStep = ignore_step,
    overlap: Overlap | None = None,
) -> tuple[ZeroShotResult, Section]:
    """Measure zero-shot accuracy on the labeled rows. `embed`: returns the embeddings [classes, dim] of the named
    classes. This can take long, so it is called only when a row with an embedding and the label of a class is found.
    `overlap`: pictures on which the accuracy is compared with the accuracy on all other pictures.

    Raises EvaluateError, DatasetError and SubsetError, and whatever `embed` raises.
    """
    labels, index, num_without = source.open(rows.snapshot), ClassIndex(names), 0
    accuracy: Accuracy | None = None
    of_overlap: Accuracy | None = None
    for part in labeled_rows(rows, labels, [embeddings.column], on_step):
        vectors, is_valid = read_vectors(part.rows[embeddings.column])
        is_valid &= vectors.any(axis=1)
        num_without += int((~is_valid).sum())
        targets = index.of(part.labels)
        used = is_valid & (targets >= 0)
        if accuracy is None and used.any():
            classes = embed()
            check_dim(classes, embeddings.dim)
            accuracy, of_overlap = Accuracy(classes), Accuracy(classes)
        if accuracy is not None:
            accuracy.add(vectors[used], targets[used])
        if overlap is not None and of_overlap is not None:
            used &= overlap.has(part.rows["uid"])
            of_overlap.add(vectors[used], targets[used])
    notes = [*labels.facts(), *index.facts(), *_without(num_without, "no embedding of the picture")]
    if accuracy is None:
        raise EvaluateError("\n".join(["no row of the dataset has an embedding and the label of a class", *notes]))
    result = _zero_shot(names, accuracy, notes)
    if overlap is not None and of_overlap is not None:
        result = _with_overlap(result, accuracy, of_overlap)
    return result, zero_shot_section(result)


def measure_threshold(
    rows: RowFilter, score: str, source: LabelSource, precision: float, on_step: OnStep = ignore_step
) -> tuple[ThresholdResult, Section]:
    """Measure precision and recall of a score against labels. Raises EvaluateError, DatasetError and SubsetError."""
    check_column(rows.snapshot, score)
    kind = rows.snapshot.schema.field(score).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise EvaluateError(f"the column {score!r} is {kind}; a score must be a number")
    labels, kept, num_labeled = source.open(rows.snapshot), LowestHashes(_MAX_ROWS), 0
    for part in labeled_rows(rows, labels, [score], on_step):
        values, has_score = exact_numbers(part.rows[score].combine_chunks())
        num_labeled += len(values)
        hashes = uid_hashes(part.rows["uid"], SAMPLE, 0)
        kept.add(hashes[has_score], part.labels.filter(pa.array(has_score)), values[has_score])
    if not num_labeled:
        raise EvaluateError("\n".join(["no row of the dataset has a label", *labels.facts()]))
    _, found, values = kept.rows()
    target = target_of(found, source.positive)
    curve = ThresholdCurve.of(values, target.is_positive)
    without = _without(num_labeled - kept.num_added, f"no {score}")
    chosen = [curve.for_precision(precision, is_certain) for is_certain in (False, True)]
    first, certain = (None if index is None else _point(curve.point(index)) for index in chosen)
    shown = sorted({*curve.spread(_MAX_POINTS), *(index for index in chosen if index is not None)})
    result = ThresholdResult(
        score=score,
        positive=target.name,
        rows=len(found),
        positives=int(target.is_positive.sum()),
        auc=curve.auc,
        average_precision=curve.average_precision,
        points=[_point(curve.point(index)) for index in shown],
        wanted_precision=precision,
        found=first,
        found_certain=certain,
        notes=[*labels.facts(), *without, *kept.facts(), *_upside_down(score, target, curve)],
    )
    return result, threshold_section(result, kind)


def _without(rows: int, why: str) -> list[str]:
    return [f"{counted(rows, 'labeled row')} left out: {why}"] if rows else []


def _upside_down(score: str, target: Target, curve: ThresholdCurve) -> list[str]:
    return (
        [f"{score} is lower for {target.name!r} than for other labels: the ROC AUC is below 0.5"]
        if curve.auc < 0.5
        else []
    )


def _direction(ranks: Ranks) -> Direction:
    at_1, at_5, at_10 = (ranks.recall_at(k) for k in (1, 5, 10))
    return Direction(len(ranks.better), at_1, at_5, at_10, ranks.median_rank, ranks.tied)


def _point(point: Point) -> ThresholdPoint:
    return ThresholdPoint(
        point.threshold, point.kept, point.precision, point.precision_interval, point.recall, point.recall_interval
    )


def _with_overlap(result: ZeroShotResult, every: Accuracy, overlap: Accuracy) -> ZeroShotResult:
    compared, notes = compare(int(every.top1.sum()), every.rows, int(overlap.top1.sum()), overlap.rows)
    return replace(result, overlap=compared, notes=[*result.notes, *notes])


def _zero_shot(names: Sequence[str], accuracy: Accuracy, notes: Sequence[str]) -> ZeroShotResult:
    top1, top5, rows = int(accuracy.top1.sum()), int(accuracy.top5.sum()), accuracy.rows
    per_class = [
        ClassAccuracy(names[number], total, hits, hits5, wilson(hits, total))
        for number, (total, hits, hits5) in enumerate(
            zip(accuracy.totals.tolist(), accuracy.top1.tolist(), accuracy.top5.tolist(), strict=True)
        )
        if total
    ]
    return ZeroShotResult(
        classes=len(names),
        rows=rows,
        top1=top1 / rows,
        top1_interval=wilson(top1, rows),
        top5=top5 / rows,
        top5_interval=wilson(top5, rows),
        mean_per_class=accuracy.mean_per_class,
        per_class=sorted(per_class, key=lambda each: each.top1 / each.rows),
        confusions=[
            NamedConfusion(names[each.true], names[each.predicted], each.count)
            for each in accuracy.confusions(_MAX_CONFUSIONS)
        ],
        notes=notes,
    )
