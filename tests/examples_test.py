"""The notebooks in examples/ run, and show pictures."""

import base64
import io
import os
import pathlib

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "examples").glob("*.ipynb"))


def pictures(notebook):
    """The PNG outputs of a notebook as arrays."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    files = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]


def test_there_are_three_notebooks_with_saved_pictures():
    assert len(NOTEBOOKS) == 3
    for name in NOTEBOOKS:
        saved = pictures(nbformat.read(ROOT / "examples" / name, as_version=4))
        assert saved
        assert all(picture.std() > 5 for picture in saved)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, program_env, tmp_path, monkeypatch):
    for key, value in {**program_env, "XDG_CACHE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    saved = len(pictures(notebook))
    nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute(env=dict(os.environ))
    shown = pictures(notebook)
    assert len(shown) == saved
    assert all(picture.std() > 5 for picture in shown)
