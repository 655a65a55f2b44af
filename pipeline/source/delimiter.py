"""Detects the delimiter of a CSV file from its header and first records.

`csv.Sniffer` counts characters and can mistake punctuation in prose for a delimiter. Here, a delimiter must yield a
header with the column that the job needs.
"""

import csv
from collections.abc import Callable, Iterator, Sequence

from pairmill.pipeline.source.records import csv_header, csv_records

DELIMITERS = (",", ";", "\t", "|")

_SAMPLE_LINES = 100
_SAMPLE_BYTES = 1 << 20


def first_lines(lines: Iterator[bytes]) -> list[bytes]:
    """Enough lines to detect the delimiter."""
    sample: list[bytes] = []
    num_bytes = 0
    for line in lines:
        sample.append(line)
        num_bytes += len(line)
        if len(sample) == _SAMPLE_LINES or num_bytes > _SAMPLE_BYTES:
            break
    return sample


def detect_delimiter(sample: Sequence[bytes], usual: str, is_known: Callable[[list[str]], bool]) -> str:
    """The usual delimiter, or another delimiter if it is the only one that yields a header with the needed column.

    `is_known`: whether the given names include the column that the job needs. A delimiter other than the usual one must
    also split most records of the sample into as many fields as the header.
    """
    if is_known(_header(sample, usual)):
        return usual
    others = [
        delimiter
        for delimiter in DELIMITERS
        if delimiter != usual and is_known(_header(sample, delimiter)) and _is_consistent(sample, delimiter)
    ]
    return others[0] if len(others) == 1 else usual


def _header(sample: Sequence[bytes], delimiter: str) -> list[str]:
    try:
        header = csv_header(iter(sample), delimiter)
    except csv.Error:
        return []
    return [name.decode("utf-8", "replace") for name in header or []]


def _is_consistent(sample: Sequence[bytes], delimiter: str) -> bool:
    """Whether most records have as many fields as the header, ignoring records cut off at the end of the sample."""
    lines = iter(sample)
    num_columns = len(csv_header(lines, delimiter) or [])
    is_whole = [record.problem is None for record in csv_records(lines, delimiter, num_columns)]
    if len(sample) == _SAMPLE_LINES:
        while is_whole and not is_whole[-1]:
            is_whole.pop()
    return 2 * sum(is_whole) >= len(is_whole)
