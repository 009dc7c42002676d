"""Setting up: which environments are made, renewed or only judged, and that a foreign one is never written into."""

import os
import subprocess
import sys
import sysconfig
from importlib import metadata

import pytest

from facepapers.common import cli, storage
from facepapers.common.tools import packages
from tests.conftest import REPOSITORY, one_line_error

PYTEST = metadata.version("pytest")


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands that would be run, in a world of its own: a lock of one package, another site-packages."""
    run = []
    lock, project = tmp_path / "requirements.lock", tmp_path / "pyproject.toml"
    lock.write_text(f"pytest=={PYTEST} \\\n    --hash=sha256:12\n    # via us\nnone==1 ; sys_platform == 'dos' \\\n")
    project.write_text(
        '[project]\ndependencies = ["pytest>=1"]\n[project.optional-dependencies]\nmore = ["none>=1,<2"]'
    )
    monkeypatch.setattr(packages, "LOCK", lock)
    monkeypatch.setattr(packages, "PROJECT", project)
    monkeypatch.setattr(packages, "run", lambda *words: run.append(" ".join(map(str, words))))
    monkeypatch.setattr(os, "execv", lambda program, words: run.append(" ".join(words)))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return run


@pytest.fixture
def environment(tmp_path):
    """A folder that looks like an environment which nobody marked."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_absent_environment_is_made(commands, tmp_path):
    packages.main([str(tmp_path / "new")])
    venv, itself = commands
    assert venv.endswith(f"-m venv {tmp_path / 'new'}") and itself.startswith(
        f"{tmp_path}/new/bin/python -m facepapers"
    )
    assert packages.is_ours(tmp_path / "new")  # so that an interrupted set-up goes on


def test_the_lock_s_hash_decides_not_the_time_of_a_file(commands, environment, tmp_path):
    marker = environment / ".ready"
    marker.write_text(storage.sha256(packages.LOCK) + "\n")
    os.utime(packages.LOCK)  # newer than the marker, as after a checkout
    before = contents(environment)
    packages.main([str(environment)])
    assert not commands and contents(environment) == before
    packages.LOCK.write_text("none==1\n")
    os.utime(packages.LOCK, (0, 0))
    packages.main([str(environment)])
    assert [words.partition(" -m ")[2].split()[:2] for words in commands] == [["pip", "install"]]
    assert commands[0].endswith(f" --no-deps --require-hashes -r {packages.LOCK}")
    assert marker.read_text().strip() == storage.sha256(packages.LOCK)


def test_an_older_marker_is_replaced_without_installing_what_is_there(commands, environment, tmp_path):
    (environment / ".ready").touch()
    packages.main([str(environment)])
    assert not commands and (environment / ".ready").read_text().strip() == storage.sha256(packages.LOCK)
    assert (tmp_path / "facepapers.pth").read_text() == f"{REPOSITORY}\n"


def test_a_version_outside_of_its_range_is_lacking():
    assert packages.lacking(["pytest>=1", "pytest<1", f"pytest=={PYTEST}", "none>=1"]) == ["pytest<1", "none>=1"]


@pytest.mark.parametrize("conda", [False, True])
def test_a_foreign_environment_is_judged_and_left_alone(commands, environment, conda):
    if conda:  # its users once touched the marker
        (environment / "conda-meta").mkdir()
        (environment / ".ready").touch()
    before = contents(environment)
    packages.main([str(environment)])
    with pytest.raises(cli.UserError) as error:
        packages.main([str(environment), "more"])
    one_line_error(error, environment, "lacks none>=1,<2;", "make VENV=")
    assert not commands and contents(environment) == before


def test_a_folder_of_something_else_is_left_alone(commands, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(cli.UserError, match="photos: no Python environment"):
        packages.main([str(tmp_path / "photos")])
    assert not commands


def test_a_failed_command_is_one_line():
    with pytest.raises(cli.UserError, match=r"setup failed at `-c raise SystemExit\(3\) \.\.\.`"):
        packages.run(sys.executable, "-c", "raise SystemExit(3)")


def test_a_linked_environment_finds_the_checkout_from_anywhere(tmp_path):
    """As a notebook that is opened in its own folder."""
    make_venv(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    packages.link(site)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [tmp_path / "venv/bin/python", "-c", "from facepapers.common import paths; print(paths.ROOT)"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(REPOSITORY), done.stderr


def test_make_uses_a_foreign_environment_as_it_is(tmp_path):
    """First one that has nothing, then one that sees this test's packages."""
    make_venv(tmp_path / "venv")
    words = ["make", "--no-print-directory", f"VENV={tmp_path / 'venv'}", "data"]
    before = contents(tmp_path / "venv")
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "lacks torch>=" in done.stderr.splitlines()[0]
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "seen.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "lfpw" in done.stdout, done.stderr
    assert contents(tmp_path / "venv").keys() == before.keys() | {site / "seen.pth"}


def make_venv(folder):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
