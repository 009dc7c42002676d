"""Whether an environment holds the packages: `python -m facepapers.common.tools.packages FOLDER [EXTRA ...]`.

The Makefile asks before every target. An environment that `make setup` made carries a marker: the sha256 of the
requirements.lock that is installed in it. Where it is this checkout's, nothing is done; else the lock is installed. Any
other environment (conda, a venv of the user's) is used as it is and never written into: its packages must be in the
ranges of pyproject.toml, those of the named extras included.

Runs before anything is installed, so on the standard library alone.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

from facepapers.common import cli, paths, storage

LOCK, PROJECT = paths.ROOT / "requirements.lock", paths.ROOT / "pyproject.toml"
MARKER = ".ready"
MODULE = "facepapers.common.tools.packages"


def interpreter(folder: Path) -> Path:
    """Where a venv, and conda, keep their Python."""
    return folder / "bin" / "python"


def is_ours(folder: Path) -> bool:
    """Whether `make setup` made this environment. Never conda's: its users were told to touch the marker once."""
    return (folder / MARKER).exists() and not (folder / "conda-meta").exists()


def create(folder: Path) -> None:
    """A venv of this interpreter, marked as ours from its first moment: an interrupted set-up is taken up again.

    Does not return: the venv's own interpreter goes on.
    """
    if is_ours(folder):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    print(f"setup: creating {folder}", flush=True)
    run(sys.executable, "-m", "venv", folder)
    os.execv(interpreter(folder), [str(interpreter(folder)), "-m", MODULE, str(folder)])


def renew(folder: Path) -> None:
    """Install the lock into the environment of ours that runs this, unless its versions are there already."""
    if lacking(locked(LOCK.read_text())):
        print("setup: installing the pinned packages (PyTorch is large, a few minutes)", flush=True)
        run(interpreter(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--require-hashes", "-r", LOCK)  # fmt: skip
    link(Path(sysconfig.get_path("purelib")))
    (folder / MARKER).write_text(storage.sha256(LOCK) + "\n")
    print("setup: done")


def link(site_packages: Path) -> None:
    """Make `import facepapers` find this checkout from any folder, as a notebook that is opened in its own needs."""
    (site_packages / "facepapers.pth").write_text(f"{paths.ROOT}\n")


def run(*words: str | Path) -> None:
    """UserError where the command fails; what it said stands above."""
    if subprocess.run([str(word) for word in words], cwd=paths.ROOT).returncode:
        raise cli.UserError(f"setup failed at `{' '.join(map(str, words[1:4]))} ...`: see above; then run it again")


def locked(text: str) -> list[str]:
    """The requirements in a lock file's text, without their hashes."""
    return [line.rstrip("\\ ") for line in text.splitlines() if line and line[0] not in "# "]


def wanted(extras: Iterable[str]) -> list[str]:
    """The requirements in pyproject.toml: those of the library and of the named extras."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]


def lacking(requirements: Iterable[str]) -> list[str]:
    """Those of the requirements that no package of this interpreter meets; all of them without `packaging`."""
    from importlib import metadata

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return list(requirements)

    def met(requirement):
        if requirement.marker and not requirement.marker.evaluate():
            return True  # of another system or Python
        try:
            return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        except metadata.PackageNotFoundError:
            return False

    return [text for text in requirements if not met(Requirement(text))]


def main(argv: list[str]) -> None:
    """See the module."""
    if {"-h", "--help"} & set(argv):  # by hand, because this runs before anything is installed
        print(__doc__.strip())
        return
    if not argv:
        raise cli.UserError(f"usage: python -m {MODULE} FOLDER [EXTRA ...]")
    folder, extras = Path(argv[0]), argv[1:]
    if not interpreter(folder).exists():
        if folder.exists() and not is_ours(folder) and any(folder.iterdir()):
            raise cli.UserError(f"{folder}: no Python environment; name another folder: make VENV=<new folder> ...")
        create(folder)
    elif not is_ours(folder):
        if missing := lacking(wanted(extras)):
            raise cli.UserError(
                f"{folder}: not made by `make setup`, so used as it is, but lacks {', '.join(missing)}; install them "
                "there, or let a new folder be made: make VENV=<new folder> ..."
            )
    elif (folder / MARKER).read_text().strip() != storage.sha256(LOCK):
        renew(folder)


if __name__ == "__main__":
    cli.entry(main)
