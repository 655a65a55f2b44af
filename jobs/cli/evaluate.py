"""`pairmill evaluate` and `pairmill probe train`: measure embeddings and scores, and train a head."""

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from pairmill.jobs.cli.help import Command, Group, examples
from pairmill.jobs.cli.options import Json, Output, S3Settings
from pairmill.jobs.cli.terminal import errors, open_store, print_json, progress, say
from pairmill.pipeline.common.terminal_text import table_columns

Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels", metavar="FILE", help="Parquet with uid and label, such as labels/NAME.parquet; repeatable."
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column with the labels, in OUT or, with --labels, in these files."),
]
Positive = Annotated[
    str | None,
    typer.Option(metavar="VALUE", help="The label to distinguish from all others; by default good, yes, true or 1."),
]
Model = Annotated[
    str | None, typer.Option(metavar="ALIAS", help="Model whose embeddings to use; optional if OUT has only one.")
]
Subset = Annotated[str | None, typer.Option(metavar="NAME", help="Only rows of this subset.")]

probe = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Learn a head or a mix from labels.",
    epilog=examples(
        "pairmill probe train out \\\n    --labels labels/good.parquet --out probe.safetensors",
        "pairmill probe train out --label-column language \\\n    --positive de --of text --out german.safetensors",
    ),
)


@probe.command(
    cls=Command,
    epilog=examples(
        "pairmill probe train out \\\n    --labels labels/good.parquet --out probe.safetensors",
        "pairmill probe train out --label-column language \\\n    --positive de --of text --out german.safetensors",
    ),
)
def train(
    output: Output,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The head to write: NAME.safetensors.")],
    labels: Labels = None,
    label_column: LabelColumn = None,
    positive: Positive = None,
    model: Model = None,
    of: Annotated[
        Literal["image", "text"],
        typer.Option("--of", metavar="KIND", help="Embeddings of pictures (image, the default) or captions (text)."),
    ] = "image",
    subset: Subset = None,
    limit: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of labeled rows, chosen by a hash.", min=1)
    ] = 20_000,
    page: Annotated[str | None, typer.Option(metavar="FILE", help="Write an HTML page with charts.")] = None,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Train a head on labeled pairs.

    The head is a logistic regression on stored embeddings. `pairmill score OUT NAME --score 'head: FILE'` then computes
    the probability for every pair.
    """
    with errors():
        from pairmill.jobs.probe import ProbeRequest, train_probe
        from pairmill.pipeline.evaluate.labels import LabelSource

        request = ProbeRequest(LabelSource(labels or (), label_column, positive), model, of, subset, limit)
        with progress("Nothing was written.") as listener:
            result = train_probe(open_store(output, settings), request, out, page, listener.step)
    _print(result.lines(table_columns()), result.figures.notes, (out, page))
    if as_json:
        print_json(result.as_dict())


@probe.command(
    cls=Command,
    epilog=examples(
        "pairmill probe mix out --column neg_clip \\\n    --column similarity --labels labels/good.parquet",
        "pairmill probe mix out --column neg_clip \\\n    --column aesthetic --label-column clean",
    ),
)
def mix(
    output: Output,
    columns: Annotated[
        list[str], typer.Option("--column", metavar="NAME", help="A column of numbers to mix; give two or more.")
    ],
    labels: Labels = None,
    label_column: LabelColumn = None,
    positive: Positive = None,
    subset: Subset = None,
    limit: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of labeled rows, chosen by a hash.", min=1)
    ] = 20_000,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Learn how to mix columns.

    The mix is a logistic regression on scores. The command only prints its formula. `pairmill score OUT NAME --score
    'mix: FORMULA'` then computes the value for every pair.
    """
    with errors():
        from pairmill.jobs.probe import MixRequest, train_mix
        from pairmill.pipeline.evaluate.labels import LabelSource

        request = MixRequest(columns, LabelSource(labels or (), label_column, positive), subset, limit)
        with progress("Nothing was written.") as listener:
            result = train_mix(open_store(output, settings), request, listener.step)
    _print(result.lines(), result.figures.notes, ())
    if as_json:
        print_json(result.as_dict())


def evaluate(
    output: Output,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Zero-shot: imagenet, a file of names, or prompts in .json."),
    ] = None,
    templates: Annotated[
        str,
        typer.Option(metavar="NAME", help="Prompts for class names: openai-80, simple, or your own with {}."),
    ] = "openai-80",
    score: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Precision and recall of this score against labels.")
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option("--retrieval", help="Retrieval of pictures by captions and of captions by pictures; the default."),
    ] = False,
    labels: Labels = None,
    label_column: LabelColumn = None,
    positive: Positive = None,
    precision: Annotated[
        float, typer.Option(metavar="SHARE", help="With --score: find the threshold with this precision.")
    ] = 0.9,
    overlap: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --classes: file of pictures that the select step leak found."),
    ] = None,
    model: Model = None,
    subset: Subset = None,
    limit: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of pictures in a retrieval test, chosen by a hash.", min=2)
    ] = 10_000,
    page: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write an HTML page with charts.")] = None,
    settings: S3Settings = None,
    as_json: Json = False,
) -> None:
    """Measure embeddings and scores.

    Measures retrieval, zero-shot classification of labeled pictures, or the precision and recall of a score. Reads
    only stored embeddings and scores. To evaluate another model, add it with `pairmill embed` first.
    """
    with errors():
        from pairmill.jobs.api.measure import class_settings
        from pairmill.jobs.evaluate import Evaluation
        from pairmill.jobs.evaluate import evaluate as run_evaluate
        from pairmill.pipeline.evaluate.labels import LabelSource

        evaluation = Evaluation(
            classes=class_settings(classes, templates),
            score=score,
            retrieval=retrieval,
            labels=LabelSource(labels or (), label_column, positive),
            precision=precision,
            overlap=overlap,
            model=model,
            subset=subset,
            limit=limit,
        )
        with progress("Nothing was written.") as listener:
            result = run_evaluate(open_store(output, settings), evaluation, page, listener.step)
    _print(result.lines(table_columns()), result.notes(), (page,))
    if as_json:
        print_json(result.as_dict())


def _print(lines: Iterable[str], notes: Iterable[str], paths: Iterable[str | None]) -> None:
    from pairmill.pipeline.pages.visible_text import visible_text

    for line in lines:
        say(visible_text(line, 1_000))
    for note in notes:
        say(visible_text(note, 1_000), err=True)
    for path in paths:
        if path is not None:
            say(path)
