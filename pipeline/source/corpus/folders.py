"""Indexes folders of picture files. The caption is in a .txt or .json file with the same name, or in a metadata table.
If there is none, the file name can be the caption, if the job says so."""

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from pairmill.pipeline.common.files import Files, links_outside, trusted_folders
from pairmill.pipeline.common.listing import Entry
from pairmill.pipeline.common.text import clean_text
from pairmill.pipeline.source.corpus.index import ImageRef, IndexRow, Sample, readable_name
from pairmill.pipeline.source.corpus.metadata_table import parse_row
from pairmill.pipeline.source.corpus.metadata_tables import Described, Rows
from pairmill.pipeline.source.corpus.sidecar import USUAL_TEXTS, TextRules
from pairmill.pipeline.source.files import PICTURE_ENDINGS, SourceError, reason_unused
from pairmill.schemas.passed_over import PassedOver, Tally

NOT_DESCRIBED = Described()

_Change = Callable[[str], str]


def used_entries(
    entries: Iterable[Entry], rules: TextRules, tally: Tally, tables: Container[str] = ()
) -> list[tuple[str, int]]:
    """Sorted (name, size in bytes) of the pictures and text files among a folder's entries. Counts all other entries in
    `tally`, except the names in `tables`, which `folder_rows` counts."""
    used = []
    for entry in entries:
        ending = _ending(entry.name)
        if entry.name in tables:
            continue
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
    described: Described = NOT_DESCRIBED,
) -> Iterator[IndexRow]:
    """Rows of INDEX_SCHEMA, from the names and sizes in bytes of a folder's files. Text files without a picture, such
    as readmes, are skipped. `tally` counts the rows and the skipped files. `sources`: the paths that the job names;
    text files may be symlinks to any file in them. `described`: what metadata tables say about the folder; their rows
    without a picture come last."""
    tally, trusted = tally or Tally(), trusted_folders(folder, sources)
    tally.add_parts(described.num_tables)
    ordered = sorted(names, key=lambda file: file[0].rpartition("."))
    spread = ordered[:: len(ordered) // 8 + 1]
    loose = _loose_texts(ordered)
    with_own_text = described.pictures.keys() | loose.of_picture.keys()
    for stem, group in groupby(ordered, key=lambda file: _stem(file[0])):
        members = list(group)
        if not any(_is_picture(name) for name, _ in members):
            for name, _ in members:
                if name not in loose.used:
                    tally.pass_over(PassedOver.EXTRA_TEXT if name in loose.extra else PassedOver.NO_PICTURE)
            continue
        for own in _apart(members, with_own_text):
            parts = [*own, *(text for name, _ in own for text in loose.of_picture.get(name, ()))]
            sample = Sample(stem, rules)
            for name, size in parts:
                # As S3 keys, `a//b` and `a/b` are different.
                others = (f"{folder}/{other}" for other, _ in chain(members, spread) if other != name)
                _add(sample, f"{folder}/{name}", size, files, trusted, others)
            for name, _ in parts:
                _add_rows(sample, described.pictures.get(name))
            row = sample.row()
            if caption_from_name and row.caption is None and row.caption_problem is None:
                row = replace(row, captions=(words_of(stem).encode("utf-8", "surrogateescape"),))
            tally.add_row(len(parts))
            yield row
    yield from _rows_without_picture(described, rules, tally)


@dataclass(frozen=True)
class _LooseTexts:
    """The text files whose stem no picture has, but which other tools put beside a picture: `a.jpg.txt`, and names that
    differ only in their Unicode normal form, as after a copy from macOS. In `a.jpg.txt`, the case of the picture's
    extension does not matter, as everywhere else."""

    of_picture: Mapping[str, Sequence[tuple[str, int]]]
    """Name of a picture -> its text files."""
    extra: Set[str]
    """Text files of pictures that also have one whose name fits better, which counts instead."""

    @cached_property
    def used(self) -> Set[str]:
        """All text files that belong to a picture."""
        return {name for texts in self.of_picture.values() for name, _ in texts}


def _loose_texts(names: Sequence[tuple[str, int]]) -> _LooseTexts:
    pictures = [name for name, _ in names if _is_picture(name)]
    stems = {_stem(name) for name in pictures}
    texts = [file for file in names if not _is_picture(file[0])]
    has_text = {(_stem(name), _ending(name) == "json") for name, _ in texts}
    loose = [file for file in texts if _stem(file[0]) not in stems]
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    fits: dict[tuple[str, bool], int] = {}  # (picture, whether JSON) -> how well its loose texts fit
    extra: set[str] = set()
    ways: list[tuple[_Change, _Change]] = [(str, str), (_stem, _nfc), (str, _any_case)]  # the best first
    for fit, (part, form) in enumerate(ways):
        by_form = _unambiguous(pictures, part, form) if loose else {}
        left = []
        for file in loose:
            picture, is_json = by_form.get(form(_stem(file[0]))), _ending(file[0]) == "json"
            if picture is None:
                left.append(file)
            elif (_stem(picture), is_json) in has_text or fits.setdefault((picture, is_json), fit) != fit:
                extra.add(file[0])
            else:
                found[picture].append(file)
        loose = left
    return _LooseTexts(found, extra)


def _unambiguous(pictures: Sequence[str], part: _Change, form: _Change) -> dict[str, str]:
    """Form of a part of a name -> the first picture whose name has it, unless several such parts have that form."""
    parts = {part(name): name for name in reversed(pictures)}
    counts = Counter(map(form, parts))
    return {plain: name for each, name in parts.items() if counts[plain := form(each)] == 1}


def _rows_without_picture(described: Described, rules: TextRules, tally: Tally) -> Iterator[IndexRow]:
    for path, rows in described.missing.items():
        sample = Sample(
            path.rpartition(".")[0] or path, rules, problem=f"{rows[0]}: there is no picture {readable_name(path)}"
        )
        _add_rows(sample, rows)
        tally.add_row()
        yield sample.row()
    for problem in described.problems:
        tally.add_row()
        yield IndexRow(problem=clean_text(problem))


def words_of(stem: str) -> str:
    """`dogs/red-dog_01` -> `red dog 01`."""
    return " ".join(PurePosixPath(stem).name.replace("_", " ").replace("-", " ").split())


def _apart(members: Sequence[tuple[str, int]], with_own_text: Container[str]) -> Iterator[Sequence[tuple[str, int]]]:
    """The files of each sample among those with the same stem. Pictures are usually alternates of each other, but those
    with their own rows in a table or with their own loose texts are different pictures."""
    others = [member for member in members if member[0] in with_own_text][1:]
    yield [member for member in members if member not in others]
    yield from ([member] for member in others)


def _add_rows(sample: Sample, rows: Rows | None) -> None:
    if rows is not None:
        sample.texts.add_rows(rows[0], [parse_row(row) for row in rows[1]])


def _is_picture(name: str) -> bool:
    return _ending(name) in PICTURE_ENDINGS


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _nfc(name: str) -> str:
    return normalize("NFC", name)


def _any_case(name: str) -> str:
    """The name in NFC, with its extension in lower case."""
    stem, dot, ending = _nfc(name).rpartition(".")
    return f"{stem}{dot}{ending.lower()}"


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _add(sample: Sample, path: str, size: int, files: Files, trusted: Sequence[Path], others: Iterable[str]) -> None:
    """Add a file to a sample. `others`: other files of its folder."""
    name = path.rpartition("/")[2]
    ending = _ending(name)
    if ending in PICTURE_ENDINGS:
        sample.add_image(ImageRef(path, 0, size))
    elif size > sample.rules.max_bytes(ending):
        sample.texts.add_too_large(name, size)
    elif links_outside(path, trusted):  # a symlink could turn a secret file into a caption
        sample.problem = f"{name} is a link to a file outside its folder and the source"
    else:
        try:
            with files.open(path) as file:
                data = file.read(sample.rules.max_bytes(ending))
        except (FileNotFoundError, PermissionError) as error:
            reason = f"cannot be read: {error.strerror or error}"
            if not files.can_read_any(others):  # the storage is at fault, so the captions may be there
                raise SourceError(f"{path}: {reason}") from error
            sample.texts.add_problem(f"{name}: {reason}")
        else:
            sample.texts.add(name, ending, data)
