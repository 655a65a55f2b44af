"""Turns values into 64-bit keys, which take a fraction of the space of a URL and sort as integers.

uid       the first 64 bits of the SHA-256 of its 32 lower-case digits (users' own uids may be consecutive numbers)
url       the first 64 bits of the SHA-256 of its UTF-8 bytes, exactly as given except for surrounding white space
sha256    its first 64 bits
md5       its first 64 bits
phash     the hash itself
pdq       the hash itself: four words of 64 bits

Two URLs share a key by chance with a probability of 2^-64: with a billion known URLs, a new one is mistaken for a known
one with a probability of 5e-11.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.image.pdq import MIN_QUALITY
from pairmill.pipeline.known.hash_index import hash_words, is_hash
from pairmill.schemas.known import ValueKind

Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

HEX_DIGITS: dict[ValueKind, int] = {"uid": 32, "sha256": 64, "md5": 32, "phash": 16, "pdq": 64}
PDQ_WORDS = 4
PDQ: Final = "pdq"
PDQ_QUALITY = "pdq_quality"
HASH_WORDS: Mapping[str, int] = {"phash": 1, PDQ: PDQ_WORDS}
"""Column of perceptual hashes -> length of a hash in 64-bit words."""
QUALITIES: Mapping[str, str] = {PDQ: PDQ_QUALITY}
"""Column of perceptual hashes -> the column that says whether a hash can be compared."""


def columns_of(kind: ValueKind) -> frozenset[str]:
    """The columns that `row_keys` reads if the dataset has them."""
    return frozenset({kind, PDQ_QUALITY}) if kind == "pdq" else frozenset({kind})


def hash_problem(schema: pa.Schema, names: Iterable[str]) -> str | None:
    """Why one of these columns, if it is to have perceptual hashes, cannot be compared. None if all can. Users can have
    their own column `pdq`."""
    compared = set(names) & set(schema.names)
    for name in sorted(HASH_WORDS.keys() & compared):
        if not is_text(kind := schema.field(name).type):
            return f"the column {name!r} has the type {kind}, not text of {16 * HASH_WORDS[name]} hex digits"
        quality = QUALITIES.get(name)
        if quality in schema.names and not pa.types.is_integer(kind := schema.field(quality).type):
            return f"the column {quality!r} has the type {kind}, not integers from 0 to 100"
    return None


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text, with or without a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def row_keys(kind: ValueKind, rows: pa.Table) -> tuple[Keys, Mask]:
    """Like `lookup_keys`, for the rows of a dataset. PDQ hashes of low quality do not count as values."""
    keys, is_value = lookup_keys(kind, rows[kind])
    return keys, is_value & _has_quality(kind, rows)


def has_value(kind: ValueKind, rows: pa.Table) -> Mask:
    """The mask of `row_keys`."""
    return _is_value(kind, _plain(kind, rows[kind])) & _has_quality(kind, rows)


def lookup_keys(kind: ValueKind, column: pa.Array | pa.ChunkedArray) -> tuple[Keys, Mask]:
    """(key of each row [rows] or [rows, PDQ_WORDS], mask of the rows with a value [rows]). Keys of other rows are zero.

    `column`: as datasets store it; null, empty text, blank URLs and text in place of a perceptual hash do not count as
    values. Raises ValueError as `keys_of` does.
    """
    array = _plain(kind, column)
    is_value = _is_value(kind, array)
    values = array if is_value.all() else array.filter(pa.array(is_value))
    keys = np.zeros((len(array), PDQ_WORDS) if kind == "pdq" else len(array), np.uint64)
    keys[is_value] = keys_of(kind, values)
    return keys, is_value


def _plain(kind: ValueKind, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array, without the white space around URLs."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if kind in HASH_WORDS:
        return array.cast(pa.large_string())
    return pc.utf8_trim_whitespace(array) if kind == "url" else array


def _is_value(kind: ValueKind, array: pa.Array) -> Mask:
    if kind in HASH_WORDS:
        return is_hash(array, HASH_WORDS[kind])
    found: Mask = pc.not_equal(array, "").fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _has_quality(kind: ValueKind, rows: pa.Table) -> Mask:
    """Whether the hash of each row can be compared."""
    if kind != PDQ or PDQ_QUALITY not in rows.column_names:
        return np.ones(rows.num_rows, np.bool_)
    found: Mask = rows[PDQ_QUALITY].fill_null(0).to_numpy() >= MIN_QUALITY
    return found


def keys_of(kind: ValueKind, values: pa.Array) -> Keys:
    """The keys of values without nulls, in canonical form: URLs without surrounding white space, digests in hex, uids
    without hyphens and in lower case. Raises ValueError for digests and uids of the wrong length, and for digests that
    are not hex digits."""
    if kind == "url":
        return _sha256_keys(values.cast(pa.large_binary()).to_pylist())
    if not pc.all(pc.equal(pc.binary_length(values), HEX_DIGITS[kind])).as_py() and len(values):
        raise ValueError(f"each {kind} must have {HEX_DIGITS[kind]} hex digits")
    if kind == "pdq":
        return hash_words(values, PDQ_WORDS)
    if kind == "uid":
        return _sha256_keys(values.cast(pa.large_binary()).to_pylist())
    return digest_keys(values)


def digest_keys(digests: pa.Array) -> Keys:
    """The first 64 bits of digests in hex, all of the same length, without nulls."""
    if not len(digests):
        return np.zeros(0, np.uint64)
    raw = bytes.fromhex("".join(digests.to_pylist()))
    return np.frombuffer(raw, ">u8").reshape(len(digests), -1)[:, 0].astype(np.uint64)


def _sha256_keys(values: Sequence[bytes]) -> Keys:
    sha256 = hashlib.sha256
    raw = b"".join([sha256(value).digest() for value in values])
    return np.frombuffer(raw, ">u8").reshape(len(values), 4)[:, 0].astype(np.uint64)
