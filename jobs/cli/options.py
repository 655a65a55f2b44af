"""Defines the typed options of each command. The command's function fills them in; for `submit`, the parser does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

import typer

JobFile = Annotated[
    str | None, typer.Option("--job", metavar="PATH", help="Job file (YAML); options on the command line override it.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the job (see `pairmill fields`); repeatable."),
]
S3Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="How to access OUT: s3.endpoint=http://...; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Output = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a build or embed, or s3://...")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Output folder of a build or embed, or s3://...")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME[:WEIGHTS]", help="tiny, or a name like ViT-B-32:openai; repeatable."),
]
Explain = Annotated[bool, typer.Option("--explain", help="Only print pools, memory, objects and rate; start nothing.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N rows of the input.", min=1)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every command that can run on a cluster."""

    settings: Sequence[str] | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Take the options from a command's parsed parameters. Ignores other parameters, such as `--json`."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class _JobOptions(Options):
    job_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class _SourceOptions(_JobOptions):
    source: Sequence[str] | None = None
    """The sources, then the output."""
    limit: int | None = None
    model: Sequence[str] | None = None

    @property
    def uris(self) -> list[str]:
        """The sources and the output, as a list."""
        return list(self.source or [])


@dataclass(frozen=True, kw_only=True)
class BuildOptions(_SourceOptions):
    """Options of `pairmill build`."""

    url_column: str | None = None
    caption_column: str | None = None
    min_similarity: float | None = None
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(_SourceOptions):
    """Options of `pairmill embed`. With `add_model`, `source` is only the output."""

    dtype: str | None = None
    device: str | None = None
    caption_from_name: bool = False
    add_model: str | None = None
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class RetryOptions(Options):
    """Options of `pairmill retry`."""

    output: str
    status: str | None = None

    @property
    def uris(self) -> list[str]:
        """The output."""
        return [self.output]


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Options):
    """Options of `pairmill index`."""

    output: str
    model: str | None = None
    of: str = "image"


@dataclass(frozen=True, kw_only=True)
class SelectOptions(_JobOptions):
    """Options of `pairmill select`."""

    dataset: str
    name: str | None = None
    preset: str | None = None
    steps: Sequence[str] | None = None
    all_pairs: bool = False
    dry_run: bool = False
    overwrite: bool = False
    refresh: bool = False
    mix: Sequence[str] | None = None
    count: int | None = None

    @property
    def is_mixture(self) -> bool:
        """Whether `dataset` is the folder of a mixture."""
        return bool(self.mix) or (self.refresh and self.name is None)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(_JobOptions):
    """Options of `pairmill score`."""

    output: str
    name: str | None = None
    given: str | None = None
    preset: str | None = None

    @property
    def uris(self) -> list[str]:
        """The dataset."""
        return [self.output]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(_JobOptions):
    """Options of `pairmill export`."""

    dataset: str
    subset: str | None = None
    """If `output` is None, this is the output: a mixture has no subsets."""
    output: str | None = None
    form: str | None = None
    samples_per_file: int | None = None
    model: Sequence[str] | None = None
    in_order: bool = False
