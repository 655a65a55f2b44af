"""`pairmill select` and `pairmill export`: select or mix rows, compare subsets and export them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Dataset, ExportOptions, JobFile, Json, SelectOptions, Settings
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress, say

if TYPE_CHECKING:
    from pairmill.jobs.export import ExportResult
    from pairmill.pipeline.common.storage import Store

_SHOWN = 5
_NOUNS = {"webdataset": "tar", "parquet": "Parquet file"}
"""What a part of an export is. In the other formats, it consists of several files."""


def select(
    dataset: Dataset,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the subset, written to DATASET/subsets/NAME.")
    ] = None,
    job_file: JobFile = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Begin with the steps of this preset; see pairmill presets.")
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="STEP",
            help="As in the job file, in order: 'where: similarity >= 0.28', 'top: {by: similarity, fraction: 0.3}', "
            "'dedup: {by: phash, distance: 4}', 'balance: {by: host, curve: 1000}', 'repeat: {by: score, mean: 1}', "
            "'sample: {count: 1000}', 'leak: EVALSET', 'uids: found.parquet'.",
        ),
    ] = None,
    all_pairs: Annotated[
        bool,
        typer.Option(
            "--all-pairs", help="Select from all pairs, including those that a score rule of the build dropped."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what each step would drop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing subset of this name.")] = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Select the subset NAME again with its own steps, for example after a retry."),
    ] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show how two subsets differ, and why.")
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET[:NAME]=SHARE",
            help="Mix this dataset, or a subset of it, into the new folder DATASET with this share; repeatable. A row "
            "found in several datasets is taken from the first of them.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --mix: samples per epoch; by default, as many as possible.", min=1),
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Select rows of a dataset, or mix datasets.

    Nothing is downloaded or embedded again, so you can try other steps at any time.
    """
    options = SelectOptions(
        dataset=dataset,
        name=name,
        job_file=job_file,
        preset=preset,
        steps=steps,
        all_pairs=all_pairs,
        dry_run=dry_run,
        overwrite=overwrite,
        refresh=refresh,
        mix=mix,
        count=count,
        settings=settings,
    )
    with errors():
        _refuse_contradictions(
            {
                "--compare": compare,
                "--mix": mix,
                "--refresh": refresh,
                "NAME": name,
                "--job": job_file,
                "--preset": preset,
                "--step": steps,
                "--all-pairs": all_pairs,
                "--dry-run": dry_run,
                "--overwrite": overwrite,
                "--count": count,
            }
        )
        if compare:
            _compare(open_store(dataset, settings), *compare, as_json)
        elif options.is_mixture:
            _mix(options, as_json)
        else:
            _select(options, as_json)


_FITTING = {
    "--compare": (),
    "--mix": ("--count", "--dry-run", "--overwrite"),
    "--refresh": ("NAME", "--dry-run"),
}
"""Option that changes what `select` does -> the options that can be combined with it."""


def _refuse_contradictions(options: Mapping[str, object]) -> None:
    """Raise BadParameter, naming the option, if options contradict each other."""
    given = [name for name, value in options.items() if value]
    for action, fitting in _FITTING.items():
        if action in given and (others := [name for name in given if name not in (action, *fitting)]):
            beside = ", ".join([*fitting, "--set"])
            raise typer.BadParameter(f"leave out {others[0]}: {action} can only be combined with {beside} and --json")
    if "--count" in given and "--mix" not in given:
        raise typer.BadParameter("--count is for mixtures: add --mix, or select with --step 'sample: {count: N}'")


