"""The notebooks run, their two files agree, and what is committed is complete and readable."""

import base64
import gc
import io
import os
from pathlib import Path
import shutil

import jupytext
from matplotlib import image
import nbformat
import pytest

from notebooks.execute import client

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def images(path):
    data = [output.data for output in outputs(path) if "data" in output]
    return [base64.b64decode(kinds["image/png"]) for kinds in data if "image/png" in kinds]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_both_files_have_the_same_cells(path):
    notebook = nbformat.read(path, as_version=4)
    assert cells(jupytext.read(path.with_suffix(".py"))) == cells(notebook)
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"


def test_the_notebook_executes(path, tmp_path):
    notebook = jupytext.read(path.with_suffix(".py"))
    shutil.copy(FOLDER / "style.mplstyle", tmp_path)
    execution = client(notebook, resources={"metadata": {"path": str(tmp_path)}})
    # As a user would: one device, not the eight of the other tests.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    execution.execute(env=env)
    assert [left.name for left in tmp_path.iterdir()] == ["style.mplstyle"]
    del execution
    gc.collect()  # a connection left open would warn here, not in some later test


def test_committed_outputs_are_complete(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert images(path)
    for output in outputs(path):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


def test_committed_images_are_transparent(path):
    for png in images(path):
        pixels = image.imread(io.BytesIO(png))
        assert pixels.shape[-1] == 4
        assert not pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3].any()
