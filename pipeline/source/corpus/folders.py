"""Indexes folders of picture files. The caption is in a .txt or .json file with the same name. If neither exists, the
file name can be the caption, if the job says so."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath

from pairmill.pipeline.common.files import Files, links_outside, trusted_folders
from pairmill.pipeline.common.listing import Entry
from pairmill.pipeline.source.corpus.index import ImageRef, IndexRow, Sample
from pairmill.pipeline.source.corpus.sidecar import USUAL_TEXTS, TextRules
from pairmill.pipeline.source.files import PICTURE_ENDINGS, reason_unused
from pairmill.schemas.passed_over import PassedOver, Tally


def used_entries(entries: Iterable[Entry], rules: TextRules, tally: Tally) -> list[tuple[str, int]]:
    """Sorted (name, size in bytes) of the pictures and text files among a folder's entries. Counts all other entries in
    `tally`."""
    used = []
    for entry in entries:
        ending = _ending(entry.name)
        if entry.passed_over is not None:
            tally.pass_over(entry.passed_over)
        elif ending in PICTURE_ENDINGS or rules.is_text(ending):
            used.append((entry.name, entry.size))
        else:
            tally.pass_over(reason_unused(entry.name))
    return sorted(used)


def folder_rows(
    folder: str,
    names: Sequence[tuple[str, int]],
    caption_from_name: bool,
    files: Files,
    tally: Tally | None = None,
    rules: TextRules = USUAL_TEXTS,
    sources: Sequence[str] = (),
) -> Iterator[IndexRow]:
    """Rows of INDEX_SCHEMA, from the names and sizes in bytes of a folder's files. Text files without a picture, such
    as readmes, are skipped. `tally` counts the rows and the skipped files. `sources`: the paths that the job names;
    text files may be symlinks to any file in them."""
    tally, trusted = tally or Tally(), trusted_folders(folder, sources)
    ordered = sorted(names, key=lambda file: file[0].rpartition("."))
    for stem, group in groupby(ordered, key=lambda file: file[0].rpartition(".")[0]):
        members = list(group)
        if not any(_ending(name) in PICTURE_ENDINGS for name, _ in members):
            for _ in members:
                tally.pass_over(PassedOver.NO_PICTURE)
            continue
        sample = Sample(stem, rules)
        for name, size in members:
            _add(sample, f"{folder}/{name}", size, files, trusted)  # keeps `//`: S3 keys `a//b` and `a/b` differ
        row = sample.row()
        if caption_from_name and row.caption is None and row.caption_problem is None:
            row = replace(row, captions=(words_of(stem).encode("utf-8", "surrogateescape"),))
        tally.add_row(len(members))
        yield row


def words_of(stem: str) -> str:
    """`dogs/red-dog_01` -> `red dog 01`."""
    return " ".join(PurePosixPath(stem).name.replace("_", " ").replace("-", " ").split())


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _add(sample: Sample, path: str, size: int, files: Files, trusted: Sequence[Path]) -> None:
    name = path.rpartition("/")[2]
    ending = _ending(name)
    if ending in PICTURE_ENDINGS:
        sample.add_image(ImageRef(path, 0, size))
    elif size > sample.rules.max_bytes(ending):
        sample.texts.add_too_large(name, size)
    elif links_outside(path, trusted):  # a symlink could turn a secret file into a caption
        sample.problem = f"{name} is a link to a file outside its folder and the source"
    else:
        with files.open(path) as file:
            data = file.read(sample.rules.max_bytes(ending))
        sample.texts.add(name, ending, data)
