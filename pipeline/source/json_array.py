"""Splits `.json` into the text of its objects (the elements of an array, or JSON lines), streaming in bounded memory.

The splitter looks only at quotes, brackets and the commas between elements. The elements are parsed by the code for
JSON lines, so a broken element, or one that is not UTF-8, affects only its own row.
"""

import io
import re
from collections.abc import Iterator

from pairmill.pipeline.source import text_file
from pairmill.pipeline.source.files import SourceError

_REST_OF_STRING = rb'(?:[^"\\]++|\\.)*+"'
_STRING_END = re.compile(_REST_OF_STRING, re.DOTALL)
_BETWEEN_ELEMENTS = re.compile(rb'"' + _REST_OF_STRING + rb'|["\[\]{},]', re.DOTALL)
_WITHIN_ELEMENT = re.compile(rb'"' + _REST_OF_STRING + rb'|["\[\]{}]', re.DOTALL)
"""The next relevant token: a whole string, the opening quote of a truncated string, a bracket or a comma."""


def split_json(uri: str, file: io.BufferedReader) -> Iterator[bytes]:
    """The elements of an array if the first character is `[`, else the lines.

    Elements are truncated to MAX_RECORD_BYTES + 1 bytes. Raises SourceError if the array does not end, or if text
    follows it.
    """
    while (head := file.peek(1)) and head.isspace():
        file.read(len(head))
    if not head.lstrip().startswith(b"["):
        yield from text_file.split_lines(file)
        return
    file.read(len(head) - len(head.lstrip()) + 1)
    splitter = _Splitter()
    while not splitter.at_end and (chunk := file.read1()):
        yield from splitter.elements(chunk)
    if not splitter.at_end:
        raise SourceError(f"{uri}: the JSON array does not end (half-written, or a bracket is missing)")
    if splitter.rest.strip() or file.read().strip():
        raise SourceError(f"{uri}: there is text after the JSON array; expected one array, or one object per line")


class _Splitter:
    """Splits an array into elements, chunk by chunk. The first chunk starts after the array's opening bracket."""

    def __init__(self) -> None:
        self.at_end = False
        self.rest = b""
        """Bytes after the array in the last chunk."""
        self._element = bytearray()
        self._depth = 0
        """Number of open brackets in the element."""
        self._in_string = self._is_escaped = False
        """State at the end of the last chunk."""

    def elements(self, chunk: bytes) -> Iterator[bytes]:
        """The elements that end in this chunk. Two commas in a row have no element between them."""
        start = 0
        for token in self._tokens(chunk):
            if token[0] in (b"{", b"["):
                self._depth += 1
            elif self._depth:
                self._depth -= 1
            elif token[0] != b"}":  # a comma, or the array's closing bracket
                self._append(chunk[start : token.start()])
                if self._element.strip():
                    yield bytes(self._element)
                self._element.clear()
                start = token.end()
                if token[0] == b"]":
                    self.at_end, self.rest = True, chunk[start:]
                    return
        self._append(chunk[start:])

    def _tokens(self, chunk: bytes) -> Iterator[re.Match[bytes]]:
        """Brackets, and commas between elements, outside strings."""
        position = self._after_cut_string(chunk)
        while token := (_WITHIN_ELEMENT if self._depth else _BETWEEN_ELEMENTS).search(chunk, position):
            position = token.end()
            if token[0] == b'"':
                self._in_string, self._is_escaped = True, _ends_in_escape(chunk[position:])
                return
            if not token[0].startswith(b'"'):
                yield token

    def _after_cut_string(self, chunk: bytes) -> int:
        """Where a string that started in a previous chunk ends; 0 if there is none."""
        if not self._in_string:
            return 0
        start = int(self._is_escaped)
        if end := _STRING_END.match(chunk, start):
            self._in_string = False
            return end.end()
        self._is_escaped = _ends_in_escape(chunk[start:])
        return len(chunk)

    def _append(self, part: bytes) -> None:
        self._element += part[: text_file.MAX_RECORD_BYTES + 1 - len(self._element)]


def _ends_in_escape(text: bytes) -> bool:
    """Whether the text ends in a backslash that escapes the next character."""
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
