"""`pairmill demo`."""

from typing import Annotated

import typer

from pairmill.jobs.cli.options import Json
from pairmill.jobs.cli.terminal import errors, exit_status, say_stopped


def demo(
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="Folder to write to.")] = "demo-out",
    pairs: Annotated[int, typer.Option(metavar="N", help="Number of pairs to generate and serve.", min=200)] = 2400,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all pictures, captions and faults.")] = 2026,
    as_json: Json = False,
) -> None:
    """Build a dataset from a small simulated web.

    Serves synthetic pictures with known ground truth on loopback addresses, runs the real build, and compares the
    result with the ground truth.
    """
    with errors():
        from pairmill.jobs.demo.demo import run_demo

        try:
            matches = run_demo(out, pairs, seed, as_json)
        except KeyboardInterrupt as stop:
            say_stopped("Stopped: nothing is left running. The same command starts a new demo.")
            raise typer.Exit(exit_status(stop)) from None
    if not matches:
        raise typer.Exit(1)
