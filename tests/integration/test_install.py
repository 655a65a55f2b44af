"""Tests pairmill as users install it: what the wheel and the sdist contain, and use beside folders named like ours."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import PictureWeb
from tests.integration.test_build import picture, write_input

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("jobs", "pipeline", "schemas")
WRONG_MODULE = "raise SystemExit('the wrong module was imported')\n"
RULE = """
import pyarrow.compute as pc
from beside import SEVEN
from pairmill.pipeline.rules import at

@at("caption")
def no_sevens(rows):
    return pc.invert(pc.match_substring(rows["caption_clean"], SEVEN))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without PYTHONPATH, so that imports find the installed package. Returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_package(source: Path, target: str, out: Path) -> Path:
    """The wheel or sdist of a source tree, built by the hatchling installed here."""
    run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", out, cwd=source)
    [package] = out.iterdir()
    return package


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pairmill; its dependencies come from the environment that runs the tests."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> "Environment":
        run(sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, folder, cwd=folder.parent)
        environment = cls(folder)
        (environment.site_packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
        return environment

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        [folder] = (self.folder / "lib").glob("python*/site-packages")
        return folder

    def install(self, *what: str | Path) -> None:
        self._pip("install", "--no-deps", "--offline", "--no-build-isolation", *what)

    def uninstall(self, name: str) -> None:
        self._pip("uninstall", name)

    def _pip(self, command: str, *arguments: str | Path) -> None:
        uv = [sys.executable, "-m", "uv", "pip", command, "-q", "--python", self.python]
        run(*uv, *arguments, cwd=self.folder)


@pytest.fixture(scope="session", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp("venv") / request.param)
    environment.install(*([wheel] if request.param == "wheel" else ["-e", ROOT]))
    return environment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a rule, and modules with the names of our folders that must never be imported."""
    for name in ("pipeline", "schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(WRONG_MODULE)
    (tmp_path / "jobs.py").write_text(WRONG_MODULE)
    (tmp_path / "mine.py").write_text(RULE)
    (tmp_path / "beside.py").write_text("SEVEN = '7'")
    return tmp_path


def files_of_the_code() -> Iterator[str]:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"pairmill/{path.relative_to(ROOT)}"


def test_the_wheel_contains_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        links = [entry.filename for entry in archive.infolist() if (entry.external_attr >> 28) == 0o12]
    ours = {name for name in names if name.startswith("pairmill/")}
    assert ours == {*files_of_the_code(), "pairmill/__init__.py", "pairmill/__main__.py", "pairmill/py.typed"}
    assert {name.partition("/")[0].rpartition(".")[2] for name in names - ours} == {"dist-info"}
    assert links == []
    assert ours >= {
        "pairmill/jobs/cluster/rayjob.yaml",
        "pairmill/jobs/presets/datacomp-basic.yaml",
        "pairmill/pipeline/encode/tiny/model.safetensors",
        "pairmill/pipeline/pages/templates/report.css",
        "pairmill/pipeline/pages/templates/report.html.j2",
        "pairmill/pipeline/rules/boilerplate.txt",
    }


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build_package(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    again = build_package(unpacked, "wheel", tmp_path / "wheel")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_the_docker_image_has_all_files_that_the_wheel_is_built_from(wheel: Path, tmp_path: Path) -> None:
    context = tmp_path / "opt"
    context.mkdir()
    dockerfile = (ROOT / "jobs" / "cluster" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", dockerfile, re.M):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, context / target, symlinks=True)
            else:
                shutil.copy(ROOT / source, context / target)
    assert build_package(context, "wheel", tmp_path / "wheel").read_bytes() == wheel.read_bytes()


def test_every_name_in_the_docs_can_be_imported_beside_modules_named_like_ours(
    installed: Environment, project: Path
) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [block for page in pages for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)]
    statement = re.compile(r"^(?:from pairmill\S* import .+|import pairmill\S*)$", re.M)
    statements = {line for block in blocks for line in statement.findall(block)}
    names = {name for block in blocks for name in re.findall(r"\bpairmill(?:\.\w+)+", block)}
    assert "import pairmill" in statements
    assert "pairmill.build" in names
    modules = [f"import pairmill.{name}" for name in ("jobs.cli.main", "pipeline.stages", "schemas.jobs")]
    code = "\n".join([*sorted(statements), *modules, *sorted(names), "print(pairmill.__file__)"])
    where = run(installed.python, "-c", code, cwd=project)
    assert Path(where.strip()).is_relative_to(ROOT if "editable" in installed.folder.name else installed.folder)


def test_a_build_with_a_custom_rule_works_beside_modules_named_like_ours(
    installed: Environment, project: Path, web: PictureWeb, on_this_ray: list[str]
) -> None:
    """The wheel starts its own Ray, with workers that have only the wheel. The editable installation joins a Ray whose
    workers have the same code."""
    rows = [{"url": web.add(f"/{n}.jpg", picture(n)), "caption": f"number {n}"} for n in range(20)]
    write_input(project / "in.parquet", rows)
    # The command does not import from the current directory, so Ray's workers must not either.
    (project / "secrets.py").write_text(WRONG_MODULE)
    arguments = ["build", "in.parquet", "out", "--set", "fetch.allow_networks=[127.0.0.0/8]"]
    # An encoder and Ray take seconds to start: once is enough.
    arguments += on_this_ray if "editable" in installed.folder.name else ["--model", "tiny"]
    arguments += ["--set", "rules.custom=[mine:no_sevens]", "--set", "shard_rows=10", "--json"]
    built = run(installed.folder / "bin" / "pairmill", *arguments, cwd=project)
    result = json.loads(built.splitlines()[-1])
    assert result["statuses"] == {"ok": 18, "custom_rule": 2}
    assert built.splitlines()[-2] == f"report: {result['report']}"
    assert "custom rule: mine:no_sevens" in (project / "out" / "report.html").read_text()
    assert result["custom_rules"] == {"mine:no_sevens": {"step": "caption", "rows": 2}}
    assert "  caption  custom_rule: mine:no_sevens" in built
    assert sorted(web.log) == sorted(f"/{n}.jpg" for n in range(20) if n % 10 != 7)
    (project / "secrets.py").unlink()
    told = run(installed.python, "-m", "pairmill", "status", "out", "--json", cwd=project)
    assert json.loads(told.splitlines()[-1])["rows_in"] == 20


def test_a_custom_rule_can_be_in_a_package_named_like_ours(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "mine.py").write_text(RULE)
    (tmp_path / "beside.py").write_text("SEVEN = '7'")
    code = (
        "from pathlib import Path\nfrom pairmill.pipeline.rules import load_custom_rule\n"
        "print(load_custom_rule('pipeline.mine:no_sevens', Path.cwd()).name)"
    )
    assert run(installed.python, "-c", code, cwd=tmp_path) == "pipeline.mine:no_sevens\n"


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_installing_and_removing_a_package_with_folders_named_like_ours_harms_nothing(
    installed: Environment, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for folder in FOLDERS:
        (other / folder).mkdir(parents=True)
        (other / folder / "__init__.py").write_text("NAME = 'theirs'\n")
    (other / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
        "[project]\nname = 'other'\nversion = '1'\n"
        f"[tool.hatch.build.targets.wheel]\npackages = {list(FOLDERS)}\n"
    )
    before = digests(installed.site_packages)
    installed.install(build_package(other, "wheel", tmp_path / "wheel"))
    code = "import jobs, pipeline, schemas, pairmill.jobs.build; print(jobs.NAME, pipeline.NAME, schemas.NAME)"
    assert run(installed.python, "-c", code, cwd=tmp_path) == "theirs theirs theirs\n"
    installed.uninstall("other")
    assert digests(installed.site_packages) == before
    assert run(installed.folder / "bin" / "pairmill", "--help", cwd=tmp_path)
