"""`pairmill select` and `pairmill export`: flags, what each step dropped, and how two subsets differ."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.terminal import INTERRUPTED, JobFile, Json, Settings, errors, open_store

if TYPE_CHECKING:
    from pairmill.pipeline.common.storage import Store
    from pairmill.schemas.subset import Subset


def select(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Output folder of a build or embed, or s3://...")],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the subset, written to DATASET/subsets/NAME.")
    ] = None,
    job_file: JobFile = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="STEP",
            help="As in the job file, in order: 'where: similarity >= 0.28', 'top: {by: similarity, fraction: 0.3}', "
            "'dedup: {by: phash, distance: 4}', 'sample: {count: 1000}'.",
        ),
    ] = None,
    all_pairs: Annotated[
        bool,
        typer.Option("--all-pairs", help="Select from all pairs, also those that a score rule of the build dropped."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what each step would drop.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing subset of this name.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show how two subsets differ, and why.")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Select a subset of a finished dataset. Trying other steps downloads and embeds nothing again."""
    parameters = locals()
    with errors():
        if compare:
            if name or dry_run or steps or job_file or overwrite:
                raise typer.BadParameter("--compare takes two subsets, and no other options of select")
            _compare(open_store(dataset, settings), *compare, as_json)
            return
        from pairmill.jobs.cli.arguments import job_of
        from pairmill.jobs.select import select as run_select
        from pairmill.schemas.subset import SelectJob

        job = job_of("select", parameters)
        assert isinstance(job, SelectJob)
        try:
            selected = run_select(job, dry_run, overwrite)
        except KeyboardInterrupt:
            typer.echo("Stopped. Nothing was written; run the same command to start over.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _print(selected)
    if dry_run:
        typer.echo("dry run: nothing was written", err=True)
    else:
        typer.echo(f"{dataset}/subsets/{selected.name}")
    if as_json:
        typer.echo(json.dumps(selected.model_dump(mode="json", exclude={"files"})))


def export(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Output folder of a build or embed, or s3://...")],
    subset: Annotated[str, typer.Argument(metavar="NAME", help="A subset that `pairmill select` made.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="New folder, or s3://..., for the files.")],
    form: Annotated[
        str | None, typer.Option("--format", help="webdataset, parquet, clip-retrieval or datacomp.")
    ] = None,
    samples_per_file: Annotated[int | None, typer.Option(help="10,000 by default; the last file has the rest.")] = None,
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
    """Write the rows of a subset as files that other tools read. Run the command again to continue after a stop."""
    parameters = locals()
    with errors():
        from pairmill.jobs.cli.arguments import job_of
        from pairmill.jobs.export import export as run_export
        from pairmill.schemas.export import ExportJob

        job = job_of("export", parameters)
        assert isinstance(job, ExportJob)
        try:
            result = run_export(job)
        except KeyboardInterrupt:
            typer.echo(f"Stopped. Finished files stay in {output}; run the same command to continue.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    record = result.record
    typer.echo(
        f"{record.rows:,} rows in {record.num_files:,} files under {result.output}; {result.written:,} written now"
    )
    if as_json:
        typer.echo(json.dumps({"output": result.output, "written": result.written, **record.model_dump(mode="json")}))


def _compare(store: "Store", one: str, other: str, as_json: bool) -> None:
    from pairmill.pipeline.select.compare import compare as run_compare

    comparison = run_compare(store, one, other)
    for line in comparison.lines():
        typer.echo(line)
    if as_json:
        typer.echo(json.dumps(comparison.as_dict()))


def _print(subset: "Subset") -> None:
    """One line per step, and a warning where a step left nothing."""
    width = max(len(report.step) for report in subset.reports)
    for report in subset.reports:
        share = f"{report.rows_out / report.rows_in:8.2%}" if report.rows_in else "       -"
        line = f"{report.step:<{width}} {report.rows_in:>13,} -> {report.rows_out:>13,} {share}"
        if report.threshold is not None:
            line += f"  from {report.threshold:.6g} up"
        typer.echo(line)
        for cluster in report.largest_clusters:
            typer.echo(f"    {cluster.rows:,} duplicates: {cluster.row_id} {cluster.url or ''}")
        if report.rows_in and not report.rows_out:
            typer.echo(f"pairmill: {report.step!r} dropped all of {report.rows_in:,} rows", err=True)
