"""Turns errors into messages, and prints the output that all commands share."""

import io
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from pairmill.pipeline.common.terminal_text import columns_of, without_controls, wrapped
from pairmill.schemas.errors import PairmillError

if TYPE_CHECKING:
    from pairmill.jobs.progress import ConsoleProgress
    from pairmill.pipeline.common.storage import Store

_END_SIGNALS = [signal.SIGTERM, signal.SIGHUP]
"""Signals that end a command as Ctrl-C does. They are sent by `kill`, by schedulers, and when a terminal is closed."""

_CLICK_ERROR: type[Exception] = typer.BadParameter.mro()[2]
"""click's ClickException, which Typer does not export."""


class _Signalled(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def errors() -> Iterator[None]:
    """Print an error that a user can fix as one clear message, not as a traceback, and exit with status 1."""
    try:
        with _interrupted_by_signals():
            yield
    except Exception as error:
        if not _is_expected(error) or (isinstance(error, BrokenPipeError) and _reader_is_gone()):
            raise
        say(f"pairmill: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        say_stopped("Stopped.")
        sys.exit(exit_status(stop))


@contextmanager
def stdout_errors() -> Iterator[None]:
    """Print one clear message and exit with status 1 if stdout cannot be written to (the disk may be full), or if
    --install-completion cannot write to a file of the shell.

    A closed pipe (`| head`) is not an error: click ends the command without a message. Outside `errors`, commands only
    print, so a system error that names no file comes from stdout.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and "--install-completion" in sys.argv:
            remedy = "set HOME to a folder that you can write to, or use --show-completion"
            say_stopped(f"pairmill: {error.filename}: cannot be written to ({error.strerror}); {remedy}")
            sys.exit(1)
        if error.filename is not None or error.strerror is None:  # pairmill's own errors have only a message
            raise
        say_stopped(f"pairmill: stdout cannot be written to: {error.strerror}")
        sys.exit(1)
    finally:
        _drop_unwritable()


@contextmanager
def usage_errors() -> Iterator[None]:
    """Print what is wrong with the command line, as click does, and exit with status 2."""
    try:
        yield
    except _CLICK_ERROR as error:
        text = io.StringIO()
        error.show(text)  # type: ignore[attr-defined]
        say(text.getvalue().rstrip("\n"), err=True)
        sys.exit(error.exit_code)  # type: ignore[attr-defined]


def _drop_unwritable() -> None:
    """Discard output that cannot be written to stdout. Otherwise, Python would try again on exit and fail again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let the signals in `_END_SIGNALS` interrupt the block. An ignored signal, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        raise _Signalled(number)

    before = {number: signal.getsignal(number) for number in _END_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status after a signal: 128 plus its number, as in shells."""
    return 128 + (stop.number if isinstance(stop, _Signalled) else signal.SIGINT)


def say(text: str, err: bool = False, margin: int = 0) -> None:
    """Print lines on stdout or stderr, without control characters. On a terminal, they are wrapped to its width without
    the margin."""
    stream, text = sys.stderr if err else sys.stdout, without_controls(text)
    if stream is not None and stream.isatty():
        text = wrapped(text, columns_of(stream) - margin)
    typer.echo(text, err=err)


def say_as_is(text: str) -> None:
    """Print a file or a log on stdout with its own lines, but without control characters."""
    typer.echo(without_controls(text.replace("\r\n", "\n").replace("\r", "\n")), nl=False)
    sys.stdout.flush()


def say_stopped(text: str) -> None:
    """Print the text on stderr, unless the terminal is gone."""
    with suppress(OSError):
        say(text, err=True, margin=len("^C"))  # which the terminal shows in front of the text


@contextmanager
def progress(after_stop: str) -> Iterator["ConsoleProgress"]:
    """Show the progress of the block. Ctrl-C ends the command with `after_stop`, which says how to continue."""
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
    """Print the result of `--json`, as one line."""
    typer.echo(json.dumps(values))


def open_store(output: str, settings: list[str] | None) -> "Store":
    """Open the output folder of a command that takes no job."""
    from pairmill.jobs.job_file import parse_settings, s3_of
    from pairmill.pipeline.common.storage import Store

    return Store(output, s3_of(parse_settings(settings or [])))


def _is_expected(error: Exception) -> bool:
    """Whether the error comes from pairmill, the file system or S3. Any other error is a bug, and its traceback is
    shown."""
    return isinstance(error, (PairmillError, OSError)) or type(error).__module__.partition(".")[0] == "botocore"
