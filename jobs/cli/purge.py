"""`pairmill purge` and `gc`: withdraw rows from a dataset, and delete files that are no longer needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Json, Output, Settings
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress, say

if TYPE_CHECKING:
    from pairmill.jobs.purge import PurgeJob, PurgeResult
    from pairmill.jobs.upkeep import GcResult
    from pairmill.schemas.purge import ListKind, Purged

_SHOWN = 20
_EXPORT_REMEDIES = {
    "not found": "; if it was moved, purge it there with --export. If it was deleted or purged, delete {note}",
    "unfinished": "; its finished files were kept. Delete it and export again",
    "damaged": "; delete it and export again",
}


def _list(name: str, values: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar="FILE", help=values)
    return option


def purge(
    output: Output,
    uids: Annotated[str | None, _list("--uids", "Withdraw these uids.")] = None,
    urls: Annotated[str | None, _list("--urls", "Withdraw these URLs.")] = None,
    hosts: Annotated[str | None, _list("--hosts", "Withdraw all URLs that name these hosts or subdomains.")] = None,
    sha256: Annotated[
        str | None, _list("--sha256", "Withdraw pictures by the SHA-256 of their original bytes.")
    ] = None,
    pdq: Annotated[str | None, _list("--pdq", "Withdraw pictures within 31 bits of these PDQ hashes.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="WHY", help="Why; kept in the ledger.")] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Another export to purge, which OUT has no record of; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list what would change: shards, subsets, scores, reports and exports."),
    ] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Withdraw rows from a dataset.

    Removes them from pairs, rejects, pictures, embeddings, scores, subsets, search indexes, labels, reports and
    exports, and blocks them in later runs. Each FILE is text with one value per line, or Parquet with a column uid,
    url, host, sha256 or pdq. If interrupted, run it again to finish, with or without the lists. No other command may
    write to OUT during a purge.
    """
    lists: dict[ListKind, str | None] = {"uid": uids, "url": urls, "host": hosts, "sha256": sha256, "pdq": pdq}
    given: dict[ListKind, str] = {kind: path for kind, path in lists.items() if path is not None}
    with errors():
        from pairmill.jobs.purge import purge as run_purge
        from pairmill.pipeline.common.text import pairmill_command

        finish = pairmill_command("purge", output)
        after_stop = "Nothing was changed." if dry_run else f"Nothing is lost; to finish the purge: {finish}"
        with progress(after_stop) as listener:
            job = _job(given, reason, export or [], dry_run, settings)
            result = run_purge(open_store(output, settings), job, listener.step)
    _print_purge(result)
    if as_json:
        print_json(result.as_dict())
    if any(each.may_keep_rows for each in result.purged.exports):
        raise typer.Exit(1)


def _job(
    lists: "dict[ListKind, str]", reason: str | None, exports: list[str], dry_run: bool, settings: list[str] | None
) -> "PurgeJob":
    from pairmill.jobs.job_file import parse_settings
    from pairmill.jobs.purge import purge_job

    return purge_job(lists, reason, exports, dry_run, parse_settings(settings or []))


def _print_purge(result: "PurgeResult") -> None:
    from pairmill.pipeline.common.text import counted, shown_path
    from pairmill.pipeline.dataset.exports import note_name

    done, shown = result.purged, shown_path(result.output)
    rows, shards = counted(done.rows, "row"), counted(len(done.shards), "shard")
    if result.dry_run:
        say(f"{shown}: {rows} in {shards} would be withdrawn; nothing was changed")
        _print_not_compared(done)
        _print_unmatched(result)
        _print_names("shards", [f"{shard:,}" for shard in done.shards])
        of_subsets = [f"{name} (would lose {counted(rows, 'row')})" for name, rows in result.subset_rows.items()]
        _print_names("subsets that would be rewritten", of_subsets)
        of_scores = [f"{name} (in {counted(shards, 'shard')})" for name, shards in result.score_shards.items()]
        _print_names("scores that would be deleted, because such rows are in them", of_scores)
        _print_names("reports that would be deleted", done.reports)
        for export in done.exports:
            say(f"export that would be searched for such rows: {shown_path(export.output)}")
        return
    say(f"{shown}: {rows} withdrawn; {shards} rewritten")
    _print_not_compared(done)
    _print_unmatched(result)
    for title, names in (
        ("subsets rewritten", done.subsets),
        ("files of input/ blanked or deleted", done.inputs),
        ("labels rewritten", done.labels),
        ("search indexes rebuilt in part", done.indexes),
        ("scores deleted, because withdrawn rows are in them", list(done.scores)),
        ("reports deleted", done.reports),
    ):
        _print_names(title, names)
    if done.failures:
        say(f"{counted(done.failures, 'traceback')} of failed shards deleted")
    for export in done.exports:
        note = shown_path(f"{result.output}/{note_name(export.output)}")
        where = _EXPORT_REMEDIES.get(export.outcome, "").format(note=note)
        of_rows = f": {counted(export.rows, 'row')} withdrawn" if export.rows else ""
        say(f"export {shown_path(export.output)}: {export.outcome}{of_rows}{where}")
    say(f"{counted(done.files_deleted, 'old file')} deleted")
    for name in done.named_in_steps:
        say(
            f"a step of the subset {name} names a withdrawn value, which stays in subsets/{name}/selection.json: "
            "select the subset again without this value, with --overwrite"
        )
    for command in result.remedies:
        say(f"to recreate what was deleted: {command}")


def _print_not_compared(purged: "Purged") -> None:
    from pairmill.pipeline.common.text import counted

    if purged.not_compared:
        say(
            f"{counted(purged.not_compared, 'pair')} not compared with the PDQ hashes, because the column `pdq` has no "
            "hash of 64 hex digits there; to withdraw them, list their uids"
        )


def _print_unmatched(result: "PurgeResult") -> None:
    from pairmill.pipeline.common.text import clean_text, counted
    from pairmill.pipeline.purge.lists import NOUNS

    for kind, each in result.unmatched.items():
        listed, matches = counted(each.listed, f"listed {NOUNS[kind]}"), "matches" if each.values == 1 else "match"
        example = clean_text(each.example)
        say(f"{each.values:,} of {listed} {matches} no row in pairs/ or rejects/, such as {example}")


def _print_names(title: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        say(f"{title}: {', '.join(names[:_SHOWN])}{more}")


def gc(
    output: Output,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files.")] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Delete files that are no longer needed.

    These are superseded generations of shards and columns, and files that interrupted commands left behind. Files that
    pairmill did not write are kept.
    """
    with errors():
        from pairmill.jobs.upkeep import gc as run_gc

        result = run_gc(open_store(output, settings), dry_run)
    _print_gc(result)
    if as_json:
        print_json(result.as_dict())


def _print_gc(result: "GcResult") -> None:
    from pairmill.pipeline.common.text import counted, shown_path

    for file in result.files if result.dry_run else []:
        say(f"{file.name}: {file.why}")
    verb = "would be deleted" if result.dry_run else "deleted"
    say(
        f"{shown_path(result.output)}: {counted(len(result.files), 'file')}, {counted(result.num_bytes, 'byte')} {verb}"
    )
