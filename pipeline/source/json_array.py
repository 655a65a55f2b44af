"""`.json` -> one piece of text per object: the elements of an array, or JSON lines. Streaming, in bounded memory.

Only quotes, brackets and the commas between elements are looked at. The elements themselves are parsed by the code for
JSON lines, so a broken element, or one that is not UTF-8, costs its own row only.
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
"""The next token that matters: a whole string, else the quote of one that the chunk cuts; a bracket; a comma."""


def split_json(uri: str, file: io.BufferedReader) -> Iterator[bytes]:
    """The elements of an array if the first character is `[`, else the lines.

    An element longer than MAX_RECORD_BYTES is cut to one byte more than that. Raises SourceError for an array that does
    not end, or that something follows.
    """
    while (head := file.peek(1)) and head.isspace():
        file.read(len(head))
    if not head.lstrip().startswith(b"["):
        yield from text_file.split_lines(file)
        return
    file.read(len(head) - len(head.lstrip()) + 1)
    cutter = _Cutter()
    while not cutter.at_end and (chunk := file.read1()):
        yield from cutter.elements(chunk)
    if not cutter.at_end:
        raise SourceError(f"{uri}: the JSON array does not end (half-written, or a bracket is missing)")
    if cutter.rest.strip() or file.read().strip():
        raise SourceError(f"{uri}: something follows the JSON array; one array, or one object per line, is expected")


class _Cutter:
    """Cuts an array into its elements, chunk by chunk. The first chunk begins after the array's opening bracket."""

    def __init__(self) -> None:
        self.at_end = False
        self.rest = b""
        """What follows the array in the last chunk."""
        self._element = bytearray()
        self._depth = 0
        """Brackets that are open in the element."""
        self._in_string = self._is_escaped = False
        """Where the last chunk ended."""

    def elements(self, chunk: bytes) -> Iterator[bytes]:
        """The elements that end in this chunk. Nothing between two commas is no element."""
        start = 0
        for token in self._tokens(chunk):
            if token[0] in (b"{", b"["):
                self._depth += 1
            elif self._depth:
                self._depth -= 1
            elif token[0] != b"}":  # a comma, or the array's closing bracket
                self._keep(chunk[start : token.start()])
                if self._element.strip():
                    yield bytes(self._element)
                self._element.clear()
                start = token.end()
                if token[0] == b"]":
                    self.at_end, self.rest = True, chunk[start:]
                    return
        self._keep(chunk[start:])

    def _tokens(self, chunk: bytes) -> Iterator[re.Match[bytes]]:
        """Brackets, and commas between elements; none of those in strings."""
        position = self._after_cut_string(chunk)
        while token := (_WITHIN_ELEMENT if self._depth else _BETWEEN_ELEMENTS).search(chunk, position):
            position = token.end()
            if token[0] == b'"':
                self._in_string, self._is_escaped = True, _ends_in_escape(chunk[position:])
                return
            if not token[0].startswith(b'"'):
                yield token

    def _after_cut_string(self, chunk: bytes) -> int:
        """Where the string ends that the chunk before has cut; 0 if it has cut none."""
        if not self._in_string:
            return 0
        start = int(self._is_escaped)
        if end := _STRING_END.match(chunk, start):
            self._in_string = False
            return end.end()
        self._is_escaped = _ends_in_escape(chunk[start:])
        return len(chunk)

    def _keep(self, part: bytes) -> None:
        self._element += part[: text_file.MAX_RECORD_BYTES + 1 - len(self._element)]


def _ends_in_escape(text: bytes) -> bool:
    """Whether the last backslash escapes a character that is still to come."""
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
