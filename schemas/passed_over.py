"""Defines the reasons why an entry of a listing is passed over, which means that it becomes neither a row nor part of
one.

Plans, commands and `status` count the reasons, so that every entry is accounted for:
seen = rows + parts + passed over.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class PassedOver(StrEnum):
    """Why an entry is passed over, in words for people."""

    HIDDEN = "name begins with a dot"
    FOLDER = "folder"
    OUTPUT = "output folder"
    TABLE_LOG = "bookkeeping of Spark or Delta Lake"
    LOOP = "link to a folder above it"
    MANY_LINKS = "one more link to the same folder"
    BROKEN_LINK = "broken link"
    SPECIAL = "device, pipe or socket"
    UNREADABLE = "folder that cannot be read"
    ARCHIVE = "packed or compressed archive"
    TABLE = "table beside pictures, not read for captions"
    OTHER_KIND = "not of the kind that is read here"
    NO_PICTURE = "text without a picture"
    EXTRA_TEXT = "further text of a picture"
    UNKNOWN_MEMBER = "tar member of another type"


@dataclass(slots=True)
class Tally:
    """Counts of what happened to the entries of a listing: the files of a folder or the members of a tar."""

    seen: int = 0
    rows: int = 0
    parts: int = 0
    """Entries that belong to the row of another entry, such as captions and further pictures of the same key."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Reason -> number of entries."""
    uncaptioned: int = 0
    """Number of rows with JSON but no caption. The caption may be under an unusual key."""
    json_keys: tuple[str, ...] = ()
    """Some keys of the JSON of these rows."""

    def pass_over(self, reason: PassedOver) -> None:
        """Count one entry that is not used."""
        self.seen += 1
        self.passed_over[reason.value] += 1

    def add_row(self, entries: int = 1) -> None:
        """Count a row and the entries from which it was made."""
        self.seen += entries
        self.rows += 1
        self.parts += entries - 1

    def add_parts(self, entries: int) -> None:
        """Count entries that describe rows of other entries."""
        self.seen += entries
        self.parts += entries

    def to_json(self) -> dict[str, object]:
        """The counts as JSON values."""
        counts = {"seen": self.seen, "rows": self.rows, "parts": self.parts}
        hint = {"uncaptioned": self.uncaptioned, "json_keys": list(self.json_keys)} if self.uncaptioned else {}
        return {**counts, "passed_over": dict(sorted(self.passed_over.items())), **hint}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Parse the result of `to_json`."""
        counts = values["seen"], values["rows"], values["parts"], Counter(values["passed_over"])
        return cls(*counts, values.get("uncaptioned", 0), tuple(values.get("json_keys", ())))

    def holds(self) -> bool:
        """Whether every entry is accounted for."""
        return self.seen == self.rows + self.parts + self.passed_over.total()
