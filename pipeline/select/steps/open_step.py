"""Converts the steps of a job file to steps that can run."""

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.select.expressions import Expression
from pairmill.pipeline.select.steps.balance import BalanceStep
from pairmill.pipeline.select.steps.dedup import DedupStep
from pairmill.pipeline.select.steps.dedup_embedding import EmbeddingDedupStep
from pairmill.pipeline.select.steps.known import KnownStep
from pairmill.pipeline.select.steps.repeat import RepeatStep
from pairmill.pipeline.select.steps.step import Step
from pairmill.pipeline.select.steps.top import TopStep
from pairmill.pipeline.select.steps.uids import UidsStep
from pairmill.pipeline.select.steps.where import WhereStep
from pairmill.schemas.select_steps import SelectStep


def open_step(step: SelectStep, files: Files) -> Step:
    """Create the step for an entry of a job file, and open the files that it names. Raises ExpressionError or
    StepError."""
    if step.where is not None:
        return WhereStep(Expression(step.where))
    if step.top is not None:
        return TopStep.of(step.top)
    if step.sample is not None:
        return TopStep.of(step.sample)
    if step.dedup is not None:
        model = step.dedup.model
        return DedupStep(step.dedup) if model is None else EmbeddingDedupStep.of(step.dedup, model)
    if step.uids is not None:
        return UidsStep.open(files, step.uids)
    if step.balance is not None:
        return BalanceStep.open(files, step.balance)
    if step.repeat is not None:
        return RepeatStep(step.repeat)
    if step.known is not None:
        return KnownStep.open(files, step.known)
    raise AssertionError(step)
