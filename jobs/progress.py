"""Reports a job's progress, on a terminal, in a log file, in a notebook or to your own listener."""

import io
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Protocol, TextIO

from pairmill.jobs.live_line import RunState
from pairmill.pipeline.common.progress import WorkCounts
from pairmill.pipeline.common.terminal_text import PLAIN_COLUMNS, cells, columns_of, padded, without_controls, wrapped
from pairmill.pipeline.common.text import counted
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.status import Status

PLAIN_INTERVAL_S = 5.0
"""Time between two lines that cannot be overwritten."""
LIVE_INTERVAL_S = 0.1
NOTEBOOK_WIDTH = 100

NETWORK_FAILURES = (Status.DNS_ERROR, Status.CONNECT_ERROR, Status.CONNECTION_LOST, Status.TIMEOUT)
WARN_SHARE = 0.4
"""Warn if a larger share of a shard's rows fails on the network. Old lists normally lose a quarter to dead hosts."""
WARN_JUMP = 2.0
"""Warn only if the share is this many times that of all rows that were judged earlier."""
WARN_INTERVAL_S = 60.0
WARN_ROWS = 100
"""Shards with fewer rows are judged together: a share of a few rows says nothing."""


class ProgressListener(Protocol):
    """Receives the progress of a build, an embed, a retry or an added model, in the thread that started it.

    Subclass it to write your own. Methods that you do not override do nothing. (Each has a `return`, because type
    checkers consider methods of a Protocol without any statement abstract.)
    """

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        """The job is planned. Rows are input rows; `rows_done` were done by earlier runs."""
        return

    def working(self, work: Mapping[str, WorkCounts]) -> None:
        """Called about once a second: stage -> what its workers have done so far, even inside shards."""
        return

    def committed(self, manifest: ShardManifest) -> None:
        """A shard was committed."""
        return

    def columns_added(self, manifest: ShardManifest) -> None:
        """A shard that was committed before has received the columns of a model or a score."""
        return

    def failed(self, shard: int, error: str) -> None:
        """A shard failed in this run. `error`: the last line of its traceback."""
        return


class ColumnsProgress(ProgressListener):
    """Passes on the progress of a command that adds columns to shards that other commands have committed."""

    def __init__(self, listener: ProgressListener) -> None:
        """`listener`: receives the progress."""
        self._listener = listener

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        """Pass the call on."""
        self._listener.planned(description, shards_left, rows_left, rows_done)

    def working(self, work: Mapping[str, WorkCounts]) -> None:
        """Pass the call on."""
        self._listener.working(work)

    def committed(self, manifest: ShardManifest) -> None:
        """Report added columns: the shard itself was committed earlier."""
        self._listener.columns_added(manifest)

    def failed(self, shard: int, error: str) -> None:
        """Pass the call on."""
        self._listener.failed(shard, error)


