"""What the columns of a dataset mean: decided once, over all its files, and kept with its plan.

Every worker then reads the same columns with the same types, whatever its shard holds. Names are matched exactly, else
without case and outer blanks, else with blanks and hyphens as underscores too (`Image Link` is `image_link`). A column
that the job does not name is guessed: the first of URL_NAMES, CAPTION_NAMES or LICENSE_NAMES that the first file has.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pairmill.pipeline.source.files import MALFORMED_COLUMN, InputFile, SourceError, shown
from pairmill.pipeline.source.mapping import ON_THE_WEB, ColumnMapping, PictureSource
from pairmill.pipeline.source.texts import without_views
from pairmill.schemas.jobs import SourceConfig
from pairmill.schemas.pairs import source_column_name

URL_NAMES = ("url", "image_url", "img_url", "imageurl", "image_link", "uri", "link")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "captions", "texts", "title")
LICENSE_NAMES = ("license", "licence")


@dataclass(frozen=True, slots=True)
class FileColumns:
    """The columns of one file by what they are for. None: the file has no such column."""

    url: str | None
    caption: str | None
    uid: str | None
    extra: tuple[str, ...]


def find_column(names: Iterable[str], wanted: str) -> str | None:
    """The column called `wanted`: exactly, else the only one whose name is the same once folded; None for none."""
    names = list(names)
    if wanted in names:
        return wanted
    for folded in (_plain, _words):
        close = [name for name in names if folded(name) == folded(wanted)]
        if close:
            return close[0] if len(close) == 1 else None
    return None


def has_needed_column(config: SourceConfig, names: Sequence[str]) -> bool:
    """Whether a file with these columns has one of URLs, or for a corpus one of captions."""
    given, usual = (config.caption_column, CAPTION_NAMES) if config.is_corpus else (config.url_column, URL_NAMES)
    return _first(given, usual, names) is not None


def columns_of(mapping: ColumnMapping, names: Sequence[str]) -> FileColumns:
    """What the columns of one file are for."""
    return _split(names, mapping.url_column, mapping.caption_column, mapping.uid_column)


def map_columns(
    config: SourceConfig, inputs: Sequence[InputFile], needs_license: bool, pictures: PictureSource = ON_THE_WEB
) -> ColumnMapping:
    """Decide over all files what the columns mean. Files without rows have no say.

    `needs_license`: guess a license column, as a rule reads it. Raises SourceError where
    a column is missing, of a type that cannot be used, or of types that do not go together.
    """
    inputs = [file for file in inputs if file.num_rows != 0]
    if not inputs:
        raise SourceError("source.paths: the input holds no rows")
    url = _choose("url_column", config.url_column, URL_NAMES, inputs, needed=pictures == ON_THE_WEB)
    caption = _choose("caption_column", config.caption_column, CAPTION_NAMES, inputs)
    uid = _choose("uid_column", config.uid_column, (), inputs)
    sha256 = _choose("sha256_column", config.sha256_column, (), inputs)
    names = LICENSE_NAMES if needs_license else ()
    license_ = _choose("license_column", config.license_column, names, inputs, needed=needs_license)
    _check_distinct({"url": url, "caption": caption, "uid": uid, "sha256": sha256}, license_)
    types: dict[str, tuple[pa.DataType, str]] = {}
    for file in inputs:
        columns = _split(file.schema.names, url or "", caption, uid)
        _check_roles(file, columns, url or "", caption, uid)
        for name in columns.extra:
            _add_type(types, name, file)
    if sha256 is not None:
        for file in inputs:
            if problem := _lacks_checksums(file, sha256):
                raise SourceError(problem)
    for setting, column in (("sha256_column", sha256), ("license_column", license_)):
        if column is not None and not is_text(types[column][0]):
            raise SourceError(f"{types[column][1]}: source.{setting} {column!r} is {types[column][0]}, not text")
    return ColumnMapping(url or "", caption, uid, sha256, license_, _extra_schema(types), tuple(types), pictures)


def misfit(mapping: ColumnMapping, file: InputFile) -> str | None:
    """Why a new file does not fit a dataset that is already planned; None if it does. Missing columns are nulls."""
    columns = columns_of(mapping, file.schema.names)
    try:
        _check_roles(file, columns, mapping.url_column, mapping.caption_column, mapping.uid_column)
    except SourceError as error:
        return str(error)
    if mapping.sha256_column is not None and (problem := _lacks_checksums(file, mapping.sha256_column)):
        return problem
    known = dict(zip(mapping.extra_columns, mapping.extra.types, strict=True))
    for name in columns.extra:
        if name not in known:
            return f"{file.uri}: column {name!r} is new, and the columns of this output are fixed by its plan"
        found = without_views(file.schema.field(name).type)
        if _common_type(known[name], found) != known[name]:
            return f"{file.uri}: column {name!r} is {found}, and the plan of this output says {known[name]}"
    return None


def refuse_url_list(config: SourceConfig, file: InputFile) -> None:
    """Raises SourceError for a file without pictures that has URLs, unless the job names its column of captions."""
    if config.caption_column is not None:
        return
    url = _first(config.url_column, URL_NAMES, file.schema.names)
    if url is not None:
        raise SourceError(
            f"{file.uri}: is a list of URLs (column {url!r}), which pairmill build downloads. To embed its captions "
            "alone, name their column: source.caption_column"
        )


def holds_pictures(data_type: pa.DataType) -> bool:
    """Whether the values are bytes, or Hugging Face's Image: a struct of `bytes` and `path`."""
    if pa.types.is_dictionary(data_type):
        return holds_pictures(data_type.value_type)
    if pa.types.is_struct(data_type):
        place = data_type.get_field_index("bytes")
        return place >= 0 and holds_pictures(data_type.field(place).type)
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(data_type) for is_kind in kinds)


