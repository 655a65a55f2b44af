"""Tests steps that compare perceptual hashes with a column `pdq` that users brought along, with any values in it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pairmill.schemas.errors import JobError
from tests.synthetic_dataset import default_columns, write_dataset
from tests.unit.select.conftest import Step, make_subset, row_ids

HASH, OTHER = (np.random.default_rng(seed).bytes(32).hex() for seed in (1, 2))
NEAR = f"{int(HASH, 16) ^ 0x3FF:064x}"
ODD = [None, "", "zz", "", "zz", HASH[:60], f" {HASH}", f"0x{HASH}", f"{HASH}\n", "g" * 64]
VALUES = [HASH, HASH.upper(), NEAR, OTHER, *ODD]


def dataset(folder: Path, **columns: pa.Array) -> Path:
    rows = len(VALUES)
    own = {"uid": pa.array([f"{row:032x}" for row in range(rows)]), "status": pa.array(["ok"] * rows), **columns}
    write_dataset(folder, rows, columns=lambda *of: {**default_columns(*of), **own})
    return folder


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize(
    ("step", "dropped"),
    [
        ({"dedup": {"by": "pdq"}}, [1]),
        ({"dedup": {"by": "pdq", "distance": 31}}, [1, 2]),
        ({"known": {"path": "other", "by": "pdq"}}, [0, 1]),
        ({"known": {"path": "other", "by": "pdq", "distance": 10}}, [0, 1, 2]),
    ],
)
def test_whatever_is_not_a_hash_has_no_duplicates_and_is_counted(
    tmp_path: Path, kind: pa.DataType, step: Step, dropped: list[int]
) -> None:
    quality = pa.array([80] * len(VALUES), pa.uint8())
    folder = dataset(tmp_path / "mine", pdq=pa.array(VALUES).cast(kind), pdq_quality=quality)
    others = pa.array([HASH.upper(), *ODD, *ODD[:3]]).cast(kind)
    other = dataset(tmp_path / "other", pdq=others, pdq_quality=quality)
    if "known" in step:
        step = {"known": {**step["known"], "path": str(other)}}  # type: ignore[dict-item]
    report = make_subset(folder, "some", step).reports[2]
    assert row_ids(folder, "some") == [f"000000000:{row}" for row in range(len(VALUES)) if row not in dropped]
    if report.known is None:
        assert report.not_compared == len(ODD)
        return
    assert report.known.not_compared == {"pdq": len(ODD)}
    assert report.known.unused == {"no pdq": len(ODD) + 3}


STEPS: list[Step] = [
    {"dedup": {"by": "pdq", "distance": 31}},
    {"known": {"path": "other", "by": "pdq"}},
    {"known": {"path": "mine", "by": "pdq"}},
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["pdq", "pdq_quality"])
def test_columns_of_another_type_are_refused_before_any_work(tmp_path: Path, step: Step, name: str) -> None:
    good = {"pdq": pa.array(VALUES), "pdq_quality": pa.array([80] * len(VALUES), pa.uint8())}
    bad = {"pdq": pa.array(range(len(VALUES))), "pdq_quality": pa.array(["80"] * len(VALUES))}
    mine = dataset(tmp_path / "mine", **{**good, name: bad[name]})
    other = dataset(tmp_path / "other", **good)
    folder = other if step == STEPS[2] else mine
    if "known" in step:
        step = {"known": {**step["known"], "path": str(tmp_path / step["known"]["path"])}}  # type: ignore[dict-item, index]
    with pytest.raises(JobError, match=f"the column '{name}' has the type (int64|string), not "):
        make_subset(folder, "some", step)


def test_a_distance_without_qualities_is_refused_with_advice_that_works(tmp_path: Path) -> None:
    folder = dataset(tmp_path, pdq=pa.array(VALUES))
    with pytest.raises(JobError, match=r"no column 'pdq_quality' .* can only be compared without a distance"):
        make_subset(folder, "some", {"dedup": {"by": "pdq", "distance": 31}})
    make_subset(folder, "some", {"dedup": {"by": "pdq"}})
