"""Columns as fixed-size numbers: 128-bit identities, hashes of uids, and scores that sort as integers."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairmill.pipeline.select.expressions import Expression

U64 = npt.NDArray[np.uint64]

HEX_COLUMNS = frozenset({"uid", "sha256", "md5", "phash"})
"""Our own columns of hex digits."""

TIES, SAMPLE, SHUFFLE = 1, 2, 3
"""What a uid's hash is for. Each purpose has its own hash: a row that wins ties must not be likelier to be sampled."""

_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def identities(column: pa.ChunkedArray, name: str) -> tuple[U64, U64]:
    """128 bits per value of the column `name`, as (high, low), each (rows,).

    Of HEX_COLUMNS the first 32 digits, of any other column the BLAKE2b-128 of the value as text. Equal values have
    equal identities; different values have different ones, except for collisions of a 128-bit hash. The identity of
    null is undefined. Raises ValueError where a hex column holds anything else.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if name in HEX_COLUMNS:
        return _hex_digits(array)
    if pa.types.is_floating(array.type):
        array = pc.add(array, 0.0)  # turns -0.0 into 0.0
    hashed = bytearray()
    for value in pc.cast(array, pa.string()).to_pylist():
        hashed += hashlib.blake2b((value or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
    words = np.frombuffer(bytes(hashed), ">u8").astype(np.uint64).reshape(-1, 2)  # (rows, [high, low])
    return words[:, 0], words[:, 1]


def has_identity(kind: pa.DataType) -> bool:
    """Whether `identities` can compare values of this type."""
    checks = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal)
    return any(check(kind) for check in checks)


def _hex_digits(array: pa.Array) -> tuple[U64, U64]:
    """(high, low) from strings of 16, 32 or 64 hex digits, all of one length. Of 16, low is zero."""
    present = array.drop_null()
    if not len(present):
        return np.zeros(len(array), np.uint64), np.zeros(len(array), np.uint64)
    offsets = np.frombuffer(present.buffers()[1], np.int32)[present.offset : present.offset + len(present) + 1]
    widths = np.diff(offsets)
    width = int(widths[0])
    if width not in (16, 32, 64) or (widths != width).any():
        raise ValueError("a column of hex digits has values of another length")
    text = np.frombuffer(present.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, width)
    nibbles = _NIBBLES[text[:, :32]]  # (rows, digits)
    if (nibbles == 255).any():
        raise ValueError("a column of hex digits has other characters")
    words = (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).view(">u8").astype(np.uint64)  # (rows, 1 or 2)
    spread = np.zeros((len(array), words.shape[1]), np.uint64)
    spread[pc.is_valid(array).to_numpy(zero_copy_only=False)] = words
    return spread[:, 0], spread[:, 1] if words.shape[1] == 2 else np.zeros(len(array), np.uint64)


def uid_hashes(column: pa.ChunkedArray, purpose: int, seed: int) -> U64:
    """64 pseudo-random bits per uid, (rows,), to break ties, sample and shuffle. They depend on nothing but the uid,
    the purpose and the seed. Uids may be consecutive numbers, so their bits are mixed first.
    """
    high, low = identities(column, "uid")
    start = mix(mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(purpose))
    return mix(high ^ mix(low ^ start))


def mix(values: U64) -> U64:
    """SplitMix64's increment and finalizer, elementwise (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ranks(table: pa.Table, by: str) -> U64:
    """Scores as integers that sort like the float64 numbers, (rows,). Null and NaN give 0, below every number."""
    column = pc.cast(Expression(by).evaluate(table), pa.float64(), safe=False)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    numbers = array.to_numpy(zero_copy_only=False) + 0.0  # null is NaN here, and -0.0 becomes 0.0
    bits = numbers.view(np.uint64)
    sign = np.uint64(1 << 63)
    keys: U64 = np.where(bits & sign, ~bits, bits | sign)
    keys[np.isnan(numbers)] = 0
    return keys


def score_of(rank: int) -> float | None:
    """The inverse of `ranks`; None for 0."""
    if rank == 0:
        return None
    bits = rank ^ (1 << 63) if rank >> 63 else rank ^ ((1 << 64) - 1)
    return float(np.uint64(bits).view(np.float64))
