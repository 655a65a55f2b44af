"""Indexes folders of picture files. The caption is in a .txt or .json file of the same name, or, if the job says so, is
the file name."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath

from pairmill.pipeline.common.files import Files, join, leads_out
from pairmill.pipeline.source.corpus.index import (
    CAPTION_ENDINGS,
    MAX_TEXT_BYTES,
    ImageRef,
    IndexRow,
    Sample,
)
from pairmill.pipeline.source.files import PICTURE_ENDINGS

ENDINGS = tuple(f".{ending}" for ending in (*PICTURE_ENDINGS, *CAPTION_ENDINGS, "json"))


def folder_rows(
    folder: str, names: Sequence[tuple[str, int]], caption_from_name: bool, files: Files
) -> Iterator[IndexRow]:
    """Rows of INDEX_SCHEMA, from (name, size in bytes) of a folder's files. Texts without a picture, such as readmes,
    are ignored."""
    ordered = sorted(names, key=lambda file: file[0].rpartition("."))
    for stem, group in groupby(ordered, key=lambda file: file[0].rpartition(".")[0]):
        members = list(group)
        if not any(_ending(name) in PICTURE_ENDINGS for name, _ in members):
            continue
        sample = Sample(stem)
        for name, size in members:
            _add(sample, folder, name, size, files)
        for row in sample.rows():
            if caption_from_name and row.caption is None:
                row = replace(row, caption=words_of(stem).encode("utf-8", "surrogateescape"))
            yield row


def words_of(stem: str) -> str:
    """`dogs/red-dog_01` -> `red dog 01`."""
    return " ".join(PurePosixPath(stem).name.replace("_", " ").replace("-", " ").split())


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _add(sample: Sample, folder: str, name: str, size: int, files: Files) -> None:
    ending, path = _ending(name), join(folder, name)
    if ending in PICTURE_ENDINGS:
        sample.images.append(ImageRef(path, 0, size))
    elif size > MAX_TEXT_BYTES:
        sample.problem = f"the text file beside the picture is too large: {size:,} bytes"
    elif leads_out(folder, name):  # a link could turn a secret file into a caption
        sample.problem = f"{name} is a link to outside its folder"
    else:
        with files.open(path) as file:
            data = file.read(MAX_TEXT_BYTES)
        if ending == "json":
            sample.add_json(data)
        elif sample.caption is None:
            sample.caption = data
