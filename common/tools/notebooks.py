"""Execute every `papers/*/explain.ipynb` in place: `make notebooks`. Outputs carry no timings, so diffs stay small."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from facepapers.common import cli, paths, storage

if TYPE_CHECKING:
    import nbformat


def execute(path: Path, timeout_s: int = 600) -> "nbformat.NotebookNode":
    """The executed notebook as a nbformat node, without what went to stderr: progress, which differs each time.

    It runs in its own folder, as Jupyter does it, and finds this checkout. UserError naming the notebook and the error
    of its first bad cell.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = read(path)
    client = NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(Path(path).parent)}},
        record_timing=False,
    )  # fmt: skip
    found = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    try:
        client.execute(env={**os.environ, "PYTHONPATH": found})
    except CellExecutionError as error:
        first = (error.evalue.splitlines() or [""])[0]
        raise cli.UserError(f"{path}: a cell failed: {error.ename}: {first}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def read(path: Path) -> "nbformat.NotebookNode":
    """A notebook from its file. UserError where that is none."""
    import nbformat

    text = storage.read_text(path, storage.GIT)
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat's and jsonschema's own kinds
        raise cli.UserError(f"{path}: damaged notebook ({storage.one_line(error)}); {storage.GIT}") from None
    return notebook


@dataclass(frozen=True)
class Command:
    """Execute notebooks in place."""

    files: tuple[Path, ...]  # notebooks; without any those of all papers


def main(argv: Sequence[str]) -> None:
    """Execute and write back each notebook."""
    import nbformat

    options = cli.command(Command, argv, "python -m facepapers.common.tools.notebooks", __doc__, least=0)
    wanted = options.files or sorted(Path(paths.ROOT, "papers").glob("*/explain.ipynb"))
    if not wanted:
        raise cli.UserError(
            f"{paths.ROOT}: no notebooks in an installed package; run this in a clone of the repository"
        )
    for path in wanted:
        if not path.exists():
            raise cli.UserError(f"{path}: no such notebook")
        started = time.perf_counter()
        notebook = execute(path)
        with storage.atomic(path) as temporary:
            nbformat.write(notebook, temporary)
        print(f"executed {path} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    cli.entry(main)
