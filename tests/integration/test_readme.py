"""Tests that the Python code in the README runs as written, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, sequentially, write_input
from tests.integration.test_embed import CAPTION, embed_job, samples
from tests.tars import write_tar

REPOSITORY = Path(__file__).parents[2]

REPLACEMENTS = {
    '"urls.parquet", "out",': '"urls.parquet", "out", settings=SETTINGS,',
    "ViT-B-32:openai": "tiny",  # because its weights are bundled
    "min_similarity=0.28": "min_similarity=-1.0",  # because the captions do not describe the pictures
    "image_embedding_vit_b_32": "image_embedding_tiny",
    "range(10)": "range(1)",
    "num_workers=4": "num_workers=1",
}
"""Original text -> what the test runs instead, because it has no internet access, few pairs and little time."""


SHAPES = r"# \(256, (\d+, \d+, \d+)\), \(256, (\d+)\)"
"""What the README says about a batch of 256: the shapes of the pictures and of the texts."""

STATED = """
of_subset = pairmill.open("out").subset("clean").table(["row_id", "image_embedding_tiny"])
num_rows = of_subset.num_rows
assert num_rows > 1
assert sorted(row for row, in clean.project("row_id").fetchall()) == sorted(of_subset["row_id"].to_pylist())
assert (tuple(images.shape), tuple(texts.shape)) == ((num_rows, {pictures}), (num_rows, {texts}))
names = ("image_embedding_tiny", "text_embedding_tiny")
(batch,) = pairmill.PairDataset(pairmill.FeedConfig("out", "clean", batch_size=256, columns=names))
dim = len(of_subset["image_embedding_tiny"][0])
assert [tuple(batch[name].shape) for name in names] == 2 * [(num_rows, dim)]
"""
"""Run after the README's Python. Checks what the README says about batches, although the only batch here has fewer
than 256 rows, and about the join in SQL."""


def python_blocks() -> list[str]:
    """The Python blocks of the README, with the replacements."""
    text = (REPOSITORY / "README.md").read_text()
    for original, replacement in REPLACEMENTS.items():
        assert original in text, original
        text = text.replace(original, replacement)
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(600)
def test_the_python_code_in_the_readme_runs(web: PictureWeb, tmp_path: Path) -> None:
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": CAPTION.format(n)} for n in range(40)]
    write_input(tmp_path / "urls.parquet", rows)
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/00000.tar", samples(4))
    blocks = python_blocks()
    (rules,) = [block for block in blocks if block.startswith("# my_rules.py\n")]
    (tmp_path / "my_rules.py").write_text(rules)
    (builds,) = [block for block in blocks if "pairmill.build(" in block]
    others = [block for block in blocks if block not in (rules, builds)]
    assert len(others) == 3
    sequentially(embed_job(tmp_path / "emb", tmp_path / "tars"))
    check = "from pairmill.pipeline.rules.custom import load_custom_rule\nimport pathlib\n"
    check += "print(load_custom_rule('my_rules:no_stock_photos', pathlib.Path.cwd()).step)\nprint('reached the end')\n"
    (stated,) = re.findall(SHAPES, "\n".join(others))
    check = STATED.format(pictures=stated[0], texts=stated[1]) + check
    settings = {"fetch.allow_networks": ["127.0.0.0/8"]}
    (tmp_path / "readme.py").write_text("\n".join([f"SETTINGS = {settings}", builds, *others, check]))
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["caption", "reached the end"]
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "train").glob("*.tar"))
