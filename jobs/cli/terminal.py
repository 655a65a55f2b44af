"""Turns errors into messages, and prints what all commands have in common."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pairmill.schemas.errors import PairmillError

if TYPE_CHECKING:
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.storage import Store

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it (128 + SIGINT)."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters. Messages contain file names and columns from outside, which must not control the terminal."""


@contextmanager
def errors() -> Iterator[None]:
    """Print errors that a user can fix as one clear message with exit status 1, not as a traceback."""
    try:
        yield
    except Exception as error:
        if not _is_expected(error):
            raise
        typer.echo(f"pairmill: {_CONTROLS.sub('?', str(error))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
        sys.exit(INTERRUPTED)


@contextmanager
def progress(after_stop: str) -> Iterator["ConsoleProgress"]:
    """Show the progress of the block. Ctrl-C ends the command with `after_stop`, which says how to continue."""
    from pairmill.jobs.progress import ConsoleProgress

    listener = ConsoleProgress()
    try:
        yield listener
    except KeyboardInterrupt:
        listener.close()
        typer.echo(f"Stopped. {after_stop}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        listener.close()


def print_json(values: object) -> None:
    """Print the last line of `--json`."""
    typer.echo(json.dumps(values))


def open_store(output: str, settings: list[str] | None) -> "Store":
    """Open the output folder of a command that takes no job."""
    from pairmill.jobs.job_file import parse_settings, s3_of
    from pairmill.pipeline.common.storage import Store

    return Store(output, s3_of(parse_settings(settings or [])))


def _is_expected(error: Exception) -> bool:
    """Whether the error is ours, the file system's or S3's. Anything else is a bug and keeps its traceback."""
    return isinstance(error, (PairmillError, OSError)) or type(error).__module__.partition(".")[0] == "botocore"
