"""The border where errors become messages, and what all commands print alike."""

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
"""File names and columns from outside stand in messages: none may speak to the terminal."""


@contextmanager
def errors() -> Iterator[None]:
    """The job's border: what a person can put right is one clear message and exit status 1, not a traceback."""
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
    """Shows how the block goes. Ctrl-C ends the command with the words of `after_stop`, which say how to continue."""
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
    """What `--json` prints, as the last line."""
    typer.echo(json.dumps(values))


def open_store(output: str, settings: list[str] | None) -> "Store":
    """The output folder of a command that takes no job."""
    from pairmill.jobs.job_file import parse_settings, s3_of
    from pairmill.pipeline.common.storage import Store

    return Store(output, s3_of(parse_settings(settings or [])))


def _is_expected(error: Exception) -> bool:
    """Errors of ours, of the file system and of S3; anything else is a bug and keeps its traceback."""
    return isinstance(error, (PairmillError, OSError)) or type(error).__module__.partition(".")[0] == "botocore"
