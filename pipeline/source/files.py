"""Finds the input files and inspects the Parquet files among them.

A dataset is one or more files: Parquet, CSV, TSV, JSON (lines or an array) or plain lists of URLs. All but Parquet may
be gzipped.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa

from pairmill.pipeline.common.files import Files, join
from pairmill.pipeline.common.foreign_parquet import UnsupportedParquetError, open_parquet
from pairmill.pipeline.common.listing import Listing, list_path
from pairmill.pipeline.common.web_files import naming_web_errors, without_query
from pairmill.pipeline.source.content_kind import HEAD_BYTES, kind_of_content
from pairmill.pipeline.source.decoded_sizes import row_bytes
from pairmill.pipeline.source.partitions import partitions_of
from pairmill.schemas.errors import FailureKind, JobError, PairmillError
from pairmill.schemas.passed_over import PassedOver

Kind = Literal["parquet", "csv", "tsv", "json", "jsonl", "text", "index"]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    ".json": "json",
    ".txt": "text",
}
PICTURE_ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "avifs"),
    *("heic", "heif", "svg", "jp2", "jxl", "qoi", "psd", "ico"),  # not supported; the status of their rows says so
)
_PICTURES = (".tar", *(f".{ending}" for ending in PICTURE_ENDINGS))
SUFFIXES = (*_KINDS, *(f"{suffix}.gz" for suffix, kind in _KINDS.items() if kind != "parquet"))
_PACKED = (".gz", ".tgz", ".zst", ".xz", ".bz2", ".zip", ".7z", ".rar")
_TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")

USUAL_DELIMITERS: dict[Kind, str] = {"csv": ",", "tsv": "\t"}

MALFORMED_COLUMN = "__pairmill_malformed"
"""In converted files and indexes: null, or why the row could not be read, with the beginning of its text if any."""

CAPTION_PROBLEM_COLUMN = "__pairmill_caption_problem"
"""Only in indexes of tars and folders: null, or why the text beside the picture cannot be read as a caption."""

WITHDRAWN_ROW = "withdrawn"
"""The value of MALFORMED_COLUMN in a row that a purge has blanked: all its other columns are null."""
WITHDRAWN_CAPTION = b"\xffwithdrawn"
"""Only in caption lists of converted files: the value with which a purge replaces a caption. No text starts with this
byte."""

INT96_UNIT = "us"
"""Unit in which Parquet's INT96 is read. In nanoseconds, Arrow's default, years before 1677 and after 2262 would wrap
around."""

_SHOWN_COLUMNS = 30


class SourceError(PairmillError, ValueError):
    """An input file cannot be used; the message names it and says what to do."""

    kind = FailureKind.INPUT


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file, as described by its footer (Parquet), its header (CSV, TSV) or a first pass over it (JSON)."""

    uri: str
    kind: Kind
    schema: pa.Schema
    num_rows: int | None
    """None until the file is converted."""
    files: Files
    list_columns: frozenset[str] = frozenset()
    """JSON: columns with a list in at least one row."""
    encoding: str | None = None
    """Encoding of a text file. None: UTF-8."""
    delimiter: str | None = None
    """CSV, TSV: the character between fields."""
    partitions: tuple[str, ...] = ()
    """Names of the columns whose value is in the file's path. They come last in `schema`; see `partitions.py`."""
    row_bytes: float = math.inf
    """Parquet: see `decoded_sizes.row_bytes`."""

    @property
    def own_names(self) -> list[str]:
        """Names of the columns that are in the file itself."""
        return list(self.schema.names[: len(self.schema) - len(self.partitions)])

    @property
    def unusual_encoding(self) -> str | None:
        """The encoding, unless it is UTF-8."""
        return None if self.encoding == "utf-8" else self.encoding

    @property
    def unusual_delimiter(self) -> str | None:
        """The delimiter, unless it is the usual one for the file's extension."""
        return None if self.delimiter == USUAL_DELIMITERS.get(self.kind) else self.delimiter


def kind_of(uri: str) -> Kind:
    """The format, from the file name. Raises SourceError for unknown names."""
    names = (without_query(uri).lower(), uri.lower())  # a name may also be in a query: `get?name=a.csv`
    name = PurePosixPath(next((each for each in names if each.endswith(SUFFIXES)), names[0]))
    suffix = name.suffixes[-2] if name.suffix == ".gz" and len(name.suffixes) > 1 else name.suffix
    if not name.name.endswith(SUFFIXES):
        raise SourceError(f"{uri}: cannot tell the format from the name; known extensions are {', '.join(SUFFIXES)}")
    return _KINDS[suffix]


@dataclass(slots=True)
class Inputs:
    """The input files of a job."""

    files: list[str] = field(default_factory=list)
    """Absolute paths or URLs, without duplicates: in the order of `source.paths`, sorted within each."""
    passed_over: dict[str, PassedOver] = field(default_factory=dict)
    """Everything else that was found at these paths."""
    in_folders: set[str] = field(default_factory=set)
    """The `files` that neither a path nor a glob names."""

    def add(self, files: Iterable[str], listing: Listing) -> None:
        """Add the usable files of one path, and record its other files as skipped."""
        used = set(files)
        self.files = list(dict.fromkeys([*self.files, *files]))
        self.in_folders |= used.intersection(listing.files).difference(listing.named)
        for uri in listing.files:
            if uri not in used:
                listing.passed_over[uri] = reason_unused(uri)
        self.passed_over.update(listing.passed_over)

    def check_names(self) -> None:
        """Raise SourceError for a name that is not UTF-8, because it cannot be stored in a plan."""
        for uri in self.files:
            readable = uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if readable != uri:
                raise SourceError(f"source.paths: {readable}: the name is not UTF-8; rename it")

    def counts(self) -> Counter[str]:
        """Reason -> number of files and folders that are skipped."""
        used = set(self.files)  # perhaps under another path
        skipped = (reason for uri, reason in self.passed_over.items() if uri not in used or _is_object(uri, reason))
        return Counter(reason.value for reason in skipped)


