"""`pairmill select` and `pairmill export`; prints what each step dropped, and how two subsets differ."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Dataset, ExportOptions, JobFile, Json, SelectOptions, Settings
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress

if TYPE_CHECKING:
    from pairmill.pipeline.common.storage import Store
    from pairmill.schemas.balance import BalanceReport
    from pairmill.schemas.known import KnownReport
    from pairmill.schemas.leak import LeakReport
    from pairmill.schemas.subset import StepReport, Subset


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
            help="Mix this dataset, or subset of it, into the new folder DATASET, with this share; repeatable. Of rows "
            "that are in several datasets, the first one keeps them.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --mix: samples of an epoch; as many as possible by default.", min=1),
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
        if (mix or count) and (not mix or name or steps or job_file or preset or all_pairs or refresh or compare):
            raise typer.BadParameter("--mix takes only --count, --dry-run, --overwrite and --set beside it")
        if refresh and (steps or job_file or all_pairs or overwrite):
            raise typer.BadParameter("--refresh repeats the steps of the subset, so give it no others")
        if not compare and options.is_mixture:
            _mix(options, as_json)
            return
        if not compare:
            _select(options, as_json)
            return
        if name or dry_run or steps or job_file or overwrite or refresh:
            raise typer.BadParameter("--compare takes two subsets and no other options of select")
        _compare(open_store(dataset, settings), *compare, as_json)


def export(
    dataset: Dataset,
    subset: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="A subset that `pairmill select` made; without it, DATASET is a mixture."
        ),
    ],
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
        subset=None if output is None else subset,
        output=subset if output is None else output,
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

        job = export_job(options)
        with progress(f"Finished files stay in {options.output}; run the same command again to resume.") as listener:
            result = run_export(job, listener.step)
    from pairmill.pipeline.common.text import counted

    record = result.record
    rows, files = counted(record.rows, "row"), counted(record.num_files, "file")
    typer.echo(f"{rows} in {files} under {result.output}; {counted(result.written, 'file')} written in this run")
    for alias in result.models_left_out:
        typer.echo(f"left out the model {alias!r}, which some of these shards lack; embed --add-model adds it there")
    for column, why in result.columns_left_out.items():
        typer.echo(f"left out the column {column!r}: {why}")
    if not result.is_noted:
        known = f"tell a later purge about this export with --export {result.output}"
        typer.echo(f"pairmill: {record.dataset} cannot be written to: {known}", err=True)
    if as_json:
        left_out = list(result.models_left_out)
        values = {"output": result.output, "written": result.written, "models_left_out": left_out}
        if result.columns_left_out:
            values["columns_left_out"] = dict(result.columns_left_out)
        print_json({**values, **record.model_dump(mode="json")})


def _select(options: SelectOptions, as_json: bool) -> None:
    from pairmill.jobs.cli.arguments import select_job
    from pairmill.jobs.select import refresh
    from pairmill.jobs.select import select as run_select

    job = select_job(options)
    with progress("Nothing was written; run the same command to start over.") as listener:
        if options.refresh:
            subset = refresh(job, options.dry_run, listener.step)
        else:
            subset = run_select(job, options.dry_run, options.overwrite, listener.step)
    _print(subset)
    if options.dry_run:
        typer.echo("dry run: nothing was written", err=True)
    else:
        typer.echo(f"{options.dataset.rstrip('/')}/subsets/{subset.name}")
    if as_json:
        print_json(subset.model_dump(mode="json", exclude={"files"}))


def _mix(options: SelectOptions, as_json: bool) -> None:
    from pairmill.jobs.cli.arguments import mix_job
    from pairmill.jobs.mix import mix as run_mix
    from pairmill.pipeline.common.text import counted

    job = mix_job(options)
    with progress("Nothing was written; run the same command to start over.") as listener:
        mixture = run_mix(job, options.dry_run, options.overwrite or options.refresh, listener.step)
    for source in mixture.sources:
        typer.echo(f"{source.name}: {source.samples / mixture.num_samples:.2%} of the samples, from {source.dataset}")
        _print(source.rows)
        if source.samples != source.rows.rows_out:
            times = source.samples / source.rows.rows_out
            typer.echo(f"    each row {times:.4g} times per epoch, {counted(source.samples, 'sample')}")
    typer.echo(f"{counted(mixture.num_samples, 'sample')} per epoch, of {counted(mixture.num_rows, 'row')}")
    typer.echo("dry run: nothing was written" if options.dry_run else options.dataset.rstrip("/"), err=options.dry_run)
    if as_json:
        print_json(mixture.model_dump(mode="json", exclude={"sources": {"__all__": {"rows": {"files"}}}}))


def _compare(store: "Store", one: str, other: str, as_json: bool) -> None:
    from pairmill.pipeline.select.subset_diff import compare as run_compare

    comparison = run_compare(store, one, other)
    for line in comparison.lines():
        typer.echo(line)
    if as_json:
        print_json(comparison.as_dict())


def _print(subset: "Subset") -> None:
    """Print one line per step, and a warning if a step left nothing."""
    from pairmill.pipeline.common.text import counted

    width = max(len(report.step) for report in subset.reports)
    for report in subset.reports:
        share = f"{report.rows_out / report.rows_in:8.2%}" if report.rows_in else "       -"
        line = f"{report.step:<{width}} {report.rows_in:>13,} -> {report.rows_out:>13,} {share}"
        if report.threshold is not None:
            line += f"  threshold {report.threshold:.6g}"
        typer.echo(line)
        if report.uids:
            _print_uids(report)
        if report.balance:
            _print_balance(report.balance)
        if report.repeat:
            found = report.repeat
            typer.echo(f"    weights of up to {found.highest:.6g}, in all {found.weight_sum:,.1f} samples per epoch")
            typer.echo(f"    {counted(found.rows_below_one, 'row')} with a weight below 1, not in every epoch")
        if report.not_compared:
            typer.echo(f"    {counted(report.not_compared, 'row')} without a usable embedding stay")
        if report.known:
            _print_known(report.known)
        if report.leak:
            _print_leak(report.leak)
        if report.largest_clusters:
            typer.echo("    the rows with the most duplicates, which were dropped:")
        for cluster in report.largest_clusters:
            typer.echo(f"    {counted(cluster.rows - 1, 'duplicate')} of {cluster.row_id} {cluster.url or ''}".rstrip())
        if report.rows_in and not report.rows_out:
            typer.echo(f"pairmill: {report.step!r} dropped all {counted(report.rows_in, 'row')}", err=True)


def _print_uids(report: "StepReport") -> None:
    """Say how many of the uids in a file were found, and whether the file is another one than before."""
    from pairmill.pipeline.common.text import counted

    assert report.uids is not None
    missing = report.uids.num_uids - report.rows_out
    unknown = f"; {missing:,} of them are in no row that the steps before left" if missing else ""
    typer.echo(f"    {counted(report.uids.num_uids, 'uid')} in the file{unknown}")
    if report.uids.earlier_blake2b:
        typer.echo("pairmill: the file of uids has changed since the subset was selected before", err=True)


def _print_balance(found: "BalanceReport") -> None:
    """Say how many entries there are, what happened to rows without one, and what the curve did to the head."""
    from pairmill.pipeline.common.text import counted

    of = f" of {found.listed_entries:,} in the file" if found.listed_entries is not None else ""
    tail = found.tail_matches / max(1, found.matches)
    typer.echo(f"    {found.entries:,} entries{of}; {found.head_entries:,} have more than t = {found.curve:.6g} rows")
    typer.echo(f"    {tail:.1%} of {found.matches:,} matches belong to the others, which keep all rows")
    fate = "kept" if found.keeps_unmatched else "dropped"
    if found.unmatched_rows:
        typer.echo(f"    {counted(found.unmatched_rows, 'row')} without an entry: {fate}")
    for each in found.head:
        language = f" ({each.language})" if each.language else ""
        typer.echo(f"    {each.rows:>12,} -> {each.kept:>12,} of {each.entry}{language}")
    if found.earlier_blake2b:
        typer.echo("pairmill: the file of entries has changed since the subset was selected before", err=True)


def _print_known(known: "KnownReport") -> None:
    """Say what the rows were compared with, what of it could not be used, and whether it has changed."""
    values = ", ".join(f"{count:,} by {kind}" for kind, count in known.values.items())
    unused = "".join(f"; {count:,} x {reason}" for reason, count in sorted(known.unused.items()))
    typer.echo(f"    compared with known rows: {values or 'none'}{unused}")
    if known.earlier_blake2b:
        typer.echo("pairmill: the known rows have changed since the subset was selected before", err=True)


def _print_leak(found: "LeakReport") -> None:
    """Say which share of the evaluation set is in the dataset, how each was found, and the nearest pairs."""
    from pairmill.pipeline.common.text import counted

    share = found.items_hit / max(1, found.items)
    typer.echo(f"    {found.items_hit:,} of {counted(found.items, 'evaluation picture')} found ({share:.2%})")
    for each in found.found:
        how = each.by if each.variant == "same" else f"{each.by}, {each.variant.replace('_', ' and ')}"
        typer.echo(f"    {counted(each.items, 'picture')} by {how}: {counted(each.rows, 'row')} first found so")
    if found.plain_items:
        typer.echo(f"    {counted(found.plain_items, 'picture')} too plain for hashes, not compared by them")
    if found.earlier_blake2b:
        typer.echo("pairmill: the evaluation set has changed since the subset was selected before", err=True)
