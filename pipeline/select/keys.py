"""Converts columns to fixed-size numbers: 128-bit dedup keys, hashes of uids, and scores that sort as integers."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.known.hash_index import hash_words
from pairmill.pipeline.known.keys import PDQ, is_text
from pairmill.pipeline.select.comparisons import as_doubles, is_number
from pairmill.pipeline.select.expressions import Expression

U64 = npt.NDArray[np.uint64]

RANK = np.dtype([("rank", "<u8"), ("low_bits", "<u8")])
"""A score as two integers that sort like the score. `rank`: the bits of a float64, reordered. `low_bits`: the lowest
11 bits of an integer score, which `rank` leaves out because a float64 cannot represent all 64 bits; 0 for other
scores. For decimals, both together are the 128 bits of the digits, with the sign bit inverted."""

Ranks = npt.NDArray[np.void]
"""An array of shape (rows,) and dtype RANK."""

_LOW_BITS_MASK = 0x7FF
_SIGN = np.uint64(1 << 63)

HEX_COLUMNS = frozenset({"uid", "sha256", "md5", "phash"})
"""The columns in which pairmill stores hex digits."""

TIES, SAMPLE, SHUFFLE, BALANCE, CURVE, REPEAT = 1, 2, 3, 4, 5, 6
"""Purposes of uid hashes. Each purpose has its own hash, so that a row that wins ties is no likelier to be sampled."""


def key_halves(column: pa.ChunkedArray, name: str) -> tuple[U64, U64]:
    """The 128-bit dedup keys of the values of the column `name`, as (high, low), each of shape (rows,).

    The key of a value in HEX_COLUMNS is its first 32 digits. The key of any other value is the BLAKE2b-128 of its text,
    in lower case for a PDQ hash.
    Equal values have equal keys; different values have different keys, except for collisions of a 128-bit hash. The key
    of null is undefined. Raises ValueError if a column in HEX_COLUMNS contains anything but hex digits.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if name in HEX_COLUMNS:
        return _hex_digits(array)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if name == PDQ and is_text(array.type):
        array = pc.utf8_lower(array)
    if pa.types.is_floating(array.type):
        array = pc.add(pc.cast(array, pa.float64()), 0.0)  # turns -0.0 into 0.0
    hashed = bytearray()
    for value in pc.cast(array, pa.large_string()).to_pylist():
        hashed += hashlib.blake2b((value or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
    words = np.frombuffer(bytes(hashed), ">u8").astype(np.uint64).reshape(-1, 2)  # (rows, [high, low])
    return words[:, 0], words[:, 1]


def can_be_key(kind: pa.DataType) -> bool:
    """Whether `key_halves` supports values of this type."""
    if pa.types.is_dictionary(kind):
        return can_be_key(kind.value_type)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text or is_number(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_temporal(kind))


def is_comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """For each value, whether it can equal another value. Null and NaN equal nothing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    valid = column.is_valid()
    return pc.and_not(valid, pc.is_nan(column).fill_null(False)) if pa.types.is_floating(column.type) else valid


def _hex_digits(array: pa.Array) -> tuple[U64, U64]:
    """(high, low) from strings of 16, 32 or 64 hex digits, all of the same length. With 16 digits, low is zero."""
    present = array.drop_null()
    if not len(present):
        return np.zeros(len(array), np.uint64), np.zeros(len(array), np.uint64)
    width = len(present[0].as_py())
    if width not in (16, 32, 64):
        raise ValueError("a column of hex digits has values of an unsupported length; it must be 16, 32 or 64 digits")
    words = hash_words(present, width // 16)
    spread = np.zeros((len(array), 2), np.uint64)
    spread[pc.is_valid(array).to_numpy(zero_copy_only=False), : words.shape[1]] = words[:, :2]
    return spread[:, 0], spread[:, 1]


def uid_hashes(column: pa.ChunkedArray, purpose: int, seed: int) -> U64:
    """64 pseudo-random bits per uid, for breaking ties, sampling and shuffling; shape (rows,).

    The bits depend only on the uid, the purpose and the seed. The bits of the uids are mixed because uids can be
    consecutive numbers.
    """
    high, low = key_halves(column, "uid")
    start = mix(mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(purpose))
    return mix(high ^ mix(low ^ start))


def mix(values: U64) -> U64:
    """SplitMix64's increment and finalizer, elementwise (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ranks(table: pa.Table, by: str) -> Ranks:
    """The score of each row as a RANK; shape (rows,).

    Null and NaN sort below all numbers. Integers and decimals sort exactly, except decimals with more than 38 digits,
    which only arithmetic makes: these sort like the nearest float64.
    """
    column = Expression(by).evaluate(table)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    found = np.zeros(len(array), RANK)
    if _has_digits(array.type):
        words = _digits(array)
        found["rank"], found["low_bits"] = words[:, 1] ^ _SIGN, words[:, 0]
        found[array.is_null().to_numpy(zero_copy_only=False)] = 0
        return found
    if pa.types.is_integer(array.type):
        wide = pc.cast(array, pa.uint64() if array.type == pa.uint64() else pa.int64())
        integers = pc.fill_null(wide, 0).to_numpy(zero_copy_only=False)
        low_bits = integers & integers.dtype.type(_LOW_BITS_MASK)
        found["low_bits"] = low_bits
        numbers = (integers - low_bits).astype(np.float64)  # exact: 64 - 11 bits fit into a float64
        is_missing = array.is_null().to_numpy(zero_copy_only=False)
    else:
        numbers = as_doubles(array).to_numpy(zero_copy_only=False) + 0.0  # null is NaN here, and -0.0 becomes 0.0
        is_missing = np.isnan(numbers)
    bits = numbers.view(np.uint64)
    found["rank"] = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    found[is_missing] = 0
    return found


def _has_digits(kind: pa.DataType) -> bool:
    """Whether the values are decimals whose digits fit into 128 bits."""
    return bool(pa.types.is_decimal(kind) and not pa.types.is_decimal256(kind))


def _digits(array: pa.Array) -> U64:
    """The digits of decimals as 128-bit integers in two's complement, (rows, [low, high])."""
    wide = array.cast(pa.decimal128(array.type.precision, array.type.scale))
    return np.frombuffer(wide.buffers()[1] or b"", "<u8").reshape(-1, 2)[wide.offset : wide.offset + len(wide)]


def fill_ranks(keys: npt.NDArray[np.void], found: Ranks) -> None:
    """Set the RANK fields of an array of shape (rows,). Its dtype can have other fields."""
    keys["rank"], keys["low_bits"] = found["rank"], found["low_bits"]


def score_of(rank: int, low_bits: int, kind: pa.DataType) -> float | None:
    """The score for a RANK of scores of a type, the inverse of `ranks`; None for (0, 0)."""
    if rank == 0:
        return None
    if _has_digits(kind):
        return float((((rank - (1 << 63)) << 64) | low_bits) / 10**kind.scale)
    bits = rank ^ (1 << 63) if rank >> 63 else rank ^ ((1 << 64) - 1)
    return float(np.uint64(bits).view(np.float64)) + low_bits
