"""Prints what each step of a selection did: one line of counts, then details."""

import sys
from collections.abc import Sequence

from pairmill.jobs.cli.terminal import say
from pairmill.pipeline.common.terminal_text import cells, columns_of, padded
from pairmill.pipeline.common.text import counted
from pairmill.pipeline.leak.notes import leak_notes
from pairmill.schemas.balance import BalanceReport
from pairmill.schemas.known import KnownReport
from pairmill.schemas.leak import LeakReport
from pairmill.schemas.repeat import RepeatReport
from pairmill.schemas.select_steps import SelectStep
from pairmill.schemas.subset import StepReport

_OTHER_CHARS = len("   ->   100.00%")
"""Width of a line without the name and the two counts."""
_MIN_NAME_CHARS = 16


def print_reports(reports: Sequence[StepReport], steps: Sequence[SelectStep | None] = ()) -> None:
    """Print the reports, and a warning if a step dropped all rows. `steps`: their settings, if known."""
    digits = max(len(f"{report.rows_in:,}") for report in reports)
    room = columns_of(sys.stdout) - 2 * digits - _OTHER_CHARS
    width = min(max(cells(report.step) for report in reports), max(room, _MIN_NAME_CHARS))
    for number, report in enumerate(reports):
        name = report.step
        if cells(name) > width:  # on a line of its own, so that the numbers stay in their columns
            say(name)
            name = ""
        share = f"{report.rows_out / report.rows_in:8.2%}" if report.rows_in else "       -"
        say(f"{padded(name, width)}  {report.rows_in:>{digits},} -> {report.rows_out:>{digits},} {share}")
        _print_details(report, steps[number] if steps else None)
        if report.rows_in and not report.rows_out:
            say(f"pairmill: {report.step!r} dropped all {counted(report.rows_in, 'row')}", err=True)


def _print_details(report: StepReport, step: SelectStep | None) -> None:
    if report.threshold is not None:
        say(f"    threshold {report.threshold:.6g}")
    if report.without_score:
        say(f"    {counted(report.without_score, 'row')} kept without a score, because too few rows have one")
    if step and step.count and step.count > report.rows_in:
        say(f"    fewer rows than the {step.count:,} requested")
    if report.uids:
        _print_uids(report)
    if report.balance:
        _print_balance(report.balance)
    if report.repeat:
        _print_repeat(report.repeat)
    if report.known:
        _print_known(report.known)
    if report.leak:
        _print_leak(report.leak)
    _print_duplicates(report)


def _print_duplicates(report: StepReport) -> None:
    if report.not_compared:
        say(f"    {counted(report.not_compared, 'row')} not compared: the value is missing or unusable")
    if report.low_quality:
        say(f"    {counted(report.low_quality, 'row')} with a hash of low quality compared only with equal hashes")
    if report.largest_clusters:
        say("    the rows with the most dropped duplicates:")
    for cluster in report.largest_clusters:
        say(f"    {counted(cluster.rows - 1, 'duplicate')} of {cluster.row_id} {cluster.url or ''}".rstrip())


def _print_repeat(found: RepeatReport) -> None:
    say(f"    weights up to {found.highest:.6g}, {found.weight_sum:,.1f} samples per epoch in total")
    say(f"    {counted(found.rows_below_one, 'row')} with a weight below 1 (not in every epoch)")


def _print_uids(report: StepReport) -> None:
    """Print how many uids are in the file, how many were not found, and whether the file has changed."""
    assert report.uids is not None
    missing = report.uids.num_uids - report.rows_out
    unknown = f"; {missing:,} of them in no row left by the previous steps" if missing else ""
    say(f"    {counted(report.uids.num_uids, 'uid')} in the file{unknown}")
    if report.uids.earlier_blake2b:
        say("pairmill: the file of uids has changed since the subset was last selected", err=True)


def _print_balance(found: BalanceReport) -> None:
    """Print the number of entries, what happened to rows without any, and how many rows the frequent entries kept."""
    tail = found.tail_matches / max(1, found.matches)
    facts = [] if found.listed_entries is None else [f"{found.listed_entries:,} in the file"]
    facts += ["counted once per language"] if found.curves else []
    of = f" ({'; '.join(facts)})" if facts else ""
    limit = found.threshold_text
    say(f"    {counted(found.entries, 'entry')}{of}; {found.head_entries:,} with more rows than the threshold {limit}")
    if found.entries == found.matches > 1:
        say("    no entry is in two rows: balance by something more frequent, such as a class")
    say(f"    the other entries have {tail:.1%} of {counted(found.matches, 'match')}, and keep all rows")
    fate = "kept" if found.keeps_unmatched else "dropped"
    if found.unmatched_rows:
        say(f"    {counted(found.unmatched_rows, 'row')} without an entry: {fate}")
    digits = max((len(f"{each.rows:,}") for each in found.head), default=0)
    for each in found.head:
        language = f" ({each.language})" if each.language else ""
        say(f"    {each.rows:>{digits},} -> {each.kept:>{digits},} of {each.entry}{language}")
    if found.earlier_blake2b:
        say("pairmill: the file of entries has changed since the subset was last selected", err=True)


def _print_known(known: KnownReport) -> None:
    """Print what the rows were compared with, what could not be used, and whether the known rows have changed."""
    values = ", ".join(f"{count:,} by {kind}" for kind, count in known.values.items() if count)
    unused = "".join(f"; {count:,} x {reason}" for reason, count in sorted(known.unused.items()))
    say(f"    compared with known rows: {values or 'none'}{unused}")
    for kind, count in known.not_compared.items():
        say(f"    {counted(count, 'row')} not compared by {kind}: the value is missing or unusable")
    if known.earlier_blake2b:
        say("pairmill: the known rows have changed since the subset was last selected", err=True)


def _print_leak(found: LeakReport) -> None:
    """Print how much of the evaluation set is in the dataset, and how its pictures were found."""
    share = found.items_hit / max(1, found.items)
    say(f"    {found.items_hit:,} of {counted(found.items, 'evaluation picture')} found ({share:.2%})")
    for each in found.found:
        how = each.by if each.variant == "same" else f"{each.by}, {each.variant.replace('_', ' and ')}"
        say(f"    {counted(each.items, 'picture')} by {how}: {counted(each.rows, 'row')} first found this way")
    for note in leak_notes(found):
        say(f"    {note}")
    if found.earlier_blake2b:
        say("pairmill: the evaluation set has changed since the subset was last selected", err=True)
