"""Finds, inspects and indexes the files of a corpus: the part of planning that knows about pictures.

input                                     planned files            rows
----------------------------------------  -----------------------  ---------------------------------------
tars (WebDataset, img2dataset)            each tar                 its samples, indexed in `input/`
a folder of picture files                 each folder of pictures  its pictures, indexed in `input/`
Parquet with a column of pictures         each Parquet file        its rows, as they are
the output of a pairmill job              each `pairs/` file       its pairs, as they are
Parquet, CSV, JSON lines with captions    each file                its rows; there are no pictures
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import S3_SCHEMES, Files, is_remote
from pairmill.pipeline.common.listing import Listing, entries_in
from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.common.text import counted, utf8_bytes
from pairmill.pipeline.dataset.manifests import read_manifests
from pairmill.pipeline.dataset.withdrawn import readable_shards
from pairmill.pipeline.source.columns import (
    can_contain_pictures,
    carried_columns,
    map_columns,
    misfit,
    refuse_other_pictures,
    refuse_url_list,
)
from pairmill.pipeline.source.convert import convert, converted_name, inspect_text
from pairmill.pipeline.source.corpus import folders
from pairmill.pipeline.source.corpus.index import INDEX_LAYOUT, INDEX_SCHEMA, IndexRow, index_table
from pairmill.pipeline.source.corpus.json_fields import FIELDS_KEY, FieldNotes, column_names
from pairmill.pipeline.source.corpus.metadata_tables import MetadataTables
from pairmill.pipeline.source.corpus.sidecar import TextRules, TextUse
from pairmill.pipeline.source.corpus.tars import tar_rows
from pairmill.pipeline.source.files import (
    PICTURE_ENDINGS,
    InputFile,
    Inputs,
    SourceError,
    inspect_parquet,
    kind_of,
    list_inputs,
    listed,
    with_partitions,
)
from pairmill.pipeline.source.mapping import (
    ColumnMapping,
    ColumnPictures,
    IndexedPictures,
    NoPictures,
    PairsPictures,
    PictureSource,
    WebPictures,
)
from pairmill.pipeline.source.names import TABLE_NAMES
from pairmill.pipeline.source.partitions import append_partitions
from pairmill.pipeline.source.planned import load
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.pairs import OWN_COLUMNS
from pairmill.schemas.passed_over import Tally

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes")
"""Usual names of picture columns, used if the job names none; `image` is Hugging Face's."""

_PAIRS_FILE = re.compile(r".*/pairs/\d{9}(\.g\d+)?(\.[0-9a-f]{32})?\.parquet", re.DOTALL)
TALLY_KEY = "pairmill_tally"
"""Key of the Tally in the footer of an index."""
_COMPRESSED_EXTENSIONS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_PICTURE_SUFFIXES = tuple(f".{ending}" for ending in PICTURE_ENDINGS)
_SAMPLED_BLOCKS, _BLOCK_BYTES = 16, 1 << 16
_BATCH_BYTES = 32 << 20