def export(
    dataset: Dataset,
    subset: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A subset made by `pairmill select`; leave it out if DATASET is a mixture."
        ),
    ] = None,
    output: Annotated[str | None, typer.Argument(metavar="OUT", help="New folder, or s3://..., for the files.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="webdataset, parquet, clip-retrieval or datacomp."),
    ] = None,
    samples_per_file: Annotated[
        int | None, typer.Option(metavar="N", help="10,000 by default; the last file holds the remainder.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS", help="Model whose embeddings are written; for clip-retrieval and datacomp."),
    ] = None,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Keep the dataset's order instead of shuffling across shards.")
    ] = False,
    job_file: JobFile = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Write a subset for other tools to read.

    If it is interrupted, run the same command again to resume.
    """
    options = ExportOptions(
        dataset=dataset,
        subset=subset,
        output=output,
        form=form,
        samples_per_file=samples_per_file,
        model=model,
        in_order=in_order,
        job_file=job_file,
        settings=settings,
    )
    with errors():
        from pairmill.jobs.cli.arguments import export_job
        from pairmill.jobs.export_mixture import export_any as run_export
        from pairmill.pipeline.common.text import shown_path

        job = export_job(options)
        with progress(
            f"Finished files stay in {shown_path(job.output)}; run the same command again to resume."
        ) as listener:
            result = run_export(job, listener.step)
    _print_export(result)
    if as_json:
        left_out = list(result.models_left_out)
        values = {
            "output": result.output,
            "written": result.written,
            "updated": list(result.updated),
            "models_left_out": left_out,
            "newer_columns": list(result.newer_columns),
        }
        if result.columns_left_out:
            values["columns_left_out"] = dict(result.columns_left_out)
        print_json({**values, **result.record.model_dump(mode="json")})


def _print_export(result: "ExportResult") -> None:
    from pairmill.pipeline.common.text import counted, pairmill_command, shown_path

    record = result.record
    rows, parts = counted(record.rows, "row"), counted(record.num_files, _NOUNS.get(record.format, "part"))
    updated = "".join(f", {name} updated" for name in result.updated)
    say(f"{rows} in {parts} under {shown_path(result.output)}; {result.written:,} written in this run{updated}")
    if result.num_uids is not None and result.num_uids != record.rows:
        say(f"subset.npy has {counted(result.num_uids, 'uid')}, each as often as its row occurs in the first epoch")
    for alias in result.models_left_out:
        status = pairmill_command("status", record.dataset)
        say(f"left out {alias!r}, which some of these shards lack; `{status}` says how to add it")
    for column, why in result.columns_left_out.items():
        say(f"left out the column {column!r}: {why}")
    if newer := result.newer_columns:
        names = ", ".join(newer[:_SHOWN]) + (f" and {len(newer) - _SHOWN:,} more" if len(newer) > _SHOWN else "")
        say(f"left out columns that were added after this export began: {names}; to get them, use another folder")
    if not result.is_noted:
        known = f"purge this export with --export {shown_path(result.output)}"
        say(f"pairmill: {shown_path(record.dataset)} cannot be written to: {known}", err=True)


def _select(options: SelectOptions, as_json: bool) -> None:
    from pairmill.jobs.cli.arguments import select_job
    from pairmill.jobs.cli.step_reports import print_reports
    from pairmill.jobs.select import refresh
    from pairmill.jobs.select import select as run_select
    from pairmill.pipeline.common.text import shown_path

    job = select_job(options)
    with progress("Nothing was written; run the same command to start over.") as listener:
        if options.refresh:
            subset = refresh(job, options.dry_run, listener.step)
        else:
            subset = run_select(job, options.dry_run, options.overwrite, listener.step)
    print_reports(subset.reports, [None, None, *subset.steps])
    root = options.dataset.rstrip("/")
    for file in subset.overlaps:
        say(f"evaluation pictures that were found: {shown_path(f'{root}/{file.path}')}")
    if not subset.steps:
        say(f"no steps were given: the subset has all {'kept rows' if subset.rows == 'kept' else 'pairs'}", err=True)
    if options.dry_run:
        say("dry run: nothing was written", err=True)
    else:
        say(f"{root}/subsets/{subset.name}")
    if as_json:
        print_json(subset.model_dump(mode="json", exclude={"files"}))


def _mix(options: SelectOptions, as_json: bool) -> None:
    from pairmill.jobs.cli.arguments import mix_job
    from pairmill.jobs.cli.step_reports import print_reports
    from pairmill.jobs.mix import mix as run_mix
    from pairmill.pipeline.common.text import counted, shown_path

    job = mix_job(options)
    with progress("Nothing was written; run the same command to start over.") as listener:
        mixture = run_mix(job, options.dry_run, options.overwrite or options.refresh, listener.step)
    for source in mixture.sources:
        share = f"{source.samples / mixture.num_samples:.2%} of the samples"
        say(f"{source.name}: {share}, from {shown_path(source.dataset)}")
        print_reports(source.rows.reports)
        if source.samples != source.rows.rows_out:
            times = source.samples / source.rows.rows_out
            say(f"    each row {times:.4g} times per epoch, {counted(source.samples, 'sample')}")
    say(f"{counted(mixture.num_samples, 'sample')} per epoch, of {counted(mixture.num_rows, 'row')}")
    say("dry run: nothing was written" if options.dry_run else options.dataset.rstrip("/"), err=options.dry_run)
    if as_json:
        print_json(mixture.model_dump(mode="json", exclude={"sources": {"__all__": {"rows": {"files"}}}}))


def _compare(store: "Store", one: str, other: str, as_json: bool) -> None:
    from pairmill.pipeline.select.subset_diff import compare as run_compare

    comparison = run_compare(store, one, other)
    for line in comparison.lines():
        say(line)
    if as_json:
        print_json(comparison.as_dict())
