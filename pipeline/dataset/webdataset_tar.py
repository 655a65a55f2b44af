"""Stores the pictures of a shard in a WebDataset tar: `uid.jpg`, `uid.txt`, `uid.json` per pair.

The format: https://github.com/webdataset/webdataset (the members of a sample are consecutive and share a stem).
Uids are 32 hex characters, so member names never come from the web.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from pairmill.pipeline.image import sniff

MEMBER_COLUMNS = ("uid", "url", "caption", "status", "sha256", "width", "height", "original_width", "original_height")


def write_tar(
    file: IO[bytes], pairs: pa.Table, pictures: Iterable[pa.Buffer | bytes], image_format: str | None = None
) -> tuple[list[int], list[int]]:
    """Write one sample per row of `pairs`. Returns the offsets and lengths of the pictures.

    `image_format`: the file name extension of the pictures. None: detected from the first bytes of each.
    """
    offsets, lengths = [], []
    details = pairs.select(list(MEMBER_COLUMNS) + _similarity_columns(pairs)).to_pylist()
    captions = pairs["caption_clean"].to_pylist()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for picture, caption, detail in zip(pictures, captions, details, strict=True):
            name = f"{detail['uid']}.{image_format or _ending(picture)}"
            offsets.append(_add(tar, name, memoryview(picture)))
            lengths.append(len(picture))
            _add(tar, f"{detail['uid']}.txt", (caption or "").encode())
            _add(tar, f"{detail['uid']}.json", json.dumps(detail, ensure_ascii=False).encode())
    return offsets, lengths


def _ending(picture: pa.Buffer | bytes) -> str:
    found = sniff.image_format(bytes(picture[: sniff.FORMAT_HEAD_BYTES])) or "bin"
    return {"JPEG": "jpg", "TIFF": "tif"}.get(found, found.lower())


def _similarity_columns(pairs: pa.Table) -> list[str]:
    return [name for name in pairs.column_names if name.startswith("similarity_")]


def _add(tar: tarfile.TarFile, name: str, data: bytes | memoryview) -> int:
    """Add a member with a fixed owner and time, so that equal pairs give equal tars. Returns the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block
    tar.addfile(member, io.BytesIO(data))
    return offset


def read_tar(file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, length) of every member, in order. Nothing is extracted."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            yield member.name, member.offset_data, member.size


def read_range(file: IO[Any], offset: int, length: int) -> bytes:
    """Read the bytes of one picture."""
    file.seek(offset)
    return bytes(file.read(length))
