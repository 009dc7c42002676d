"""What a paper's figures.py says of its pictures: for the results page and the cards."""

import ast
from pathlib import Path

from facepapers.common import paths


def captions(paper: str) -> dict[str, dict[str, str]]:
    """{"CAPTIONS", "ALTERNATIVES"} -> {stem of a picture: sentence} of the paper's figures.py.

    The file is read, not imported: its settings load PyTorch, which writing and comparing this page does without.
    """
    found: dict[str, dict[str, str]] = {"CAPTIONS": {}, "ALTERNATIVES": {}}
    path = Path(paths.ROOT, "papers", paper, "figures.py")
    tree = ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    for node in (node for node in tree.body if isinstance(node, ast.Assign)):
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in found:
            found[target.id] = ast.literal_eval(node.value)
    return found
