"""What all commands share: options that mean the same everywhere, and the border where errors become messages."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.schemas.errors import PairmillError

if TYPE_CHECKING:
    from pairmill.pipeline.common.storage import Store

JobFile = Annotated[str | None, typer.Option("--job", help="Job file (YAML); flags win over it.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the job: run.address=auto."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
S3Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="How OUT is reached: s3.endpoint=http://...")
]
Output = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job, or its s3:// URL.")]

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


def open_store(output: str, settings: list[str] | None) -> "Store":
    """The output folder of a command that takes no job."""
    from pairmill.jobs.job_file import parse_settings, s3_of
    from pairmill.pipeline.common.storage import Store

    return Store(output, s3_of(parse_settings(settings or [])))


def _is_expected(error: Exception) -> bool:
    """Errors of ours, of the file system and of S3; anything else is a bug and keeps its traceback."""
    return isinstance(error, (PairmillError, OSError)) or type(error).__module__.partition(".")[0] == "botocore"
