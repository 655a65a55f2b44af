"""One world for all tests of this folder: made once, and put back for each test that changes it."""

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
    """The same, as it was made."""

    @property
    def out(self) -> Path:
        """The dataset."""
        return self.root / "out"

    def write(self, name: str, lines: list[str]) -> Path:
        """A list, outside of the dataset."""
        path = self.saved.parent / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, no_fsync: None) -> World:
    base = tmp_path_factory.mktemp("purge")
    (base / "root").mkdir()
    source = write_world(base / "root")
    shutil.copytree(base / "root", base / "saved")
    return World(base / "root", source, base / "saved")


@pytest.fixture(autouse=True, scope="package")
def no_fsync() -> Iterator[None]:
    """Half of the time of a purge here; what a crash of the machine leaves is not tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def world(made: World) -> Iterator[World]:
    shutil.rmtree(made.root)
    shutil.copytree(made.saved, made.root, copy_function=os.link)  # so a test must not write into a file that is there
    yield made
