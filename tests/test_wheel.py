"""The distribution: source archive and wheel are whole, and what is installed works from a stranger's folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY, one_line_error

pytest.importorskip("setuptools", minversion="77", reason="the wheel is built with setuptools")
pytest.importorskip("pip", reason="the wheel is installed with pip")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
KINDS = (".py", ".toml", ".npz", ".csv", ".html", ".css", ".js", ".smk")
# A loss, a network, a metric, embedded faces and claims, where the packages of no extra can be imported.
USE = """
import sys
sys.modules |= dict.fromkeys(("scipy", "matplotlib", "pandas", "sklearn", "pooch", "h5py", "pytest"))
import torch
import facepapers
from facepapers.common import paths
from facepapers.common.evidence import claims, environment, runs
from facepapers.common.faces import people
from facepapers.common.protocols import metrics
from facepapers.common.vision import networks
from facepapers.papers.arcface import method
from facepapers.papers.face_attributes import data
assert method.target_cosine(torch.zeros(2, 3), (1, 0.5, 0)).shape == (2, 3)
assert networks.to_input(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).is_floating_point()
assert list(data.SPLITS.glob("*.npz"))
print(facepapers.__version__, facepapers.__file__, metrics.__file__, paths.REGISTRY, paths.DATA, paths.LOCAL, sep="\\n")
print([paper for paper in claims.papers() if runs.recorded(paper) == [] and claims.read(paper)])
print(environment.source_state("arcface")["commit"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(the wheel, the folder that it is installed in): built from the unpacked source archive of this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    source, site = place / "source", place / "site"
    for name in ("facepapers", "common", "papers"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "data").mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "data/registry.toml"):
        shutil.copy(REPOSITORY / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(place)!r})"
    run("-c", build, cwd=source)
    (archive,) = place.glob("facepapers-*.tar.gz")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, archive, cwd=place)
    (wheel,) = place.glob("facepapers-*.whl")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=place)
    return wheel, site


def run(*words, **options):
    """The output of `python WORDS`; what it said is the message where it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def stranger(installed, tmp_path):
    """Options of a process in a folder that has modules of our folders' names, with the wheel before other packages."""
    for name in ("common.py", "papers.py"):
        (tmp_path / name).write_text("raise RuntimeError('a module of the user')")
    environment = {k: v for k, v in os.environ.items() if k not in ("DATA_ROOT", "DATA_MIRROR", "REPRO_COMMIT")}
    return {"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(installed[1])}}


def test_the_wheel_holds_every_module_and_what_they_read(installed):
    files = [p for name in ("common", "papers") for p in (REPOSITORY / name).rglob("*") if p.suffix in KINDS]
    files += [path for path in REPOSITORY.glob("papers/*/weights/**/*") if path.is_file()]
    wanted = {f"facepapers/{path.relative_to(REPOSITORY).as_posix()}" for path in files}
    held = {name for name in zipfile.ZipFile(installed[0]).namelist() if ".dist-info/" not in name}
    assert held == wanted | {"facepapers/__init__.py", "facepapers/data/registry.toml"}


def test_the_library_works_from_a_stranger_s_folder(installed, stranger, tmp_path):
    if shutil.which("git"):  # the user's own repository around it
        settings = [
            word for setting in ("user.name=a", "user.email=a@b", "commit.gpgsign=no") for word in ("-c", setting)
        ]
        for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
            subprocess.run(["git", "-C", installed[1].parent, *settings, *words], check=True)
    version, *places, papers, commit = run("-c", USE, **stranger).splitlines()
    assert version == installed[0].name.split("-")[1]
    root = installed[1] / "facepapers"
    assert places[:3] == [f"{root}/__init__.py", f"{root}/common/protocols/metrics.py", f"{root}/data/registry.toml"]
    assert places[3:] == [str(tmp_path / "data"), str(tmp_path / "results" / "local")]
    assert "resup" in papers and commit == "None"


def test_the_commands_work_from_a_stranger_s_folder(stranger):
    assert "IMAGE" in run("-m", "facepapers.papers.coarse_to_fine.predict", "--help", **stranger)
    assert "lfpw " in run("-m", "facepapers.common.data", "list", **stranger)
    words = [sys.executable, "-m", "facepapers.common.tools.report", "verify"]
    done = subprocess.run(words, capture_output=True, text=True, **stranger)
    assert done.returncode == 2
    one_line_error(done.stderr, "clone of the repository")
