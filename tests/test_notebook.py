"""The notebook of the analysis runs from start to end on the tables of a study alone."""

from pathlib import Path

import pytest

from specdec.analysis.tables import write_tables
from tests.simulated_runs import Truth, simulate_study

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "analysis.ipynb"

nbformat = pytest.importorskip("nbformat")


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs():
    for cell in read_notebook().cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_the_notebook_runs_on_the_tables_of_a_study(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    truths = [Truth(noise=0.05), Truth(pair="llama_shape", synthetic_acceptance=0.8)]
    write_tables(simulate_study(tmp_path / "runs", truths, ["code"], [2, 4], [0.0]), tmp_path)
    monkeypatch.setenv("SPECDEC_TABLES", str(tmp_path))
    notebook = read_notebook()
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(NOTEBOOK.parent))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    # heatmap, S against theory, breakdown, α, and S against α for each pair
    assert len(pictures) == 6
    assert not [output for output in outputs if output.get("name") == "stderr"]
