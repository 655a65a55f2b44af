"""Invariant: the time to index a folder is in proportion to the number of its files."""

import io
import json
import time
from dataclasses import dataclass
from typing import IO
from unicodedata import normalize

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.corpus.folders import folder_rows
from pairmill.pipeline.source.corpus.metadata_tables import MetadataTables
from pairmill.schemas.job.source import SourceConfig

FOLDER = "/nowhere/in"
SMALL, TIMES = 300, 48
SLACK = 2.5
"""Steps that take quadratic time need up to TIMES times as long."""


@dataclass(frozen=True)
class InMemory(Files):
    """A folder with a metadata table and texts."""

    table: bytes = b""

    def open(self, uri: str) -> IO[bytes]:
        return io.BytesIO(self.table if uri.endswith(".jsonl") else b"beside")


def _index_s(num_pictures: int) -> float:
    """CPU seconds to index pictures with rows in a table, whose names are in another normal form. Every fourth picture
    has a text too."""
    rows = [{"file_name": f"{number}é.jpg", "text": "in the table"} for number in range(num_pictures)]
    names = [normalize("NFD", row["file_name"]) for row in rows]
    texts = [f"{name}.txt" for name in names[::4]]
    files = InMemory(table="\n".join(map(json.dumps, rows)).encode())
    started = time.process_time()
    tables = MetadataTables(SourceConfig(kind="corpus", paths=[FOLDER]), files)
    tables.add([f"{FOLDER}/metadata.jsonl"], [f"{FOLDER}/{name}" for name in names])
    described = tables.describe(FOLDER, names)
    found = folder_rows(FOLDER, [(name, 1) for name in names + texts], False, files, described=described)
    captions = [row.caption for row in found]
    seconds = time.process_time() - started
    assert (captions.count(b"beside"), len(captions)) == (len(texts), num_pictures)
    return seconds


def test_the_time_to_index_a_folder_is_in_proportion_to_its_files() -> None:
    small = min(_index_s(SMALL) for _ in range(5))
    assert _index_s(TIMES * SMALL) < SLACK * TIMES * small