def _is_object(uri: str, reason: PassedOver) -> bool:
    """Whether a skipped URI that ends in a slash is an object on S3, even if a folder has the same name: `a//` can be
    an object in `a/` and also the folder of `a//0.jpg`."""
    return uri.endswith("/") and reason is PassedOver.OTHER_KIND


def list_inputs(paths: Iterable[str], exclude: str, files: Files) -> Inputs:
    """All input files.

    `exclude`: the output folder, which may be inside an input folder. The `.json` files of a folder count only if there
    are no other formats, because beside other formats they are usually descriptions. Raises SourceError.
    """
    found = Inputs()
    for path in paths:
        listing = listed(path, files, exclude)
        uris = _tables(path, listing)
        kinds = {kind_of(uri): uri for uri in uris}
        if len(kinds) > 1 and "json" in kinds and not listing.named:
            del kinds["json"]
            uris = [uri for uri in uris if kind_of(uri) != "json"]
        if len(kinds) > 1 and "text" in kinds:  # most likely a readme, not URLs
            raise SourceError(
                f"source.paths: {path} contains {kinds['text']} beside other formats, and a text file is read as a "
                f"list of URLs; select the files you mean with a glob, such as {join(path, '*.parquet')}"
            )
        found.add(uris, listing)
    if not found.files:
        raise SourceError(f"source.paths: contains nothing but the output folder {exclude}")
    found.check_names()
    return found


def listed(path: str, files: Files, exclude: str) -> Listing:
    """List a path, without the folder `exclude`. Raises SourceError if nothing else is found."""
    try:
        return list_path(path, files, exclude)
    except FileNotFoundError as error:
        raise SourceError(f"source.paths: {error}") from error


def _tables(path: str, listing: Listing) -> list[str]:
    """The tables and lists at a path. Raises SourceError if there are none, or if there are pictures instead."""
    named = set(listing.named)
    uris = [uri for uri in listing.files if uri in named or uri.lower().endswith(SUFFIXES)]
    among = uris
    if all(uri.lower().endswith((".txt", ".json")) for uri in uris):  # perhaps the captions of pictures
        among = listing.files
    if pictures := [uri for uri in among if uri.lower().endswith(_PICTURES)]:
        raise SourceError(
            f"source.paths: {path} contains pictures, such as {pictures[0]}, but build reads lists of URLs; "
            "for local pictures, use pairmill embed"
        )
    only_output = not listing.files and set(listing.passed_over.values()) == {PassedOver.OUTPUT}
    if not uris and not only_output:
        found = f": {listing.files[0]} is in no format that is read ({', '.join(SUFFIXES)})" if listing.files else ""
        raise SourceError(f"source.paths: no input found at {path}{found}")
    return uris


def inspect_parquet(uri: str, files: Files) -> InputFile:
    """Schema and number of rows from the footer. Raises SourceError if it is not a complete Parquet file."""
    try:
        with (
            naming_web_errors(uri),
            files.open(uri) as file,
            open_parquet(file, coerce_int96_timestamp_unit=INT96_UNIT) as parquet,
        ):
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
            num_bytes = row_bytes(parquet.metadata)
    except (FileNotFoundError, PermissionError) as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from error
    except UnsupportedParquetError as error:
        raise SourceError(f"{uri}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        found = _kind_of_file(uri, files)
        problem = f"not a complete Parquet file (half-written, truncated or damaged?): {error}"
        raise SourceError(f"{uri}: {'; '.join(found) if found else problem}") from error
    except JobError:  # the web server failed; like all others here, a ValueError
        raise
    except ValueError as error:  # fsspec: only web servers do not serve parts of files
        raise SourceError(f"{uri}: Parquet is read in parts, which this server does not offer; download it") from error
    if len(set(schema.names)) != len(schema.names):
        raise SourceError(f"{uri}: two columns share a name: {shown(schema.names)}")
    return with_partitions(InputFile(uri, "parquet", schema, num_rows, files, row_bytes=num_bytes))


def _kind_of_file(uri: str, files: Files) -> tuple[str, str] | None:
    """What a file is that is not Parquet, and what to do; None if that is not known."""
    with contextlib.suppress(OSError), files.open(uri) as file:
        head = file.read(HEAD_BYTES)
        return None if head.startswith(b"PAR1") else kind_of_content(head)
    return None


def with_partitions(file: InputFile) -> InputFile:
    """The file with a text column for each partition in its path, unless it has its own column of that name."""
    names = tuple(name for name in partitions_of(file.uri) if name not in file.schema.names)
    schema = pa.schema([*file.schema, *(pa.field(name, pa.string()) for name in names)])
    return replace(file, schema=schema, partitions=names)


def reason_unused(name: str) -> PassedOver:
    """Why a file or tar member with this name is not used. Archives and tables, which may contain what the user wants,
    have reasons of their own."""
    if name.lower().endswith(_PACKED):
        return PassedOver.ARCHIVE
    return PassedOver.TABLE if name.lower().endswith(_TABLES) else PassedOver.OTHER_KIND


def decode_lossy(raw: pa.Array) -> pa.Array:
    """A binary array as strings: bytes that are not UTF-8 become U+FFFD, null stays null."""
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return pa.array(texts, pa.string())


def shown(names: Sequence[str]) -> str:
    """Column names for an error message, at most 30."""
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(repr(name[:80]) for name in names[:_SHOWN_COLUMNS]) or "none") + more
