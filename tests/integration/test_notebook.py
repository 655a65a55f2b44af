"""Executes the documentation's notebook as Jupyter does, in an empty folder."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first-look.ipynb"


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of output of each code cell, without what libraries print on stderr. Printed text can arrive in several
    parts and counts once."""
    return [
        sorted(kind for output in cell.outputs for kind in output.get("data", ()))
        + sorted({"stdout" for output in cell.outputs if output.get("name") == "stdout"})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_and_has_the_same_kinds_of_outputs_as_in_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    published = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.read(NOTEBOOK, as_version=4)
    (tmp_path / "work").mkdir()
    NotebookClient(executed, timeout=240, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    assert outputs(executed) == outputs(published)
    assert sum("text/html" in kinds for kinds in outputs(published)) == 5
