"""The border where errors become messages, and what all commands print alike."""

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from pairmill.schemas.errors import PairmillError

if TYPE_CHECKING:
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.storage import Store

_ENDING = [signal.SIGTERM, signal.SIGHUP]
"""Besides Ctrl-C: what `kill`, schedulers and a closed terminal send."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""File names and columns from outside stand in messages: none may speak to the terminal."""


class _Signalled(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def errors() -> Iterator[None]:
    """The job's border: what a person can put right is one clear message and exit status 1, not a traceback."""
    try:
        with _interrupted_by_signals():
            yield
    except Exception as error:
        if not _is_expected(error):
            raise
        typer.echo(f"pairmill: {_CONTROLS.sub('?', str(error))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        say_stopped("Stopped.")
        sys.exit(exit_status(stop))


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let the signals of `_ENDING` interrupt the block. One that is ignored stays ignored, as under nohup."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        raise _Signalled(number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(stop: KeyboardInterrupt) -> int:
    """128 plus the number of the signal, as shells use it."""
    return 128 + (stop.number if isinstance(stop, _Signalled) else signal.SIGINT)


def say_stopped(text: str) -> None:
    """Print the text on stderr, unless the terminal is gone."""
    with suppress(OSError):
        typer.echo(text, err=True)


@contextmanager
def progress(after_stop: str) -> Iterator["ConsoleProgress"]:
    """Show progress of the block. Ctrl-C ends the command with the words of `after_stop`, which say how to continue."""
    from pairmill.jobs.progress import ConsoleProgress

    listener = ConsoleProgress()
    try:
        yield listener
    except KeyboardInterrupt as stop:
        with suppress(OSError):
            listener.close()
        say_stopped(f"Stopped. {after_stop}")
        raise typer.Exit(exit_status(stop)) from None
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
