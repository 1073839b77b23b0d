"""The notebook of scripts/examples runs from top to bottom, as committed without outputs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_notebook_answers_fine_tunes_and_draws(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = ROOT / "scripts/examples/quickstart.ipynb"
    notebook = nbformat.read(path, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", ()) for out in shown) == 2
    texts = "".join(str(out.get("text", out.get("data", ""))) for out in shown)
    assert all(word in texts for word in ("neu_high", "'fused': (3, 512)", "epoch 2/3", "exported"))