class Corpus:
    """The files of one corpus, all of the same kind: the first kind in this module's table that the paths contain."""

    def __init__(self, source: SourceConfig, files: Files) -> None:
        self._source = source
        self._files = files
        self._rules = TextRules.of(source)
        self._columns: dict[str, str | None] = {}  # Parquet file -> its picture column
        self._tables = MetadataTables(source, files)

    def inputs(self, exclude: str) -> Inputs:
        """The files to plan, in order, and everything else that was found, except in `exclude`. Names of picture
        folders end in `/`. Raises SourceError."""
        found = Inputs()
        for path in self._source.paths:
            if outputs := _outputs(path, self._files):
                found.add(outputs, Listing())
            else:
                self._add(found, path, exclude)
        found.check_names()
        kinds = {self.kind(uri) for uri in found.files}
        if len(kinds) > 1:
            raise SourceError(f"source.paths: cannot mix {' and '.join(sorted(kinds))}; make an output for each kind")
        return found

    def _add(self, found: Inputs, path: str, exclude: str) -> None:
        listing = listed(path, self._files, exclude)
        if tars := _of(listing, (".tar",)):
            if pictures := _of(listing, _PICTURE_SUFFIXES):
                raise SourceError(
                    f"source.paths: {path} contains both tars and pictures, such as {pictures[0]}; select one kind"
                )
            found.add(tars, listing)
        elif packed := _of(listing, _COMPRESSED_EXTENSIONS):
            raise SourceError(f"source.paths: {packed[0]}: pictures are read from tars by range, so unpack it to .tar")
        else:
            self._add_others(found, path, listing, exclude)

    def _add_others(self, found: Inputs, path: str, listing: Listing, exclude: str) -> None:
        parquet = _of(listing, (".parquet",))
        if parquet and self._image_column(inspect_parquet(parquet[0], self._files).schema):
            found.add(parquet, listing)
        elif pictures := _of(listing, _PICTURE_SUFFIXES):
            if set(pictures) & set(listing.named):
                raise SourceError(f"source.paths: {path}: specify the folder that has the pictures, not the pictures")
            self._add_folders(found, pictures, listing)
        else:
            tables = list_inputs([path], exclude, self._files)
            found.add(tables.files, listing)

    def _add_folders(self, found: Inputs, pictures: Sequence[str], listing: Listing) -> None:
        """Plan the folders with pictures or metadata tables. Their files are counted when each folder is indexed."""
        self._tables.add(listing.files, pictures)
        names = {picture.rpartition("/")[0] for picture in pictures} | self._tables.folders
        outside = Listing(
            files=[
                uri for uri in listing.files if uri.rpartition("/")[0] not in names and not self._tables.is_used(uri)
            ],
            passed_over={
                uri: reason
                for uri, reason in listing.passed_over.items()
                if uri.endswith("/") or uri.rpartition("/")[0] not in names
            },
        )
        found.add([f"{name}/" for name in sorted(names)], outside)

    def kind(self, uri: str) -> str:
        """The kind of a planned file."""
        if uri.endswith("/"):
            return "folders"
        if uri.lower().endswith(".tar"):
            return "tars"
        if _PAIRS_FILE.fullmatch(uri):
            return "pairs"
        kind = kind_of(uri)
        if kind == "text":
            raise SourceError(
                f"{uri}: a plain text file is a list of URLs, for pairmill build; captions must be in a column"
            )
        return "parquet" if kind == "parquet" else "texts"

    def inspect(self, uri: str) -> InputFile:
        """The columns and the number of rows, as far as they are known before the file is indexed."""
        kind = self.kind(uri)
        if kind in ("folders", "tars"):
            return with_partitions(InputFile(uri, "index", INDEX_SCHEMA, None, self._files))
        if kind == "pairs":
            return _drop_columns(inspect_parquet(uri, self._files), _is_own_column)
        if kind != "parquet":
            return inspect_text(uri, kind_of(uri), self._files, self._source)
        file = inspect_parquet(uri, self._files)
        self._columns[uri] = column = self._image_column(file.schema)
        return _drop_columns(file, lambda name: name == column)

    def fingerprint(self, uri: str) -> str:
        """An identifier of the content. For a tar, which is too large to read twice, it covers the size and some evenly
        spaced blocks; for a folder, the names and sizes of its files, and the metadata tables that describe it."""
        kind = self.kind(uri)
        if kind == "folders":
            listing = "\0".join(f"{name}:{size}" for name, size in self._files_of(uri, Tally()))
            listing += self._tables.fingerprint(uri.removesuffix("/"))
            return f"listing:{hashlib.blake2b(utf8_bytes(listing), digest_size=16).hexdigest()}"
        return _sampled_digest(uri, self._files) if kind == "tars" else self._files.fingerprint(uri)

    def mapping(self, files: Sequence[InputFile], needs_license: bool) -> ColumnMapping:
        """The meaning of the columns. Raises SourceError."""
        kind, source = self.kind(files[0].uri), self._source
        if kind in ("folders", "tars"):
            _refuse_column_settings(source, needs_license)
            names = ("key", *dict.fromkeys(name for file in files for name in file.partitions))
            extra = carried_columns(dict.fromkeys(names, pa.string()))
            return ColumnMapping(
                "url", "caption", "uid", None, None, extra, names, IndexedPictures(), has_partitions=True
            )
        if kind == "pairs":
            if source.image_column is not None:
                raise SourceError("source.image_column: the pictures of an output are in its tars, not in a column")
            usual = {"url_column": "url", "caption_column": "caption", "uid_column": "uid"}
            roles = {name: getattr(source, name) or column for name, column in usual.items()}
            return map_columns(source.model_copy(update=roles), files, needs_license, PairsPictures())
        column = self._columns.get(files[0].uri)
        for file in files:
            if self._columns.get(file.uri) != column:
                with_them, without = (files[0].uri, file.uri) if column else (file.uri, files[0].uri)
                shown = column or self._columns.get(file.uri)
                raise SourceError(f"{without}: no pictures in column {shown!r}, unlike {with_them}")
        if column is None:
            refuse_url_list(source, files[0])
            refuse_other_pictures(source, files[0], IMAGE_NAMES)
        return map_columns(source, files, needs_license, _pictures(column))

    def misfit(self, mapping: ColumnMapping, file: InputFile) -> str | None:
        """Why a new file does not fit a corpus that is already planned, or None."""
        if file.kind == "index":
            known = mapping.extra_columns if mapping.has_partitions else file.partitions
            new = [name for name in file.partitions if name not in known]
            return (
                f"{file.uri}: its path adds column {new[0]!r}, but the output's plan fixes the columns" if new else None
            )
        if file.uri in self._columns and _pictures(self._columns[file.uri]) != mapping.pictures:
            return f"{file.uri}: its pictures are not where this output's plan expects them"
        return misfit(mapping, file)

    def converted_name(self, file: InputFile, fingerprint: str, mapping: ColumnMapping, shard_rows: int) -> str:
        """Name of the index or converted file in the output folder. It changes whenever the content would change."""
        if file.kind != "index":
            return converted_name(file, fingerprint, mapping, shard_rows)
        rules = self._rules
        settings = [INDEX_LAYOUT, rules.caption, rules.url, rules.uid, rules.encoding, self._source.caption_from_name]
        return converted_name(file, json.dumps([fingerprint, settings]), mapping, shard_rows)

    def convert(self, file: InputFile, name: str, mapping: ColumnMapping, shard_rows: int, store: Store) -> None:
        """Write the index of a tar or folder, or convert a text file. Raises SourceError."""
        if file.kind != "index":
            convert(file, name, mapping, shard_rows, store)
            return
        tally, named, notes = Tally(), TextUse(self._source.caption_column), FieldNotes()
        with store.new_file() as target:
            schema = append_partitions(INDEX_SCHEMA.empty_table(), file.uri).schema
            with pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer:
                for batch in _batches(self._rows(file.uri, tally, named), max(shard_rows, 1_024)):
                    writer.write_table(append_partitions(index_table(batch, notes), file.uri))
                tally.uncaptioned = named.uncaptioned
                tally.json_keys = tuple(named.other_keys)
                writer.add_key_value_metadata({TALLY_KEY: json.dumps(tally.to_json()), FIELDS_KEY: notes.to_json()})
            if tally.rows:
                named.check(file.uri)
            store.create_from(name, target)

    def tally(self, name: str, store: Store) -> Tally:
        """The numbers of indexed entries that are rows, parts of rows, or skipped. An index from an earlier version
        counts only rows."""
        with store.files.open(store.path(name)) as file, pq.ParquetFile(file) as parquet:
            text = (parquet.metadata.metadata or {}).get(TALLY_KEY.encode())
            rows = parquet.metadata.num_rows
        return Tally.from_json(json.loads(text)) if text else Tally(rows, rows)

    def with_fields(self, mapping: ColumnMapping, indexes: Sequence[str], store: Store) -> ColumnMapping:
        """The mapping, with the JSON fields in these indexes as additional columns."""
        notes = FieldNotes()
        for name in dict.fromkeys(indexes):
            notes.add(self.fields(name, store))
        types, taken = notes.columns(), [*INDEX_SCHEMA.names, *mapping.extra_columns]
        names = column_names(types, taken)
        columns = {**dict.fromkeys(mapping.extra_columns, pa.string()), **{names[name]: types[name] for name in types}}
        return replace(mapping, extra=carried_columns(columns), extra_columns=tuple(columns), json_fields=names)

    def fields(self, name: str, store: Store) -> FieldNotes:
        """The JSON fields in an index."""
        with store.files.open(store.path(name)) as file, pq.ParquetFile(file) as parquet:
            return FieldNotes.from_json((parquet.metadata.metadata or {}).get(FIELDS_KEY.encode()))

    def _rows(self, uri: str, tally: Tally, use: TextUse) -> Iterator[IndexRow]:
        rules = replace(self._rules, use=use)
        if self.kind(uri) == "tars":
            return tar_rows(uri, self._files, tally, rules)
        names, folder, source = self._files_of(uri, tally), uri.removesuffix("/"), self._source
        pictures = [name for name, _ in names if name.lower().endswith(_PICTURE_SUFFIXES)]
        described = self._tables.describe(folder, pictures)
        return folders.folder_rows(
            folder, names, source.caption_from_name, self._files, tally, rules, source.paths, described
        )

    def _image_column(self, schema: pa.Schema) -> str | None:
        given = self._source.image_column
        for name in [given] if given else IMAGE_NAMES:
            if name in schema.names and can_contain_pictures(schema.field(name).type):
                return name
        if given:
            raise SourceError(f"source.image_column: no column {given!r} with bytes, or with structs that have `bytes`")
        return None

    def _files_of(self, folder: str, tally: Tally) -> list[tuple[str, int]]:
        """Sorted (name, size in bytes) of the pictures and text files directly in a folder. Counts all other entries in
        `tally`, except the metadata tables that are used."""
        tables = [name for name in TABLE_NAMES if self._tables.is_used(f"{folder}{name}")]
        return folders.used_entries(entries_in(folder, self._files), self._rules, tally, tables)


