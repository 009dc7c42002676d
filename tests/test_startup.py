"""What a command loads before it works: settings, methods and predictors wait for torch and for nothing else."""

import ast
import graphlib
import json
import sys

import pytest

from tests.conftest import REPOSITORY, python

PAPERS = sorted(path.parent.name for path in REPOSITORY.glob("papers/*/claims.toml"))
SOURCES = [p for room in ("common", "papers") for p in (REPOSITORY / room).rglob("*.py")]
LEAVES = ("method", "nets", "config", "predict", "evaluate", "train")
# Prints what each module named in the arguments loads beyond the standard library, our own code and torch.
LOADED = """
import contextlib, importlib, io, json, runpy, sys
import torch, tqdm
known, found = set(sys.modules), {}
for name, *argv in json.loads(sys.argv[1]):
    before = set(sys.modules)
    sys.argv = [name, *argv]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__") if argv else importlib.import_module(name)
    found[" ".join(sys.argv)] = sorted(set(sys.modules) - before)
print(json.dumps(found))
"""
OURS = {"common", "papers"}
REPORTING = {"common.report", "common.claims", "common.stats", "common.reproduce"}


def foreign(modules):
    """Modules that are neither ours nor torch's nor of the standard library."""
    own = OURS | {"torch", "tqdm", "__mp_main__"} | set(sys.stdlib_module_names)
    return {m for m in modules if m.partition(".")[0] not in own and not m.startswith("_sysconfigdata")}


@pytest.fixture(scope="module")
def loaded():
    """Command -> modules that it loads which no command before it did, in one fresh process."""
    commands = [[f"papers.{paper}.{leaf}"] for paper in PAPERS for leaf in LEAVES if exists(paper, leaf)]
    helped = [[f"papers.{paper}.predict", "--help"] for paper in PAPERS if exists(paper, "predict")]
    done = python("-c", LOADED, json.dumps(helped + commands))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exists(paper, leaf):
    return (REPOSITORY / "papers" / paper / f"{leaf}.py").exists()


def test_settings_methods_and_predictors_load_torch_alone(loaded):
    assert {"papers.coarse_to_fine.predict --help", "papers.resup.method", "papers.arcface.config"} <= loaded.keys()
    assert "papers.coarse_to_fine.config" in loaded["papers.coarse_to_fine.predict --help"]
    for command, names in loaded.items():
        assert not foreign(names), command
        assert not REPORTING & set(names), command
        assert "torch.utils.flop_counter" not in names, f"{command} loads a compiler"


def imported(path):
    """Our modules that a module imports anywhere, late imports included, as file paths without ending."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OURS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def test_no_module_imports_itself_through_others():
    names = {".".join(p.relative_to(REPOSITORY).with_suffix("").parts): p for p in SOURCES if p.name != "__init__.py"}
    graph = {name: {m for m in imported(path) if m in names} for name, path in names.items()}
    assert len(graph["papers.arcface.train"]) > 5
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
