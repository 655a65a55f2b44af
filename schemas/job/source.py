"""Defines the section `source`: where the pairs come from."""

import codecs
import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pairmill.schemas.settings import Settings, Uri


def _as_list(paths: object) -> object:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def _text_encoding(name: str) -> str:
    """Python's canonical name for a text encoding."""
    try:
        b"a".decode(name, "backslashreplace")
    except (LookupError, UnicodeError):  # codecs that decode to bytes, such as base64, or only host names, such as idna
        raise ValueError(
            "unknown text encoding; common ones are utf-8, latin-1, cp1252, utf-16, gb18030, shift_jis"
        ) from None
    return codecs.lookup(name).name.removesuffix("-sig")


def _field_delimiter(value: str) -> str:
    value = {"tab": "\t", "\\t": "\t"}.get(value, value)
    if len(value) != 1 or not value.isascii() or value.isalnum() or value in '"\r\n\0':
        raise ValueError("a delimiter must be one ASCII character such as `;` or `|`, or the word tab")
    return value


class SourceConfig(Settings):
    """Where the pairs come from."""

    paths: Annotated[list[Uri], BeforeValidator(_as_list), Field(min_length=1)]
    """Files, folders, globs or fsspec URLs of Parquet, CSV, TSV, JSON (lines or an array) or text files with one URL
    per line. All formats but Parquet can be gzipped. A single path need not be a list."""
    url_column: str | None = None
    """Column of picture URLs. None: guessed from common names (url, image_url, ...)."""
    caption_column: str | None = None
    """Column of captions. None: guessed (caption, text, alt, ...). A column of lists becomes one row per caption. For
    tars and folders of pictures: a key in the .json files, a column of the metadata tables, or the extension of the
    text files."""
    uid_column: str | None = None
    """Column of your own ids: 32 hex characters, with or without hyphens. None: a hash of URL and caption."""
    sha256_column: str | None = None
    """Column with the expected SHA-256, in hex, of each picture's original bytes. Rows whose picture does not match get
    the status `content_changed`."""
    encoding: Annotated[str, AfterValidator(_text_encoding)] | None = None
    """Encoding of text files: utf-8, latin-1, cp1252, utf-16, ... A byte order mark in a file overrides it; utf-16
    without one is little-endian. None: UTF-8; files that are clearly in another encoding are refused."""
    delimiter: Annotated[str, AfterValidator(_field_delimiter)] | None = None
    """Character between the fields of CSV and TSV files, or `tab`. None: detected from the header: comma, tab,
    semicolon or `|`."""
    license_column: str | None = None
    """Column that `rules.license_allow` reads. None: guessed (license, licence) if that rule is on."""
    kind: Literal["urls", "corpus"] = "urls"
    """Where the pictures are: on the web (`urls`, for `pairmill build`), or in the input (`corpus`, for
    `pairmill embed`). A corpus may also consist of captions only."""
    image_column: str | None = None
    """Column of pictures in Parquet files, for `pairmill embed`: bytes, or structs with a field `bytes`. None: guessed
    (image, jpg, ...)."""
    caption_from_name: bool = False
    """In a folder of pictures, use the file name as the caption if no .txt, .json or metadata table has
    one."""
    limit_rows: Annotated[int, Field(ge=1)] | None = None
    """Plan only this many input rows. Raising or removing the limit later extends the plan; lowering it has no
    effect."""

    @property
    def is_corpus(self) -> bool:
        """Whether the input is a corpus, from which nothing is downloaded."""
        return self.kind == "corpus"

    @model_validator(mode="before")
    @classmethod
    def _kind_was_once_a_flag(cls, values: Any) -> Any:
        """Outputs from before 0.2 say `held: true` for a corpus."""
        if isinstance(values, dict) and "held" in values:
            held, values = values["held"], {name: value for name, value in values.items() if name != "held"}
            values.setdefault("kind", "corpus" if held else "urls")
        return values


def names_a_corpus(source: object) -> bool:
    """Whether the source is a corpus, even before validation. Outputs from before 0.2 say `held`."""
    return isinstance(source, dict) and (source.get("kind") == "corpus" or bool(source.get("held")))
