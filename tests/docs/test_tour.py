"""The notebook runs from its first cell to its last, and what it shows is so."""

import re
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def test_no_output_is_kept() -> None:
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(TOUR, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("onnxruntime")
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    left = [int(count) for count in re.search(r"left at each exit: \[(.*)\]", shown)[1].split(", ")]
    assert sum(left) == 355
    assert sum(count > 0 for count in left) >= 2  # it has to show that images leave at several exits
    assert re.search(r"([\d.]+)% of the images leave at the same exit", shown)[1] in ("99.7", "100.0")
    assert [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
