"""Folders of picture files, each with its caption in a .txt, or a .json, of the same name beside it; else the file name
is the caption, where the job asks for that."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.corpus.index import CAPTION_ENDINGS, MAX_TEXT_BYTES, PICTURE_ENDINGS, Sample

ENDINGS = tuple(f".{ending}" for ending in (*PICTURE_ENDINGS, *CAPTION_ENDINGS, "json"))


def folder_rows(folder: str, files: Sequence[tuple[str, int]], caption_from_name: bool) -> Iterator[dict[str, Any]]:
    """Rows of INDEX_SCHEMA from (path below the folder, bytes) of its files, sorted. Texts without a picture are left
    out: folders hold readmes."""
    samples: dict[str, Sample] = {}
    for name, size in files:
        stem, _, ending = name.rpartition(".")
        sample = samples.setdefault(stem, Sample(stem))
        path = storage.join(folder, name)
        ending = ending.lower()
        if ending in PICTURE_ENDINGS:
            sample.pictures.append((path, 0, size))
        elif size > MAX_TEXT_BYTES:
            sample.problem = f"a text of {size:,} bytes beside the picture"
        else:
            with storage.open_input(path) as file:
                data = file.read(MAX_TEXT_BYTES)
            if ending == "json":
                sample.add_json(data)
            elif sample.caption is None:
                sample.caption = data
    for sample in samples.values():
        if not sample.pictures:
            continue
        if caption_from_name and sample.caption is None and not sample.facts:
            sample.caption = words_of(sample.key).encode("utf-8", "surrogateescape")
        yield from sample.rows()


def words_of(stem: str) -> str:
    """`dogs/red-dog_01` -> `red dog 01`."""
    return " ".join(PurePosixPath(stem).name.replace("_", " ").replace("-", " ").split())
