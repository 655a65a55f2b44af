"""Reads lists of uids for the step `uids`, from text files or from Parquet files such as those that
`pairmill search --save` writes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.common.foreign_parquet import open_parquet
from pairmill.pipeline.common.text import clean_text, counted
from pairmill.pipeline.select.filters import RowIndices, RowMask
from pairmill.pipeline.select.keys import U64, key_halves
from pairmill.pipeline.select.step_error import StepError
from pairmill.pipeline.select.step_file import digest_of

MAX_UIDS = 100_000_000
"""Maximum number of uids. Every process that scans rows keeps the whole list in memory, at 16 bytes per uid."""

_BATCH_ROWS = 65_536
_TEXT_BYTES = 1 << 22
_BOM = "\ufeff"
_UID = r"^(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$"
"""Matches the uids that `pairmill.pipeline.source.uid.own_uid` accepts."""


@dataclass(frozen=True)
class UidList:
    """Distinct uids in ascending order, as two halves of shape (uids,)."""

    high: U64
    low: U64

    def __len__(self) -> int:
        """Number of uids."""
        return len(self.high)

    def contains(self, high: U64, low: U64) -> RowMask:
        """For each uid, whether it is in the list. All shapes are (rows,)."""
        start: npt.NDArray[np.int64] = np.searchsorted(self.high, high, side="left")
        last = end = np.searchsorted(self.high, high, side="right")
        while (open_ := start < end).any():  # binary search by `low`; one or two steps unless many uids share `high`
            middle = np.where(open_, (start + end) // 2, 0)
            is_less = self.low[middle] < low
            start = np.where(open_ & is_less, middle + 1, start)
            end = np.where(open_ & ~is_less, middle, end)
        found: RowMask = start < last
        found[found] = self.low[start[found]] == low[found]
        return found


@dataclass(frozen=True)
class UidFile:
    """A Parquet file with a column `uid`, or a text file, together with its checksum. Cheap to pickle: each process
    reads the file once."""

    files: Files
    uri: str
    blake2b: str

    @classmethod
    def of(cls, files: Files, uri: str) -> "UidFile":
        """The file as it is now. Raises StepError if it cannot be read."""
        return cls(files, uri, digest_of(files, uri))

    def load(self) -> UidList:
        """The uids in the file. Raises StepError if it is not a valid file of uids or has changed."""
        return _load(self)


@dataclass(frozen=True)
class UidIn:
    """Keeps the rows whose uid is in a file."""

    step: int
    file: UidFile
    columns: frozenset[str] = frozenset({"uid"})

    def keep(self, table: pa.Table, row_indices: RowIndices) -> RowMask:
        """Look up the uids."""
        return self.file.load().contains(*key_halves(table["uid"], "uid"))


@lru_cache(maxsize=4)
def _load(file: UidFile) -> UidList:
    if UidFile.of(file.files, file.uri) != file:
        raise StepError(f"{file.uri} has changed since the job began; run the job again")
    if file.uri.lower().endswith((".txt", ".txt.gz")):
        return _read_text(file)
    try:
        with file.files.open(file.uri) as opened, open_parquet(opened) as parquet:
            return _read(file.uri, parquet)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # Arrow raises all three for damaged files
        raise StepError(
            f"{file.uri} is not a readable Parquet file (the name of a text file must end in .txt or .txt.gz): "
            f"{clean_text(str(error))}"
        ) from None


def _read_text(file: UidFile) -> UidList:
    """Read one uid per line. Blank lines and lines that start with # are ignored."""
    high, low, num_uids = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], 0
    try:
        with file.files.open_decompressed(file.uri) as opened:
            while lines := opened.readlines(_TEXT_BYTES):
                texts = pc.utf8_ltrim(pa.array(lines, pa.binary()).cast(pa.string()), _BOM)
                texts = pc.utf8_trim_whitespace(texts)
                texts = texts.filter(pc.invert(pc.match_substring_regex(texts, r"^(?:#|$)")))
                num_uids += len(texts)
                if num_uids > MAX_UIDS:
                    raise StepError(f"{file.uri} has more than {MAX_UIDS:,} uids, which do not fit into memory")
                halves = key_halves(pa.chunked_array([uid_digits(file.uri, texts)]), "uid")
                high.append(halves[0])
                low.append(halves[1])
    except (pa.ArrowInvalid, OSError) as error:
        raise StepError(f"{file.uri} is not a readable text file in UTF-8: {clean_text(str(error))}") from None
    return _sorted(np.concatenate(high), np.concatenate(low))


def _read(uri: str, parquet: pq.ParquetFile) -> UidList:
    if (columns := parquet.schema_arrow.names.count("uid")) != 1:
        raise StepError(f"{uri} has {'several columns' if columns else 'no column'} named `uid`")
    kind = parquet.schema_arrow.field("uid").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind not in (pa.string(), pa.large_string(), pa.string_view()):
        raise StepError(f"{uri}: column `uid` is {kind}, not text")
    if (num_rows := parquet.metadata.num_rows) > MAX_UIDS:
        raise StepError(f"{uri} has {num_rows:,} uids; at most {MAX_UIDS:,} fit into memory")
    high, low = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=["uid"]):
        batch.validate(full=True)  # for example, that all text is UTF-8
        halves = key_halves(pa.chunked_array([uid_digits(uri, batch.column(0).cast(pa.string()))]), "uid")
        high.append(halves[0])
        low.append(halves[1])
    return _sorted(np.concatenate(high), np.concatenate(low))


def uid_digits(uri: str, uids: pa.Array) -> pa.Array:
    """The uids in lower case and without hyphens, as datasets store them. Raises StepError, which names `uri`."""
    is_uid = pc.match_substring_regex(uids, _UID).fill_null(False)
    if wrong := len(uids) - is_uid.true_count:
        first = uids.filter(pc.invert(is_uid))[0].as_py()
        example = "null" if first is None else repr(clean_text(first, 40) or "")
        values = counted(wrong, "value")
        raise StepError(f"{uri} has {values} that cannot be read as a uid, such as {example}")
    return pc.utf8_lower(pc.replace_substring(uids, "-", ""))


def _sorted(high: U64, low: U64) -> UidList:
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_new = np.ones(len(high), np.bool_)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return UidList(high[is_new], low[is_new])
