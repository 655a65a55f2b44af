"""Decides the meaning of a dataset's columns, once for all its files.

The result is stored in the plan, so all workers read the same columns with the same types, whatever their shards
contain. `names.py` defines how names are matched. A column that the job does not name is guessed: it is the first of
URL_NAMES, CAPTION_NAMES or LICENSE_NAMES that occurs in the first file with any of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.common.text import pairmill_command
from pairmill.pipeline.source.column_types import ColumnType, add_type, check_values
from pairmill.pipeline.source.files import MALFORMED_COLUMN, InputFile, SourceError, shown
from pairmill.pipeline.source.mapping import ON_THE_WEB, ColumnMapping, PictureSource
from pairmill.pipeline.source.names import FILE_NAME, TABLE_NAMES, find_column
from pairmill.pipeline.source.texts import plain_type
from pairmill.pipeline.source.types import Fit, fit, values_fit
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.pairs import source_column_name

URL_NAMES = ("url", "image_url", "img_url", "imageurl", "image_link", "uri", "link")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "captions", "texts", "title", "txt")
LICENSE_NAMES = ("license", "licence")

_LONGEST_HASH = 64
"""Bytes. Longer values of a fixed size can be pictures."""
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


@dataclass(frozen=True, slots=True)
class FileColumns:
    """The columns of one file by role. None: the file has no such column."""

    url: str | None
    caption: str | None
    uid: str | None
    extra: tuple[str, ...]


def has_needed_column(config: SourceConfig, names: Sequence[str]) -> bool:
    """Whether these columns include a URL column or, for a corpus, a caption column."""
    given, usual = (config.caption_column, CAPTION_NAMES) if config.is_corpus else (config.url_column, URL_NAMES)
    return _first(given, usual, names) is not None


def columns_of(mapping: ColumnMapping, names: Sequence[str]) -> FileColumns:
    """Assign roles to the columns of one file."""
    return _split(names, mapping.url_column, mapping.caption_column, mapping.uid_column)


def map_columns(
    config: SourceConfig, inputs: Sequence[InputFile], needs_license: bool, pictures: PictureSource = ON_THE_WEB
) -> ColumnMapping:
    """Decide what the columns mean in all files that have rows.

    `needs_license`: a rule needs a license column, so guess it. Raises SourceError if a column is missing, or if its
    type is unusable or differs incompatibly between files.
    """
    inputs = [file for file in inputs if file.num_rows != 0]
    if not inputs:
        raise SourceError("source.paths: the input has no rows")
    url = _choose("url_column", config.url_column, URL_NAMES, inputs, needed=pictures == ON_THE_WEB)
    caption = _choose("caption_column", config.caption_column, CAPTION_NAMES, inputs)
    uid = _choose("uid_column", config.uid_column, (), inputs)
    sha256 = _choose("sha256_column", config.sha256_column, (), inputs)
    names = LICENSE_NAMES if needs_license else ()
    license_ = _choose("license_column", config.license_column, names, inputs, needed=needs_license)
    _check_distinct({"url": url, "caption": caption, "uid": uid, "sha256": sha256}, license_)
    types: dict[str, ColumnType] = {}
    for file in inputs:
        columns = _split(file.schema.names, url or "", caption, uid)
        _check_roles(file, columns, url or "", caption, uid)
        for name in columns.extra:
            add_type(types, name, file)
    check_values(types, inputs)
    if sha256 is not None:
        for file in inputs:
            if problem := _missing_checksums(file, sha256):
                raise SourceError(problem)
    for setting, column in (("sha256_column", sha256), ("license_column", license_)):
        if column is not None and not is_text(types[column].type):
            raise SourceError(f"{types[column].uri}: source.{setting} {column!r} is {types[column].type}, not text")
    return ColumnMapping(
        url or "", caption, uid, sha256, license_, _extra_schema(types), tuple(types), pictures, has_partitions=True
    )


def misfit(mapping: ColumnMapping, file: InputFile) -> str | None:
    """Why a new file does not fit a dataset that is already planned, or None. Missing columns become nulls."""
    columns = columns_of(mapping, file.schema.names)
    try:
        _check_roles(file, columns, mapping.url_column, mapping.caption_column, mapping.uid_column)
    except SourceError as error:
        return str(error)
    if mapping.sha256_column is not None and (problem := _missing_checksums(file, mapping.sha256_column)):
        return problem
    known = dict(zip(mapping.extra_columns, mapping.extra.types, strict=True))
    for name in columns.extra:
        if name in file.partitions and not mapping.has_partitions:
            continue
        if name not in known:
            return f"{file.uri}: column {name!r} is new, but this output's plan fixes its columns"
        found = plain_type(file.schema.field(name).type)
        fits = fit(known[name], found)
        if fits is Fit.NEVER:
            return f"{file.uri}: column {name!r} is {found}, but {known[name]} in this output's plan"
        if fits is Fit.DEPENDS and not values_fit(file.uri, file.files, name, known[name]):
            return (
                f"{file.uri}: column {name!r} is {found}, with values that do not fit into the {known[name]} of this "
                "output's plan"
            )
    return None


def refuse_url_list(config: SourceConfig, file: InputFile) -> None:
    """Raise SourceError for a file that has URLs but no pictures, unless the job names its caption column."""
    if config.caption_column is not None:
        return
    url = _first(config.url_column, URL_NAMES, file.own_names)
    if url is not None:
        raise SourceError(
            f"{file.uri}: is a list of URLs (column {url!r}), which pairmill build downloads. To embed only its "
            "captions, set source.caption_column"
        )


def refuse_other_pictures(config: SourceConfig, file: InputFile, usual_names: Sequence[str]) -> None:
    """Raise SourceError for a file with pictures in an unsupported form, unless the job names its caption column,
    because otherwise only captions would be embedded. Such pictures are lists of Hugging Face's Image, base64 or paths,
    or are in a column that is not in `usual_names`."""
    if config.caption_column is not None:
        return
    caption = _first(None, CAPTION_NAMES, file.own_names)
    for column in file.schema:
        is_named = column.name.lower() in usual_names or "base64" in column.name.lower()
        is_named = is_named and not pa.types.is_null(column.type)
        if column.name != caption and (is_named or _has_images(column.type)):
            remedy = "; decode base64 to bytes, and download URLs with pairmill build" if is_text(column.type) else ""
            raise SourceError(
                f"{file.uri}: column {column.name!r} ({str(column.type)[:200]}) seems to contain pictures. They "
                "are read only from a column with one picture per row, as bytes or as Hugging Face's Image "
                f"(source.image_column){remedy}. To embed only the captions, set source.caption_column"
            )


def _has_images(data_type: pa.DataType) -> bool:
    """Whether the values are or contain structs like Hugging Face's Image, or lists of bytes."""
    if pa.types.is_struct(data_type):
        return can_contain_pictures(data_type) or any(_has_images(each.type) for each in data_type)
    if not any(is_kind(data_type) for is_kind in _LISTS):
        return False
    return can_contain_pictures(data_type.value_type) or _has_images(data_type.value_type)


