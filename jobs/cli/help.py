"""Parses options, and formats `--help`: plain text, readable from 60 columns, with examples that can be copied."""

from collections.abc import Iterator
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from pairmill.schemas.version import VERSION

HELP_OPTIONS = ["-h", "--help"]
"""Set on the outermost group; all commands inherit them."""


def examples(*lines: str) -> str:
    """The epilog of a command: example command lines. A line may continue after a backslash."""
    return "\n".join(lines)


def print_version(wanted: bool) -> None:
    """Callback of `--version`."""
    if wanted:
        import typer

        typer.echo(f"pairmill {VERSION}")
        raise typer.Exit


class Command(TyperCommand):
    """A command that shows examples after its help, and refuses repeated options."""

    def make_parser(self, ctx: Any) -> Any:
        """Refuse an option that takes one value but is given twice; by default, the last value would win."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args)
            for number, each in enumerate(order):
                if isinstance(each, TyperOption) and not (each.multiple or each.is_flag) and each in order[:number]:
                    ctx.fail(f"{each.opts[0]} is given twice, but takes one value.")
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments as in manual pages, `DATASET [NAME]`, where Typer writes `{DATASET} [NAME]`."""
        return list(_usage(super().collect_usage_pieces(ctx)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments by name only, because their help text says what they accept."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(each.metavar or each.name, each.help or "") for each in arguments])
        options = [each for each in self.get_params(ctx) if not isinstance(each, TyperArgument)]
        with formatter.section("Options"):
            formatter.write_dl([record for each in options if (record := each.get_help_record(ctx))])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Print the examples unwrapped, because a wrapped command line could not be copied."""
        _write_examples(self.epilog, formatter)


class Group(TyperGroup):
    """A group of commands that shows examples after its help."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Like Command.format_epilog."""
        _write_examples(self.epilog, formatter)


def _usage(pieces: list[str]) -> Iterator[str]:
    for piece in pieces:
        is_list_of_names = piece.endswith("]...") and " " in piece  # [SOURCE... OUT]...
        yield piece.removesuffix("...") if is_list_of_names else piece.strip("{}")


def _write_examples(text: str | None, formatter: Any) -> None:
    if not text:
        return
    with formatter.section("Examples"):
        for line in text.splitlines():
            formatter.write(f"  {line}\n")
