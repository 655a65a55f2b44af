"""The `pairmill` command. Heavy imports are inside the commands, so `--help` responds immediately."""

import gc
import sys
from typing import Annotated

import typer

from pairmill.jobs.cli import (
    build,
    demo,
    evaluate,
    explore,
    purge,
    reference,
    report,
    score,
    search,
    select,
    status,
    submit,
)
from pairmill.jobs.cli.help import HELP_OPTIONS, Command, Group, examples, print_version
from pairmill.jobs.cli.terminal import stdout_errors, usage_errors
from pairmill.jobs.cluster.own_process import own_process

app = typer.Typer(
    name="pairmill",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_OPTIONS},
    epilog=examples("pairmill demo", "pairmill build urls.parquet out --limit 10000"),
)


@app.callback()
def pairmill(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn lists of web pictures and captions into scored, filtered training data for CLIP-like models."""


app.command(
    cls=Command,
    epilog=examples(
        "pairmill build urls.parquet out --limit 10000",
        "pairmill build 'lists/*.csv' out \\\n    --model ViT-B-32:openai --min-similarity 0.28",
    ),
)(build.build)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill embed tars/ out --model ViT-B-32:openai",
        "pairmill embed out --add-model ViT-L-14:openai",
    ),
)(build.embed)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill retry out",
        "pairmill retry out --status timeout,dns_error \\\n    --set fetch.timeout_s=60",
    ),
)(build.retry)
app.command(
    cls=Command,
    epilog=examples("pairmill status out", "pairmill status s3://bucket/out --watch"),
)(status.status)
app.command(
    cls=Command,
    epilog=examples("pairmill verify out", "pairmill verify out --rescore 0"),
)(status.verify)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill select out clean \\\n    --step 'where: similarity >= 0.28 and width >= 200'",
        "pairmill select out --compare clean other",
    ),
)(select.select)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill score out aesthetic \\\n    --score 'head: aesthetic.safetensors'",
        "pairmill score out aesthetic",
    ),
)(score.score)
app.add_typer(evaluate.probe, name="probe")
app.command(
    cls=Command,
    epilog=examples(
        "pairmill evaluate out --out evaluation.html",
        "pairmill evaluate out --score similarity \\\n    --labels labels/good.parquet --precision 0.95",
    ),
)(evaluate.evaluate)
app.command(
    cls=Command,
    epilog=examples("pairmill report out", "pairmill report out --subset clean --compare other"),
)(report.report)
app.command(
    cls=Command,
    epilog=examples("pairmill explore out", "pairmill explore s3://bucket/out --port 0"),
)(explore.explore)
app.command(
    cls=Command,
    epilog=examples("pairmill export out clean train", "pairmill export out clean hf --format parquet"),
)(select.export)
app.command(cls=Command, epilog=examples("pairmill index out", "pairmill index out --of text"))(search.index)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill search out 'a red bicycle'",
        "pairmill search out --image cat.jpg --top 100 \\\n    --save found.parquet --open",
    ),
)(search.search)
app.command(
    cls=Command,
    epilog=examples(
        "pairmill purge out --uids uids.txt --reason 'request 17'",
        "pairmill purge out --hosts hosts.txt --dry-run",
    ),
)(purge.purge)
app.command(cls=Command, epilog=examples("pairmill gc out --dry-run", "pairmill gc s3://bucket/out"))(purge.gc)
app.command(
    cls=Command,
    options_metavar="[OPTIONS] COMMAND ARGUMENTS",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples(
        "pairmill submit --address http://head:8265 \\\n    build s3://bucket/urls.parquet s3://bucket/out",
        "pairmill submit --wait retry s3://bucket/out",
    ),
)(submit.submit)
app.add_typer(submit.jobs, name="jobs")
app.command(cls=Command, epilog=examples("pairmill fields fetch", "pairmill fields --of select"))(reference.fields)
app.command(cls=Command, epilog=examples("pairmill presets", "pairmill presets clip-score-30"))(reference.presets)
app.command(cls=Command, epilog=examples("pairmill models", "pairmill models ViT-B"))(reference.models)
app.command(cls=Command, epilog=examples("pairmill demo", "pairmill demo --out small --pairs 400"))(demo.demo)


def main() -> None:
    """Entry point of the `pairmill` command."""
    try:
        with stdout_errors(), usage_errors(), own_process():
            sys.exit(app(prog_name="pairmill", standalone_mode=False))
    finally:
        if "torch" not in sys.modules:  # otherwise, nanobind would report all of its objects as leaks
            gc.freeze()  # Python then does not search all modules for garbage before it exits, which saves 0.2 s
