"""Where the repository's parts lie: in a checkout its top level, in an installed package the package itself."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = not (ROOT / "Makefile").exists()  # a wheel holds code, claims and the registry, but no records


def _here() -> Path:
    """The folder that the user is in; its name where it has been removed meanwhile."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path(os.environ.get("PWD") or "/")


WORK = _here() if INSTALLED else ROOT  # what a user's commands write lies below it
DATA = WORK / "data"
REGISTRY = ROOT / "data" / "registry.toml"
RECORDED = ROOT / "results"
LOCAL = WORK / "results" / "local"


def data_root() -> Path:
    """The folder of the data sets: data/, or DATA_ROOT."""
    return Path(os.environ.get("DATA_ROOT") or DATA).resolve()
