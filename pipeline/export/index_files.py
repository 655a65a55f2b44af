"""Writes the files that describe a whole export, for formats that have them."""

import hashlib
import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.dataset.manifests import read_record
from pairmill.pipeline.dataset.output_folder import EXPORT_RECORDS
from pairmill.pipeline.dataset.webdataset_tar import sizes_table
from pairmill.pipeline.export.readme import readme
from pairmill.pipeline.export.write import OTHER_OUTPUT, PartWriter, manifest_name
from pairmill.schemas.export import ExportedPart, ExportRecord


def write_index(
    writer: PartWriter, record: ExportRecord, schema: pa.Schema, uids: npt.NDArray[np.void] | None = None
) -> tuple[str, ...]:
    """Write those files that are missing or different, once all parts are finished. Returns their names. `uids`: the
    content of `subset.npy`."""
    # Earlier versions' exports need a README even as Parquet: otherwise, `datasets` would read their records as data.
    if record.format == "parquet" and writer.records == EXPORT_RECORDS:
        return ()
    files, sample, endings = dict[str, bytes](), None, set[str]()
    manifests = (manifest_name(writer.records, number) for number in range(record.num_files))
    parts = [read_record(writer.output, name, ExportedPart, OTHER_OUTPUT) for name in manifests]
    if record.format == "webdataset":
        files["sizes.json"] = sizes_table({name: part.rows for part in parts for name in part.files})
        endings.update(*(part.image_endings for part in parts))
        if endings:
            names = [name for name in writer.columns if name != "caption_clean"]
            sample = pa.schema([schema.field(name) for name in names])
    files["README.md"] = readme(record.format, parts, sample, sorted(endings), record.caption).encode()
    if uids is not None:
        file = io.BytesIO()
        np.save(file, uids)
        files["subset.npy"] = file.getvalue()
    return tuple(name for name, data in files.items() if _update(writer.output, name, data))


def _update(output: Store, name: str, data: bytes) -> bool:
    """Write a file, unless it has this content. Returns whether it was written."""
    content = (hashlib.blake2b(data, digest_size=16).hexdigest(), len(data))
    if output.exists(name) and output.checksum(name) == content:
        return False
    output.replace(name, data)
    return True
