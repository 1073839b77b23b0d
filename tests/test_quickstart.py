"""The notebook of scripts/examples runs from top to bottom, as committed without outputs."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
PATH = ROOT / "scripts/examples/quickstart.ipynb"


def test_the_notebook_is_without_outputs_and_imports_what_there_is():
    pytest.importorskip("IPython")
    cells = [cell for cell in nbformat.read(PATH, 4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    code = ast.parse("\n".join(cell.source.replace("%pip", "pass  # %pip") for cell in cells))
    imports = [node for node in code.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert len(imports) > 5
    exec(compile(ast.Module(imports, []), str(PATH), "exec"), {})


@pytest.mark.slow
def test_the_notebook_answers_fine_tunes_and_draws(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook, where = nbformat.read(PATH, 4), {"metadata": {"path": str(PATH.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", ()) for out in shown) == 2
    texts = "".join(str(out.get("text", out.get("data", ""))) for out in shown)
    assert all(word in texts for word in ("neu_high", "'fused': (3, 512)", "epoch 2/3", "exported"))
