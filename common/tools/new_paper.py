"""A running skeleton of a paper's directory, with its test: `make new-paper NAME=center-loss`.

Its files are the templates of common/tools/skeleton with the paper's name put in; papers/README.md says what each is
for. Nothing that exists is ever overwritten.
"""

import keyword
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facepapers.common import cli, paths, storage

SKELETON = Path(__file__).with_name("skeleton")
LONGEST = 30  # characters of a name, so that no line of the skeleton grows beyond the limit
TAKEN = {
    "all": "make reproduce-all runs every paper", "local": "results/local holds a user's own runs",
    "common": "a folder of this repository", "facepapers": "this package's name",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """Write a paper's directory and its test, which run as they are."""

    name: str  # the paper's name in commands, such as center-loss


def main(argv: Sequence[str]) -> None:
    """Write the files and say what to do with them. UserError for a bad name or one that is taken."""
    name = cli.command(Command, argv, "python -m facepapers.common.tools.new_paper", __doc__).name
    if paths.INSTALLED:
        raise cli.UserError("papers are added to a checkout of the repository, not to an installed package: clone it")
    target = named(name)
    for path in write(target, paths.ROOT):
        print(f"wrote {path.relative_to(paths.ROOT)}")
    print(next_steps(target))


def named(text: str) -> str:
    """The name of a paper in commands, `center-loss` for "center-loss" or "center_loss". UserError for a bad one."""
    target = text.replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", target) or len(target) > LONGEST:
        raise cli.UserError(
            f"NAME={text}: lower-case words and digits joined by '-', a letter first, at most {LONGEST} characters, "
            "such as center-loss"
        )
    if reason := "a word of Python" if keyword.iskeyword(target) else TAKEN.get(target):
        raise cli.UserError(f"NAME={text}: cannot be a paper's name ({reason}); choose another")
    return target


def rendered(target: str, root: Path) -> dict[Path, str]:
    """The skeleton's files for a paper, path below `root` -> text."""
    paper = target.replace("-", "_")
    words = {"target": target, "paper": paper, "title": target.replace("-", " ").title()}
    files = {}
    for template in sorted(SKELETON.glob("*.template")):
        name = template.name.removesuffix(".template")
        path = Path("tests", f"test_{paper}.py") if name == "test.py" else Path("papers", paper, name)
        files[Path(root, path)] = string.Template(template.read_text()).substitute(words)
    return files


def write(target: str, root: Path) -> list[Path]:
    """Write the skeleton of a paper below `root`, all of it or nothing; returns the paths.

    UserError when the paper, its test or its records exist.
    """
    files = rendered(target, root)
    folders = {path.parent for path in files if path.parent.name != "tests"}
    for path in [*folders, *files, Path(root, "results", target.replace("-", "_"))]:
        if path.exists():
            raise cli.UserError(f"{path}: exists already; choose another NAME or move it away")
    written = []
    try:
        for path, text in files.items():
            with storage.atomic(path) as temporary:
                temporary.write_text(text)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        for folder in folders:
            if folder.exists():
                folder.rmdir()
        raise
    return written


def next_steps(target: str) -> str:
    """What to do now, as text."""
    paper = target.replace("-", "_")
    return f"""
It runs as it is; papers/README.md is the contract.
  train its rows, print the table:  make reproduce-{target}
  its own tests:                    make test ARGS=tests/test_{paper}.py
  replace the example:              grep -rn TODO papers/{paper}
Then commit, and record the runs that answer its claims:
  make reproduce-{target} SEEDS="0 1 2" ARGS="--out results"
  make report
  make notebooks PAPER={target}"""


if __name__ == "__main__":
    cli.entry(main)
