"""Runs the steps of a select job."""

from collections.abc import Sequence

from pairmill.pipeline.select.outputs import NoOutput
from pairmill.pipeline.select.selector import Selector
from pairmill.pipeline.select.steps.step import Step


def run_steps(selector: Selector, steps: Sequence[Step]) -> None:
    """Run all steps in order, numbered from 0. Afterwards, `drop_step` and `counts` of the selector are final."""
    for number, step in enumerate(steps):
        selector.on_step(number)
        step.run(selector, number)
    selector.scan(NoOutput())
