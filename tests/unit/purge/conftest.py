"""Provides a dataset and its exports for the tests in this folder: written once, and restored before each test."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.purge.world import Source, write_world


@dataclass(frozen=True)
class World:
    """A dataset in `root/out`, and its exports beside it."""

    root: Path
    source: Source
    saved: Path
    """A copy of `root` in its original state."""

    @property
    def out(self) -> Path:
        """The dataset."""
        return self.root / "out"

    def write(self, name: str, lines: list[str]) -> Path:
        """Write a list outside the dataset."""
        path = self.saved.parent / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("purge")
    (base / "root").mkdir()
    source = write_world(base / "root")
    shutil.copytree(base / "root", base / "saved")
    return World(base / "root", source, base / "saved")


@pytest.fixture
def world(made: World) -> Iterator[World]:
    shutil.rmtree(made.root)
    shutil.copytree(
        made.saved, made.root, copy_function=os.link
    )  # hard links: tests must not write into existing files
    yield made
