"""The notebooks of examples/: stored without outputs, and run to the end in a kernel, as a person runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is missing: pip install -e .[dev]")
nbclient = pytest.importorskip("nbclient", reason="nbclient is missing: pip install -e .[dev]")
pytest.importorskip("ipykernel", reason="ipykernel is missing: pip install -e .[dev]")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_there_valid_and_without_outputs():
    assert [path.name for path in NOTEBOOKS] == ["own_data.ipynb", "quickstart.ipynb"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(notebook)), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_the_end_and_shows_a_picture(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in code_cells(notebook) for output in cell.outputs if "data" in output]
    assert any({"text/html", "image/png"} & set(output.data) for output in shown)
    assert not any(output.output_type == "error" for cell in code_cells(notebook) for output in cell.outputs)
    assert (tmp_path / "runs").is_dir()
