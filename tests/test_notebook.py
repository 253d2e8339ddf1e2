"""The notebook runs from its first cell to its last, and shows pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "first-hour.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's client, not of ditlab
def test_the_notebook_runs_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "commit it without outputs"
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning:zmq")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 4
    texts = [data["text/plain"] for data in shown if "image/png" not in data]
    assert texts[0].startswith("Pipeline(DiT: ")
    assert texts[1].startswith("[(640, ")
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert printed == ["sample has no argument 'guidance_scale'; use guidance\n"]  # and nothing else, no progress bar
    assert (tmp_path / "runs" / "notebook" / "model.safetensors").exists()
