"""Invariant: texts find pictures whose names differ only in Unicode normal form, but an exact name always counts first,
and no text is given to two pictures or lost."""

import json
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

from hypothesis import example, given
from hypothesis import strategies as st

from pairmill.pipeline.common.files import Files
from pairmill.pipeline.source.corpus.discover import Corpus
from pairmill.pipeline.source.corpus.index import IndexRow
from pairmill.pipeline.source.corpus.sidecar import TextUse
from pairmill.schemas.job.source import SourceConfig
from pairmill.schemas.passed_over import PassedOver, Tally

NFC, NFD = normalize("NFC", "éé"), normalize("NFD", "éé")
MIXED = NFC[0] + NFD[2:]
FORMS = st.sampled_from([NFC, NFD, MIXED])
FEW: dict[str, Any] = {"min_size": 1, "max_size": 4, "unique": True}


def indexed(root: Path, pictures: list[str]) -> tuple[list[IndexRow], Tally]:
    for name in pictures:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    corpus, tally = Corpus(SourceConfig(paths=[str(root)], kind="corpus"), Files()), Tally()
    rows = [row for folder in corpus.inputs("/nowhere").files for row in corpus._rows(folder, tally, TextUse())]
    assert tally.holds()
    assert Counter(row.image.uri for row in rows if row.image) == Counter(f"{root}/{name}" for name in pictures)
    return rows, tally


def captions(rows: list[IndexRow], root: Path) -> dict[str, list[str]]:
    """Picture -> its captions."""
    return {
        row.image.uri.removeprefix(f"{root}/"): [text.decode() for text in row.captions or () if text]
        for row in rows
        if row.image
    }


@given(
    st.lists(st.builds("{}.jpg".format, FORMS), **FEW),
    st.lists(st.builds("{}{}".format, FORMS, st.sampled_from([".txt", ".jpg.txt"])), **FEW),
)
@example([f"{NFC}.jpg", f"{NFD}.jpg"], [f"{NFC}.jpg.txt", f"{NFD}.jpg.txt"])
@example([f"{NFC}.jpg", f"{NFD}.jpg"], [f"{NFD}.txt", f"{NFC}.jpg.txt"])
@example([f"{NFC}.jpg", f"{NFD}.jpg"], [f"{MIXED}.txt"])
@example([f"{NFC}.jpg"], [f"{NFC}.jpg.txt", f"{NFD}.txt"])
def test_a_text_beside_a_picture_with_exactly_its_name_counts_first(pictures: list[str], texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for text in texts:
            (root / text).write_text(text)
        rows, tally = indexed(root, pictures)
    found = captions(rows, root)
    for picture in pictures:
        if exact := [text for text in (picture.replace(".jpg", ".txt"), f"{picture}.txt") if text in texts]:
            assert found[picture] == exact[:1]
    assert max(Counter(chain(*found.values())).values(), default=1) == 1
    assert tally.parts + tally.passed_over.total() == len(texts)
    assert set(tally.passed_over) <= {PassedOver.EXTRA_TEXT, PassedOver.NO_PICTURE}
    assert len(pictures) > 1 or len(found[pictures[0]]) == 1


PATHS = st.builds("{}{}.jpg".format, st.sampled_from(["", f"{NFC}/", f"{NFD}/"]), FORMS)


@given(st.lists(PATHS, **FEW), st.lists(PATHS, **FEW), st.sampled_from(["", f"{NFC}/"]))
@example([f"{NFC}.jpg", f"{NFD}.jpg"], [f"{NFC}.jpg", f"{NFD}.jpg"], "")
@example([f"{NFC}/x.jpg", f"{NFD}/x.jpg"], [f"{NFC}/x.jpg", f"{NFD}/x.jpg"], "")
@example([f"{NFC}/x.jpg", f"{NFD}/x.jpg", f"{NFD}/y.jpg"], [f"{NFC}/x.jpg", f"{NFC}/y.jpg"], "")
@example([f"{NFD}/x.jpg"], [f"{NFC}/x.jpg"], f"{NFC}/")
def test_a_row_of_a_table_counts_first_for_the_picture_with_exactly_its_name(
    pictures: list[str], paths: list[str], place: str
) -> None:
    """The table is in `place` and describes only pictures below it."""
    paths = [path for path in paths if path.startswith(place)] or [f"{place}0.jpg"]
    lines = [json.dumps({"file_name": path.removeprefix(place), "text": path}) for path in paths]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / place).mkdir(exist_ok=True)
        (root / place / "metadata.jsonl").write_text("\n".join(lines))
        rows, _ = indexed(root, pictures)
    found = captions(rows, root)
    for picture in pictures:
        if picture in paths:
            assert found[picture] == [picture]
    lost = [text.decode() for row in rows if row.image is None for text in row.captions or () if text]
    assert Counter(chain(lost, *found.values())) == Counter(paths)
    if len(pictures) == len(paths) == 1 and normalize("NFC", pictures[0]) == normalize("NFC", paths[0]):
        assert bool(lost) is not pictures[0].startswith(place)
