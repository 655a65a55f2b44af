"""What separates the fields of a CSV file: told by its header, confirmed by its first records.

`csv.Sniffer` counts characters and finds delimiters in prose. Here a delimiter counts only if it makes a header that
has the column the job needs.
"""

import csv
from collections.abc import Callable, Iterator, Sequence

from pairmill.pipeline.source.records import csv_header, csv_records

DELIMITERS = (",", ";", "\t", "|")

_SAMPLE_LINES = 100
_SAMPLE_BYTES = 1 << 20


def first_lines(lines: Iterator[bytes]) -> list[bytes]:
    """Enough lines to tell the delimiter by."""
    sample: list[bytes] = []
    num_bytes = 0
    for line in lines:
        sample.append(line)
        num_bytes += len(line)
        if len(sample) == _SAMPLE_LINES or num_bytes > _SAMPLE_BYTES:
            break
    return sample


def detect_delimiter(sample: Sequence[bytes], usual: str, is_known: Callable[[list[str]], bool]) -> str:
    """The usual one if the header then has a known column, else the only other one of which that is true.

    `is_known`: whether the column that the job needs is among these names. Any delimiter but the usual one must also
    cut most records of the sample into as many fields as the header has.
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
    """Whether most records have as many fields as the header; what the sample cuts off at its end aside."""
    lines = iter(sample)
    num_columns = len(csv_header(lines, delimiter) or [])
    is_whole = [record.problem is None for record in csv_records(lines, delimiter, num_columns)]
    if len(sample) == _SAMPLE_LINES:
        while is_whole and not is_whole[-1]:
            is_whole.pop()
    return 2 * sum(is_whole) >= len(is_whole)
