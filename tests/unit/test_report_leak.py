"""Tests that the report on a subset shows each evaluation picture beside the row with the same picture."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pairmill.pipeline.common.storage import Store
from pairmill.pipeline.report.report import make_report
from tests import picture_dataset
from tests.unit.select.conftest import make_subset

PAIRS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pairs"


def test_evaluation_pictures_are_shown_beside_their_rows(tmp_path: Path) -> None:
    """The first two shards of both datasets are the same, so each evaluation picture equals the picture of its row."""
    evaluation, training = tmp_path / "evaluation", tmp_path / "training"
    picture_dataset.write(evaluation, 22, PAIRS, shard_rows=11)
    picture_dataset.write(training, 60, PAIRS, shard_rows=11)
    subset = make_subset(training, "clean", {"leak": {"against": str(evaluation), "by": "sha256"}})
    leak = subset.reports[2].leak
    assert leak is not None and leak.nearest
    html = make_report(Store(str(training)), "clean").html
    section = re.search(r"<h2>Overlap with evaluation sets</h2>.*?</section>", html, re.DOTALL)
    assert section is not None
    items = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section[0])
    rows = re.findall(r'class="picture (row-\d+-\d+)"', section[0])
    assert len(items) == len(rows) == min(3, len(leak.nearest))
    for item, row in zip(items, rows, strict=True):
        style = re.search(rf"\.{row} {{ background-image: url\(data:image/jpeg;base64,([^)]+)\)", html)
        assert style is not None
        one, other = (np.asarray(Image.open(io.BytesIO(base64.b64decode(each))), float) for each in (item, style[1]))
        assert one.shape == other.shape and np.abs(one - other).mean() < 5
    assert f"{leak.items_hit} of {leak.items} evaluation pictures found" in section[0]
    shutil.rmtree(evaluation)
    assert "the evaluation set can no longer be read" in make_report(Store(str(training)), "clean").html