def _of(listing: Listing, suffixes: tuple[str, ...]) -> list[str]:
    return [uri for uri in listing.files if uri.lower().endswith(suffixes)]


def _refuse_column_settings(source: SourceConfig, needs_license: bool) -> None:
    """Raise SourceError for settings that name columns, which tars and folders do not have."""
    if needs_license:
        raise SourceError("rules.license_allow: tars and folders have no license column")
    for name in ("image_column", "license_column"):
        if getattr(source, name) is not None:
            raise SourceError(f"source.{name}: tars and folders have no columns; leave it out")


def _batches(rows: Iterator[IndexRow], max_rows: int) -> Iterator[list[IndexRow]]:
    batch: list[IndexRow] = []
    num_bytes = 0
    for row in rows:
        batch.append(row)
        num_bytes += row.num_bytes
        if len(batch) == max_rows or num_bytes > _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _pictures(column: str | None) -> PictureSource:
    return ColumnPictures(column) if column else NoPictures()


def _outputs(path: str, files: Files) -> list[str]:
    """`pairs/` files of a finished pairmill output, from its manifests; empty if the path is not such an output."""
    if is_remote(path) and not path.startswith(S3_SCHEMES):
        return []
    store = Store(path, files.s3)
    if not store.list("manifests") or (plan := load(store)) is None:
        return []
    if isinstance(plan.mapping.pictures, (ColumnPictures, NoPictures)):
        names = ", ".join(file.source for file in plan.inputs[:3])
        raise SourceError(f"source.paths: {path} refers to pictures in Parquet files; embed these instead: {names}")
    if isinstance(plan.mapping.pictures, WebPictures) and plan.job.images.store == "none":
        raise SourceError(f"source.paths: {path} was built with images.store: none, so it has no pictures")
    if missing := plan.num_shards - len(readable_shards(store)):
        raise SourceError(
            f"source.paths: {path} is not finished: {missing:,} of {counted(plan.num_shards, 'shard')} missing"
        )
    return [store.path(manifest.files["pairs"].path) for manifest in read_manifests(store) if manifest.pairs]


def _drop_columns(file: InputFile, is_dropped: Any) -> InputFile:
    schema = pa.schema([field for field in file.schema if not is_dropped(field.name)])
    return replace(file, schema=schema, partitions=tuple(name for name in file.partitions if name in schema.names))


def _is_own_column(name: str) -> bool:
    """Whether the new output computes this column of a pairs file itself."""
    scores = ("similarity_", "image_embedding_", "text_embedding_")
    return name not in ("uid", "url", "caption") and (name in OWN_COLUMNS or name.startswith(scores))


def _sampled_digest(uri: str, files: Files) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with files.open(uri) as file:
        size = file.seek(0, 2)
        for number in range(_SAMPLED_BLOCKS):
            file.seek(max(0, (size - _BLOCK_BYTES)) * number // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return f"sampled:{size}:{digest.hexdigest()}"