def carried_columns(types: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of the output columns to which these input columns are carried."""
    return _extra_schema({name: ColumnType(kind, "", kind) for name, kind in types.items()})


def can_contain_pictures(data_type: pa.DataType) -> bool:
    """Whether the values are bytes, or Hugging Face's Image: a struct of `bytes` and `path`."""
    if pa.types.is_dictionary(data_type):
        return can_contain_pictures(data_type.value_type)
    if pa.types.is_struct(data_type):
        index = data_type.get_field_index("bytes")
        return index >= 0 and can_contain_pictures(data_type.field(index).type)
    if pa.types.is_fixed_size_binary(data_type):
        return int(data_type.byte_width) > _LONGEST_HASH
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(data_type) for is_kind in kinds)


def is_text(data_type: pa.DataType) -> bool:
    """Whether the values are text or bytes, possibly dictionary-encoded, or the column is all null."""
    if pa.types.is_dictionary(data_type):
        return is_text(data_type.value_type)
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_null,
    )
    return any(is_kind(data_type) for is_kind in kinds)


def is_text_list(data_type: pa.DataType) -> bool:
    """Whether the values are lists of text."""
    return any(is_kind(data_type) for is_kind in _LISTS) and is_text(data_type.value_type)


def _split(names: Sequence[str], url: str, caption: str | None, uid: str | None) -> FileColumns:
    found = [find_column(names, role) if role else None for role in (url, caption, uid)]  # role "": none
    extra = tuple(name for name in names if name not in found and name != MALFORMED_COLUMN)
    return FileColumns(found[0], found[1], found[2], extra)


def _first(given: str | None, usual: Sequence[str], names: Sequence[str]) -> str | None:
    """The given column; if none is given, the first column with a usual name. None if the file has no such column."""
    found = (find_column(names, candidate) for candidate in ([given] if given is not None else usual))
    return next((name for name in found if name is not None), None)


