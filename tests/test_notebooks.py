"""Every notebook runs from its first cell to its last, and the committed one shows its outputs."""

import re
from pathlib import Path

import nbformat
import pytest

from facepapers.common.cli import UserError
from facepapers.common.evidence import tables
from facepapers.common.tools import notebooks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("papers/*/explain.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.parent.name)
def test_notebook_executes(path, tmp_path):
    """Every cell, with trainings cut short: `STEPS = 200  # 16 in tests` becomes `STEPS = 16`."""
    book, cut = nbformat.read(path, as_version=4), 0
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.source, found = re.subn(r"^(\w[\w, ]* = ).+  # (.+) in tests$", r"\1\2", cell.source, flags=re.M)
            cell.outputs, cut = [], cut + found
    assert cut == 1, "one line of a notebook says how long its trainings are, and how long in tests"
    nbformat.write(book, tmp_path / path.name)
    executed = notebooks.execute(tmp_path / path.name, timeout_s=600)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and any(cell.outputs for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.parent.name)
def test_committed_notebook_is_executed(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), "run make notebooks and commit"
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs), "a notebook without a picture"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.parent.name)
def test_committed_notebook_shows_the_present_results(path, committed_cells):
    last = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"][-1]
    shown = "".join(o["data"]["text/markdown"] for o in last.outputs if "text/markdown" in o.get("data", {}))
    fresh = tables.headlines(path.parent.name, committed_cells[path.parent.name])
    assert shown == fresh, f"make notebooks PAPER={path.parent.name}"


def test_progress_does_not_stay_in_a_notebook(tmp_path):
    code = "import sys; print('result'); print('12 faces/s', file=sys.stderr)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "one.ipynb")
    (cell,) = notebooks.execute(tmp_path / "one.ipynb").cells
    assert [output.text for output in cell.outputs] == ["result\n"]


def test_a_notebook_runs_in_its_own_folder_and_finds_the_checkout(tmp_path, monkeypatch):
    """As in Jupyter; no cell needs to know where the repository lies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    code = "import os\nfrom facepapers.common import paths\nprint(os.getcwd(), paths.ROOT)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "deep" / "one.ipynb")
    (cell,) = notebooks.execute(tmp_path / "deep" / "one.ipynb").cells
    assert [output.text for output in cell.outputs] == [f"{tmp_path / 'deep'} {ROOT}\n"]


def test_a_failing_cell_is_one_line(tmp_path):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    with pytest.raises(UserError, match=r"bad\.ipynb: a cell failed: ZeroDivisionError") as error:
        notebooks.execute(tmp_path / "bad.ipynb")
    assert len(str(error.value).splitlines()) == 1
