"""The released models, their hashes, sizes, numbers and cards: `python -m facepapers.common.tools.weights`."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from facepapers.common import cli, paths, storage
from facepapers.common.evidence import claims, model_cards
from facepapers.common.tools import release
from facepapers.common.training import released


@dataclass(frozen=True)
class Command:
    """List and check the released models."""

    write: bool = False  # write their cards anew


def main(argv: Sequence[str]) -> None:
    """Print a line for each model, released or not. UserError at the end where one has problems."""
    options = cli.command(Command, argv, "python -m facepapers.common.tools.weights", __doc__, least=0)
    if paths.INSTALLED:
        raise cli.UserError(f"{paths.ROOT}: no records in an installed package; run this in a clone of the repository")
    wrong, total = [], 0
    for paper in claims.papers():
        for name in names(paper):
            folder = released.folder_of(paper, name)
            if not (folder / released.FILE).exists():
                print(f"{name:18s} {paper:26s} not released yet: {released.training(paper, name)}")
                continue
            if options.write:
                release.write_card(folder)
            found = model_cards.problems(folder)
            wrong += [f"{folder.relative_to(paths.ROOT)}: {problem}" for problem in found]
            size = (folder / released.FILE).stat().st_size
            total += size
            print(f"{name:18s} {paper:26s} {size / 2**20:5.2f} MiB  {headline(folder)}  {found[0] if found else 'ok'}")
    print(f"together {total / 2**20:.2f} MiB of {released.ALL_BYTES / 2**20:.0f}")
    if total > released.ALL_BYTES:
        wrong.append("all released files together are too large; release some with --stored int8")
    if wrong:
        raise cli.UserError("; ".join(wrong))


def names(paper: str) -> tuple[str, ...]:
    """Names of the models that a paper releases."""
    if not (paths.ROOT / "papers" / paper / "released.py").exists():
        return ()
    return import_module(f"facepapers.papers.{paper}.released").NAMES


def headline(folder: Path) -> str:
    """`nme_eyecentre_pct 4.52`: the first metric of a model's card."""
    facts = storage.read_json(folder / released.FACTS)
    name = model_cards.words(facts["paper"], facts["name"])["metrics"][0]
    return f"{name} {facts['metrics'][name]:.2f}"


if __name__ == "__main__":
    cli.entry(main)
