"""THE place where a Parquet file that pairmill did not write is first opened."""

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


class EncryptedParquetError(pa.ArrowInvalid):  # type: ignore[misc]
    """The file is encrypted, or some of its columns are."""


def open_parquet(file: IO[bytes], **options: Any) -> pq.ParquetFile:
    """Like `pq.ParquetFile`, but raises EncryptedParquetError, because Arrow aborts the process as soon as it looks at
    an encrypted column."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    if not tail.endswith(PARQUET_MAGICS[1]):
        parquet = pq.ParquetFile(file, **options)
        if int.from_bytes(tail[:4], "little") != parquet.metadata.serialized_size + _SIGNATURE_BYTES:
            return parquet
    raise EncryptedParquetError("the Parquet file is encrypted, or some of its columns are; decrypt it first")