class _Nowhere(io.StringIO):
    """Forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)


class ConsoleProgress(ProgressListener):
    """Shows a live line on a terminal, or a line every few seconds elsewhere, on stderr: stdout is for results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream`: where to write. None: sys.stderr, or nowhere if the process has none."""
        self.stream = stream or sys.stderr or _Nowhere()
        self.live = self.stream.isatty()
        self.state = RunState()
        self.failures = 0
        self._next_warning = 0.0
        self._judged, self._recent = Counter[str](), Counter[str]()
        """Status -> rows, of the shards that were judged by their network failures, and of those since then."""
        self._last_line = time.monotonic()
        self._shown = self._latest = ""
        """The line on the terminal or the last line in the log, and the newest line, which may not be shown yet."""
        self._is_step = False

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        """Show the plan and how much is left to do."""
        self.state.rows_left, self.state.shards_left = rows_left, shards_left
        self.say(description)
        if rows_done:
            self.say(f"{counted(rows_done, 'row')} already done; {rows_left:,} to go")
        if shards_left:
            self.say("starting workers ...")

    def watching(self, shards_left: int, rows_left: int, rows_done: int) -> None:
        """Show how much is left when another process does the work."""
        self.state.rows_left, self.state.shards_left = rows_left, shards_left
        self.say(f"{counted(rows_done, 'row')} done; {rows_left:,} in {counted(shards_left, 'shard')} to go")

    def working(self, work: Mapping[str, WorkCounts]) -> None:
        """Show progress inside the shards."""
        self.state.update(work)
        if self.state.work:
            self._show(self.state.line(self._width()))

    def committed(self, manifest: ShardManifest) -> None:
        """Show the new totals, and warn if the network seems to be failing."""
        self._warn_of_failures(manifest)
        self.state.commit(manifest)
        self._show(self.state.line(self._width()), is_last=self.state.shards == self.state.shards_left)

    def columns_added(self, manifest: ShardManifest) -> None:
        """Show the new totals, without what earlier commands kept and lost."""
        self.state.add_columns(manifest)
        self._show(self.state.line(self._width()), is_last=self.state.shards == self.state.shards_left)

    def failed(self, shard: int, error: str) -> None:
        """Name the shard. The reason is printed at the end."""
        self.failures += 1
        self.say(f"shard {shard:09d} failed")

    def step(self, name: str, done: int, total: int) -> None:
        """Show how many parts of a step are done, in commands such as select, export, verify and report. The line is
        removed at the end."""
        self._is_step = True
        share = f"{done:,}/{total:,}"
        self._show(f"{name[: self._width() - len(share) - 2]}  {share}")

    def close(self) -> None:
        """End the live line: keep that of a run, remove that of a step. May be called more than once."""
        if self.live and self._shown:
            self._overwrite("" if self._is_step else f"{self._latest}\n")
            self._shown = ""
            self.stream.flush()

    def _show(self, line: str, is_last: bool = False) -> None:
        """Show the line, unless the previous one is too recent. The last line of a run is always shown."""
        now, self._latest = time.monotonic(), line
        is_early = now - self._last_line < (LIVE_INTERVAL_S if self.live else PLAIN_INTERVAL_S)
        if line == self._shown or (is_early and not is_last):
            return
        self._last_line = now
        if self.live:
            self._overwrite(line)
        else:
            self.stream.write(f"{line}\n")
        self._shown = line
        self.stream.flush()

    def _overwrite(self, text: str) -> None:
        """Write the text over the live line."""
        self.stream.write(f"\r\x1b[2K{text}")

    def say(self, text: str) -> None:
        """Print lines above the live line."""
        text = without_controls(text)
        if self.live:
            text = wrapped(text, self._width())
        if self.live and self._shown:
            self._overwrite(f"{text}\n{self._shown}")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()

    def _width(self) -> int:
        """One column less than the terminal has, because a wrapped line could not be overwritten."""
        return columns_of(self.stream) - 1 if self.live else PLAIN_COLUMNS

    def _warn_of_failures(self, manifest: ShardManifest) -> None:
        """Warn if many rows of a shard failed: a DNS outage shows in one shard long before it shows in the totals."""
        self._recent.update(manifest.statuses)
        if (rows := self._recent.total()) < WARN_ROWS:
            return
        failures = Counter({name: self._recent[name] for name in NETWORK_FAILURES})
        share = failures.total() / rows
        before = sum(self._judged[name] for name in NETWORK_FAILURES) / max(self._judged.total(), 1)
        self._judged, self._recent = self._judged + self._recent, Counter()
        now = time.monotonic()
        if share < WARN_SHARE or share < WARN_JUMP * before or now < self._next_warning:
            return
        self._next_warning = now + WARN_INTERVAL_S
        (reason, count), *_ = failures.most_common(1)
        of = f"shard {manifest.shard:09d}" if rows == manifest.rows_in else f"the last {rows:,} rows"
        self.say(
            f"warning: {share:.0%} of {of} failed on the network, most often with {reason} "
            f"({count:,}): check the name servers and the network, or lower fetch.concurrency; `pairmill retry` "
            "fetches these rows again"
        )


class NotebookProgress(ConsoleProgress):
    """The live line below a notebook cell, which supports carriage returns but no terminal codes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream`: where to write. None: sys.stdout, because notebooks show stderr as errors."""
        super().__init__(stream or sys.stdout)
        self.live = True

    def _overwrite(self, text: str) -> None:
        first, newline, rest = text.partition("\n")
        self.stream.write(f"\r{padded(first, cells(self._shown))}{newline}{rest}")

    def _width(self) -> int:
        return NOTEBOOK_WIDTH


def default_progress() -> ConsoleProgress:
    """The progress display for this process: a notebook's or the console's."""
    return NotebookProgress() if _is_notebook() else ConsoleProgress()


def _is_notebook() -> bool:
    """Whether this is a Jupyter kernel. In a kernel, IPython is already loaded."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
