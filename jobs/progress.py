"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere, the funnel at the end."""

import shutil
import sys
import time
from collections import Counter
from typing import TextIO

from pairmill.pipeline.common.text import counted
from pairmill.schemas.manifest import ShardManifest
from pairmill.schemas.status import Status

PLAIN_INTERVAL_S = 5.0
TOP_REASONS = 3

NETWORK_FAILURES = (Status.DNS_ERROR, Status.CONNECT_ERROR, Status.CONNECTION_LOST, Status.TIMEOUT)
WARN_SHARE = 0.4
"""Of a shard's rows that failed on the network. Old lists lose a quarter to dead hosts without anything being wrong."""
WARN_JUMP = 2.0
"""Times the share of all shards before it."""
WARN_INTERVAL_S = 60.0


class ConsoleProgress:
    """Writes to stderr, so that stdout holds results only. Rates count the rows of this run."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self.statuses: Counter[str] = Counter()
        self.input_rows = self.rows = self.pairs = self.kept = self.shards = self.failures = 0
        self.rows_left = self.shards_left = self.first_rows = 0
        self.first_commit = self.next_warning = 0.0
        self.last_line = time.monotonic()

    def planned(self, description: str, shards_left: int, rows_left: int, rows_done: int) -> None:
        """Print the plan, and how much of it earlier runs have done."""
        self.rows_left, self.shards_left = rows_left, shards_left
        self._print(description)
        if rows_done:
            self._print(f"{rows_done:,} rows are done already; {rows_left:,} to go")
        if shards_left:
            self._print("starting workers, which takes a quarter of a minute ...")

    def watching(self, shards_left: int, rows_left: int, rows_done: int) -> None:
        """Another process does the work."""
        self.rows_left, self.shards_left = rows_left, shards_left
        self._print(f"{rows_done:,} rows are done; {rows_left:,} in {counted(shards_left, 'shard')} to go")

    def committed(self, manifest: ShardManifest) -> None:
        """Count the shard and show the new totals."""
        self._warn_of_failures(manifest)
        self.statuses.update(manifest.statuses)
        self.input_rows += manifest.num_rows
        self.rows += manifest.rows_in  # more, where a row has a list of captions
        self.pairs += manifest.pairs
        self.kept += manifest.kept
        self.shards += 1
        now = time.monotonic()
        if self.shards == 1:
            self.first_commit, self.first_rows = now, manifest.num_rows
        if self.live:
            line = self.line()[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be cleared
            self.stream.write(f"\r\x1b[2K{line}")
            self.stream.flush()
        elif now - self.last_line >= PLAIN_INTERVAL_S or self.shards in (1, self.shards_left):
            self.last_line = now
            self._print(self.line())

    def _warn_of_failures(self, manifest: ShardManifest) -> None:
        """A bad night of DNS shows as a jump in one shard, long before it shows in the sums."""
        failures = Counter({name: manifest.statuses.get(name, 0) for name in NETWORK_FAILURES})
        share = failures.total() / max(manifest.rows_in, 1)
        before = sum(self.statuses[name] for name in NETWORK_FAILURES) / max(self.rows, 1)
        now = time.monotonic()
        if share < WARN_SHARE or share < WARN_JUMP * before or now < self.next_warning:
            return
        self.next_warning = now + WARN_INTERVAL_S
        (reason, count), *_ = failures.most_common(1)
        self._print(
            f"warning: {share:.0%} of shard {manifest.shard:09d} failed on the network, {reason} {count:,}: are name "
            "servers and this network well, is fetch.concurrency too high? `pairmill retry` fetches such rows again"
        )

    def failed(self, shard: int, error: str) -> None:
        """Print that the shard failed; the summary at the end says why."""
        self.failures += 1
        self._print(f"shard {shard:09d} failed")  # why: in the end, once

    def close(self) -> None:
        """Leave the live line standing."""
        if self.live and self.shards:
            self.stream.write("\n")

    def line(self) -> str:
        """Rows, rate, share that became pairs and was kept, the main reasons for loss, time left."""
        losses = Counter({name: count for name, count in self.statuses.items() if name != Status.OK})
        reasons = ", ".join(f"{name} {count:,}" for name, count in losses.most_common(TOP_REASONS))
        rows = max(self.rows, 1)
        return (
            f"{self.input_rows:,}/{self.rows_left:,} rows  {self._speed()}pairs {self.pairs / rows:.0%}  "
            f"kept {self.kept / rows:.0%}" + (f"  lost: {reasons}" if reasons else "")
        )

    def _speed(self) -> str:
        """Rate and time left since the first commit: the start of the workers says nothing about what follows."""
        rows, seconds = self.input_rows - self.first_rows, time.monotonic() - self.first_commit
        if not rows or seconds <= 0:
            return ""
        left = max(self.rows_left - self.input_rows, 0) * seconds / rows
        return f"{rows / seconds:,.0f}/s  {_duration(left)} left  "

    def _print(self, text: str) -> None:
        clear = "\r\x1b[2K" if self.live else ""
        self.stream.write(f"{clear}{text}\n")
        self.stream.flush()


def funnel(rows_in: int, statuses: dict[str, int]) -> str:
    """How many rows were lost at each step and why, as a table of plain text."""
    lines = [f"{'rows in':<34}{rows_in:>12,}"]
    left = rows_in
    for status in Status:
        count = statuses.get(status, 0)
        if not count or status is Status.OK:
            continue
        left -= count
        lines.append(f"  {status.step:<8} {status:<23}{-count:>12,}{left:>12,}")
    lines.append(f"{'kept':<34}{statuses.get(Status.OK, 0):>12,}  {statuses.get(Status.OK, 0) / max(rows_in, 1):.1%}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"
