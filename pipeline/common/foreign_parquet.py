"""THE place where a Parquet file that pairmill did not write is first opened."""

import io
import os
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET_MAGICS = (b"PAR1", b"PARE")
"""The first and last bytes of a plain and of an encrypted file."""
_TAIL_BYTES = 8  # the length of the footer, and a magic number
_SIGNATURE_BYTES = 28
"""Bytes that follow the metadata in a readable footer if some columns are encrypted: a nonce and a tag
(https://parquet.apache.org/docs/file-format/data-pages/encryption)."""
_ENDLESS_BYTES = 1 << 62


class UnsupportedParquetError(pa.ArrowInvalid):  # type: ignore[misc]
    """The file is complete, but cannot be read; the message says why and what to do."""


class EncryptedParquetError(UnsupportedParquetError):
    """The file is encrypted, or some of its columns are."""

    def __init__(self) -> None:
        super().__init__("the Parquet file is encrypted, or some of its columns are; decrypt it first")


def open_parquet(file: IO[bytes], **options: Any) -> pq.ParquetFile:
    """Like `pq.ParquetFile`, but raises UnsupportedParquetError for names that are not UTF-8 and for encrypted files,
    and ArrowInvalid if Arrow would abort the process as soon as it looks at the footer's entry of some column."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    if tail.endswith(PARQUET_MAGICS[1]):
        raise EncryptedParquetError()
    try:
        parquet = pq.ParquetFile(file, **options)
    except UnicodeDecodeError as error:
        raise UnsupportedParquetError("the name of a column is not UTF-8; rename the column") from error
    except pa.ArrowInvalid as error:
        if "Map keys must be annotated as required" not in str(error):
            raise
        problem = "a column contains maps with optional keys, as Athena writes, which Arrow cannot read"
        raise UnsupportedParquetError(f"{problem}; leave it out, or write it with another tool") from error
    if int.from_bytes(tail[:4], "little") == parquet.metadata.serialized_size + _SIGNATURE_BYTES:
        raise EncryptedParquetError()
    _check_columns(parquet.metadata)
    return parquet


def _check_columns(metadata: pq.FileMetaData) -> None:
    """Raise if Arrow cannot look at the entry of each column in each row group. A signature is no proof: it can be cut
    off.

    Only a reader turns Arrow's errors into exceptions. With `pre_buffer` it looks at all entries before its first read,
    which here fails: so nothing is read, and a footer of a megabyte takes 3 ms.
    """
    for group in range(metadata.num_row_groups):
        if metadata.row_group(group).num_columns != metadata.num_columns:
            raise pa.ArrowInvalid(f"row group {group} does not have the columns of the schema")
    try:
        next(pq.ParquetFile(_Unreadable(), metadata=metadata, pre_buffer=True).iter_batches(1, use_threads=False), None)
    except _FirstRead:
        return
    except (pa.ArrowException, OSError) as error:
        raise (EncryptedParquetError() if "decrypt" in str(error) else pa.ArrowInvalid(str(error))) from error


class _FirstRead(Exception):
    pass


class _Unreadable(io.RawIOBase):
    """A file that contains every range of bytes, none of which can be read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return offset

    def tell(self) -> int:
        return _ENDLESS_BYTES  # Arrow seeks the end and asks for the position to learn the size

    def read(self, size: int = -1) -> bytes:
        raise _FirstRead
