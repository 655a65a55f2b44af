"""Removes withdrawn rows from exports. Each part is filtered by the uids in its own files."""

import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from pairmill.pipeline.common.storage import Store, is_in_use
from pairmill.pipeline.dataset.exports import noted_exports
from pairmill.pipeline.dataset.manifests import read_record, record_bytes
from pairmill.pipeline.dataset.output_folder import is_export, records_folder
from pairmill.pipeline.dataset.webdataset_tar import sizes_table
from pairmill.pipeline.export.readme import purged_readme
from pairmill.pipeline.purge.digests import DigestSet
from pairmill.pipeline.purge.export_part import REMEDY, DamagedPartError, PartFiles, reading_export
from pairmill.pipeline.purge.keys import digest
from pairmill.schemas.errors import JobError
from pairmill.schemas.export import ExportedPart, ExportRecord
from pairmill.schemas.purge import ExportPurge
from pairmill.schemas.s3 import S3Config

_PART_FILE = re.compile(r"(?:metadata_|img_emb_|text_emb_)?\d+\.(?:tar|parquet|npy|npz)")


def purge_exports(store: Store, uids: DigestSet, also: Sequence[str]) -> Iterator[ExportPurge]:
    """Purge every export that the dataset knows of, and those in `also` (paths or URLs). Yields each outcome once the
    parts are purged, before the export's record is updated."""
    for output in known_exports(store, also):
        yield from _purge_if_there(output, store.files.s3, uids)


def known_exports(store: Store, also: Sequence[str]) -> list[str]:
    """The paths or URLs of the exports that the dataset knows of, and those in `also`."""
    return list(dict.fromkeys([*(note.output for note in noted_exports(store)), *also]))


def refuse_no_exports(store: Store, paths: Sequence[str]) -> None:
    """Raise JobError if one of these paths or URLs has no export, not even a damaged one."""
    for path in paths:
        if not any(_records_of(Store(path, store.files.s3))):
            raise JobError(f"--export {path}: no export found; specify the folder that `pairmill export` wrote")


def _records_of(output: Store) -> tuple[bool, bool]:
    """(whether a folder has the record of an export, whether it has parts of one)."""
    return is_export(output), bool(output.list(f"{records_folder(output)}/manifests"))


def _purge_if_there(path: str, s3: S3Config, uids: DigestSet) -> Iterator[ExportPurge]:
    """Purge an export. An export that cannot be reached or read must not keep the purge from finishing."""
    try:
        output = Store(path, s3)
        has_record, has_parts = _records_of(output)
    except OSError:
        has_record = has_parts = False
    if has_record:
        yield from _ExportFiles(output).purge(uids)
    else:
        yield ExportPurge(output=path, outcome="damaged" if has_parts else "not found")


class _ExportFiles:
    """The files of one export."""

    def __init__(self, output: Store) -> None:
        self._output, self._records = output, records_folder(output)

    def purge(self, uids: DigestSet) -> Iterator[ExportPurge]:
        """Purge every part that can be read, then yield the outcome, then update the files that describe the export.
        The record keeps the number of rows unless all parts can be read."""
        _remove_temporary(self._output)
        try:
            with reading_export():
                record = read_record(self._output, f"{self._records}/export.json", ExportRecord, REMEDY)
        except DamagedPartError:
            yield ExportPurge(output=self._output.root, outcome="damaged")
            return
        all_parts = PartFiles.of(self._output, self._records)
        is_finished = len(all_parts) >= record.num_files
        before, parts, described = _purge_parts(all_parts, uids)
        is_damaged = len(parts) < len(all_parts)
        if not is_finished and not is_damaged:
            self._delete_unfinished({name for part in parts for name in part.files})
        try:
            self._purge_uid_array(uids, is_required=is_finished and record.format == "datacomp")
        except DamagedPartError:
            is_damaged = True
        is_whole = is_finished and not is_damaged
        rows = sum(part.rows for part in parts)
        gone = (record.rows if is_whole else before) - rows  # `record` still counts what a killed purge removed
        found = ExportPurge(output=self._output.root, outcome="rewritten" if gone else "nothing to withdraw", rows=gone)
        if not is_whole:
            found = found.model_copy(update={"outcome": "damaged" if is_damaged else "unfinished"})
        yield found
        self._describe(described)
        if is_whole and gone:
            record = record.model_copy(update={"rows": rows})
            self._output.replace(f"{self._records}/export.json", record_bytes(record))

    def _delete_unfinished(self, named: Collection[str]) -> None:
        """Delete data files that no part names. An interrupted export wrote them."""
        for folder in ("", "metadata", "img_emb", "text_emb"):
            for name in self._output.list(folder):
                path = f"{folder}/{name}".lstrip("/")
                if path not in named and _PART_FILE.fullmatch(name):
                    self._output.delete(path)

    def _purge_uid_array(self, uids: DigestSet, is_required: bool) -> None:
        if not is_required and not self._output.exists("subset.npy"):
            return
        with reading_export():
            array = np.load(io.BytesIO(self._output.read("subset.npy")), allow_pickle=False)
            texts = [f"{high:016x}{low:016x}" for high, low in array.tolist()]
        gone = uids.contains([digest("uid", text.encode()) for text in texts])
        if gone.any():
            data = io.BytesIO()
            np.save(data, array[~gone])
            self._output.replace("subset.npy", data.getvalue())

    def _describe(self, parts: Sequence[ExportedPart]) -> None:
        """Update the files that describe all parts. Whoever has cached the rows of an export, even of a damaged one,
        recognizes by its README that they have changed."""
        output = self._output
        if output.exists("sizes.json"):
            self._update("sizes.json", sizes_table(_sizes(parts)))
        if output.exists("README.md"):
            text = output.read("README.md").decode(errors="surrogateescape")
            self._update("README.md", purged_readme(text, parts).encode(errors="surrogateescape"))

    def _update(self, name: str, data: bytes) -> None:
        if self._output.read(name) != data:
            self._output.replace(name, data)


def _purge_parts(files: Sequence[PartFiles], uids: DigestSet) -> tuple[int, list[ExportedPart], list[ExportedPart]]:
    """(number of rows before the purge, the parts that can be read as they are now, all parts according to their
    manifests)."""
    before, parts, described = 0, list[ExportedPart](), list[ExportedPart]()
    for each in files:
        with suppress(DamagedPartError):
            rows, part = each.purge(uids)
            before += rows
            parts.append(part)
        with suppress(DamagedPartError):
            described.append(each.recorded())
    return before, parts, described


def _sizes(parts: Sequence[ExportedPart]) -> Mapping[str, int]:
    return {name: part.rows for part in parts for name in part.files}


def _remove_temporary(output: Store) -> None:
    """Delete what killed exports left behind in `tmp/`, on any machine: pictures, uids and URLs of any rows."""
    for name in output.list("tmp"):
        if not is_in_use(name):
            output.delete(f"tmp/{name}")
    output.remove_temporary()
