"""What a command loads before it works: settings, methods and predictors wait for torch and for little else."""

import json
import sys

import pytest

from tests.conftest import REPOSITORY, python

PAPERS = sorted(path.parent.name for path in REPOSITORY.glob("papers/*/claims.toml"))
LEAVES = ("method", "nets", "config", "predict", "verify", "evaluate", "train")
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
COMMAND_LINE = {"tyro", "docstring_parser", "typeguard", "typing_extensions"}  # what lists the options: 70 ms
REPORTING = ("facepapers.common.evidence.statistics", "facepapers.common.evidence.claims", "facepapers.common.tools")


def foreign(modules, allowed=()):
    """Modules that are neither ours nor torch's nor of the standard library nor of `allowed`."""
    own = {"facepapers", "torch", "tqdm", "__mp_main__", *allowed} | set(sys.stdlib_module_names)
    return {m for m in modules if m.partition(".")[0] not in own and not m.startswith("_sysconfigdata")}


@pytest.fixture(scope="module")
def loaded():
    """Command -> modules that it loads which no command before it did, imports and --help in a fresh process each."""
    commands = [[f"facepapers.papers.{paper}.{leaf}"] for paper in PAPERS for leaf in LEAVES if exists(paper, leaf)]
    helped = [
        [f"facepapers.papers.{paper}.{leaf}", "--help"]
        for paper in PAPERS
        for leaf in ("predict", "verify")
        if exists(paper, leaf)
    ]
    found = {}
    for some in (helped, commands):
        done = python("-c", LOADED, json.dumps(some))
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout)
    return found


def exists(paper, leaf):
    return (REPOSITORY / "papers" / paper / f"{leaf}.py").exists()


def test_settings_methods_and_predictors_load_torch_alone(loaded):
    assert {"facepapers.papers.coarse_to_fine.predict --help", "facepapers.papers.resup.method"} <= loaded.keys()
    assert "facepapers.papers.coarse_to_fine.config" in loaded["facepapers.papers.coarse_to_fine.predict --help"]
    for command, names in loaded.items():
        assert not foreign(names, COMMAND_LINE if "--help" in command else ()), command
        assert not [name for name in names if name.startswith(REPORTING)], command
        assert "torch.utils.flop_counter" not in names, f"{command} loads a compiler"