def _choose(
    setting: str, given: str | None, usual: Sequence[str], inputs: Sequence[InputFile], needed: bool = False
) -> str | None:
    """The column that `source.SETTING` names, or the first usual column of the first file that has one. A column in
    the file itself takes precedence over one in its path, because `caption=blip/` describes captions but is not one."""
    of_files = [file.own_names for file in inputs]
    for names in [*of_files, *(file.partitions for file in inputs)]:
        if (found := _first(given, usual, names)) is not None:
            return found
    first = inputs[0]
    if given is not None:
        raise SourceError(
            f"{first.uri}: no column {given!r} (source.{setting}); it has {shown(first.schema.names)}. "
            f"Set source.{setting} to one of these{'' if needed else ' or leave it out'}."
        )
    if needed:
        raise SourceError(
            f"{first.uri}: no column has a usual name ({', '.join(usual)}); it has {shown(first.schema.names)}. "
            f"Set source.{setting} to one of these.{_hint(first)}"
        )
    return None


def _hint(file: InputFile) -> str:
    """Advice for a file that has no URL column."""
    folder, _, name = file.uri.rpartition("/")
    if name in TABLE_NAMES and FILE_NAME in file.own_names:
        return f" For the pictures that it describes, use: {pairmill_command('embed', folder, 'OUT')}"
    if file.kind in ("csv", "tsv"):
        return f" Are the column names on the first line, separated by {file.delimiter!r} (source.delimiter)?"
    if file.kind == "parquet" and (pictures := [each.name for each in file.schema if can_contain_pictures(each.type)]):
        return f" For the pictures in column {pictures[0]!r}, use pairmill embed."
    return ""


def _check_distinct(roles: dict[str, str | None], license_: str | None) -> None:
    used: dict[str, str] = {}
    for role, column in roles.items():
        if column is not None and (other := used.setdefault(column, role)) != role:
            raise SourceError(f"source.{role}_column and source.{other}_column are both {column!r}: they must differ")
    if license_ in (roles["url"], roles["caption"], roles["uid"]) and license_ is not None:
        raise SourceError(f"source.license_column is {license_!r}, which is already used for something else")


def _check_roles(file: InputFile, columns: FileColumns, url: str, caption: str | None, uid: str | None) -> None:
    """Check that a file has all columns in use; otherwise its rows would be lost. Plain lists of URLs need no
    captions."""
    for setting, name, found in _roles(columns, url, caption, uid):
        if not name:  # a corpus without URLs
            continue
        if found is None and not (file.kind == "text" and setting == "caption_column"):
            raise SourceError(
                f"{file.uri}: no column {name!r}, which other files have; it has {shown(file.schema.names)}. "
                f"Rename it there, or set source.{setting} to a column that all files have."
            )
        if found is None or setting == "uid_column":
            continue
        data_type = file.schema.field(found).type
        if not is_text(data_type) and not (setting == "caption_column" and is_text_list(data_type)):
            raise SourceError(f"{file.uri}: column {found!r} is {data_type}, not text; set source.{setting}")
    is_ours = file.kind == "parquet" and MALFORMED_COLUMN in file.schema.names
    if MALFORMED_COLUMN in file.schema.names and not (is_ours and is_text(file.schema.field(MALFORMED_COLUMN).type)):
        raise SourceError(f"{file.uri}: the column name {MALFORMED_COLUMN!r} is reserved; rename it")


def _missing_checksums(file: InputFile, column: str) -> str | None:
    """The error for a file without this exact column, because its pictures would go unchecked; None if it has the
    column."""
    if column in file.schema.names:
        return None
    return f"{file.uri}: no column {column!r} (source.sha256_column); it has {shown(file.schema.names)}"


def _roles(
    columns: FileColumns, url: str, caption: str | None, uid: str | None
) -> Iterator[tuple[str, str, str | None]]:
    yield "url_column", url, columns.url
    if caption is not None:
        yield "caption_column", caption, columns.caption
    if uid is not None:
        yield "uid_column", uid, columns.uid


def _extra_schema(types: dict[str, ColumnType]) -> pa.Schema:
    taken: set[str] = set()
    fields = []
    for name, column in types.items():
        output_name = source_column_name(name, taken)
        taken.add(output_name.lower())
        fields.append(pa.field(output_name, column.type))
    return pa.schema(fields)