def is_text(data_type: pa.DataType) -> bool:
    """Whether the values are text or bytes, dictionary-encoded or not; a column of nothing but nulls is too."""
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
    kinds = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_kind(data_type) for is_kind in kinds) and is_text(data_type.value_type)


def _plain(name: str) -> str:
    return name.strip().lower()


def _words(name: str) -> str:
    """`image_link` for `Image Link`, `image-link` and the like."""
    return re.sub(r"[\s_-]+", "_", _plain(name))


def _split(names: Sequence[str], url: str, caption: str | None, uid: str | None) -> FileColumns:
    found = [None if wanted is None else find_column(names, wanted) for wanted in (url, caption, uid)]
    extra = tuple(name for name in names if name not in found and name != MALFORMED_COLUMN)
    return FileColumns(found[0], found[1], found[2], extra)


def _first(given: str | None, usual: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that is given by its name, else the first of the usual ones; None where there is none."""
    found = (find_column(names, wanted) for wanted in ([given] if given is not None else usual))
    return next((name for name in found if name is not None), None)


def _choose(
    setting: str, given: str | None, usual: Sequence[str], inputs: Sequence[InputFile], needed: bool = False
) -> str | None:
    """The column that `source.SETTING` names, or the first usual name of the first file that has one."""
    for file in inputs:
        if (found := _first(given, usual, file.schema.names)) is not None:
            return found
    first = inputs[0]
    if given is not None:
        raise SourceError(
            f"{first.uri}: no column {given!r} (source.{setting}); it has {shown(first.schema.names)}. "
            f"Set source.{setting} to one of these{'' if needed else ' or leave it out'}."
        )
    if needed:
        raise SourceError(
            f"{first.uri}: no column is named like one of {', '.join(usual)}; it has {shown(first.schema.names)}. "
            f"Set source.{setting} to one of these.{_hint(first)}"
        )
    return None


def _hint(file: InputFile) -> str:
    """What may be meant with a file that has no column of URLs."""
    if file.kind in ("csv", "tsv"):
        return f" Does the first line hold the column names? Separated by {file.delimiter!r} (source.delimiter)."
    if file.kind == "parquet" and (pictures := [each.name for each in file.schema if holds_pictures(each.type)]):
        return f" For the pictures in column {pictures[0]!r}, use pairmill embed."
    return ""


def _check_distinct(roles: dict[str, str | None], license_: str | None) -> None:
    used: dict[str, str] = {}
    for role, column in roles.items():
        if column is not None and (other := used.setdefault(column, role)) != role:
            raise SourceError(f"source.{role}_column and source.{other}_column are both {column!r}: they must differ")
    if license_ in (roles["url"], roles["caption"], roles["uid"]) and license_ is not None:
        raise SourceError(f"source.license_column is {license_!r}, which is already used as another column")


def _check_roles(file: InputFile, columns: FileColumns, url: str, caption: str | None, uid: str | None) -> None:
    """What is in one file must be in all, for a row without it would be lost. Lists of URLs have no captions."""
    for setting, name, found in _roles(columns, url, caption, uid):
        if not name:  # a corpus without URLs
            continue
        if found is None and not (file.kind == "text" and setting == "caption_column"):
            raise SourceError(
                f"{file.uri}: no column {name!r}, as other files have; it has {shown(file.schema.names)}. "
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


def _lacks_checksums(file: InputFile, column: str) -> str | None:
    """A file without the column would pass unchecked, so its name must be the same, to the letter, in all files."""
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


def _add_type(types: dict[str, tuple[pa.DataType, str]], name: str, file: InputFile) -> None:
    found = without_views(file.schema.field(name).type)
    known, first_uri = types.setdefault(name, (found, file.uri))
    common = _common_type(known, found)
    if common is None:
        raise SourceError(
            f"column {name!r} is {known} in {first_uri} but {found} in {file.uri}: "
            f"write both files with one type, or process them into two outputs"
        )
    types[name] = (common, first_uri)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds both (int and double: double, as pandas writes ints with gaps); None where there is none."""
    if one.equals(other):
        return one
    one, other = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other))
    try:
        schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        for data_type in (one, other):
            pa.nulls(0, data_type).cast(common)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None
    return common


def _extra_schema(types: dict[str, tuple[pa.DataType, str]]) -> pa.Schema:
    taken: set[str] = set()
    fields = []
    for name, (data_type, _) in types.items():
        output_name = source_column_name(name, taken)
        taken.add(output_name.lower())
        fields.append(pa.field(output_name, data_type))
    return pa.schema(fields)
