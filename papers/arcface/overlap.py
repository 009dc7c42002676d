"""Pairs of LFW's View 2 that stand in View 1 too: `python -m facepapers.papers.arcface.overlap` finds them again.

A recipe that was chosen with View 1 has met them. view1_pairs.csv holds their places in pairs.txt, counted from 0, and
the list of View 1 that has each; it was written by this command from the official protocol files.
"""

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facepapers.common import cli, storage

TABLE = Path(__file__).with_name("view1_pairs.csv")
FOLDS, OF_EACH_KIND = 10, 300  # View 2: in each fold so many pairs of one person, then as many of two


def overlap(pairs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"devtrain", "devtest"}: places (n,) in pairs["pairs"] of pairs that pairs["pairs_<list>"] has in either order.

    pairs: rows (left image, right image, same, fold).
    """
    key = lambda rows: [tuple(sorted(row)) for row in rows[:, :2].tolist()]
    view2 = key(pairs["pairs"])
    lists = {name: set(key(pairs[f"pairs_{name}"])) for name in ("devtrain", "devtest")}
    return {name: np.flatnonzero([pair in known for pair in view2]) for name, known in lists.items()}


@functools.cache
def _known() -> np.ndarray:
    with open(TABLE, newline="") as lines:
        return np.array([int(line["pair"]) for line in csv.DictReader(lines)])


def apart(same: np.ndarray, fold: np.ndarray) -> np.ndarray | None:
    """Places (n,) of the pairs of View 2 that are not View 1's, or None for other lists; same, fold (P,).

    All shared pairs show one person. So that both kinds stay equally frequent in each fold, as many pairs of two people
    are left out there, the last ones.
    """
    if len(same) != 2 * OF_EACH_KIND * FOLDS:
        return None
    official = np.tile(np.repeat([True, False], OF_EACH_KIND), FOLDS)
    if not (np.array_equal(same, official) and np.array_equal(fold, np.repeat(np.arange(FOLDS), 2 * OF_EACH_KIND))):
        return None
    kept = np.ones((FOLDS, 2, OF_EACH_KIND), bool)
    kept.reshape(-1)[_known()] = False
    kept[:, 1] = np.arange(OF_EACH_KIND) < kept[:, 0].sum(1, keepdims=True)
    return np.flatnonzero(kept)


@dataclass(frozen=True)
class Command:
    """Find the pairs and write the table; needs the prepared set lfw."""

    table: Path = TABLE  # CSV file to write


def main(argv: Sequence[str]) -> None:
    """Write the table and print how many pairs of each list of View 1 are pairs of View 2."""
    from facepapers.common.data import sets

    options = cli.command(Command, argv, "python -m facepapers.papers.arcface.overlap", __doc__)
    arrays = sets.ensure("lfw").arrays
    found = overlap(arrays)
    lines = sorted((int(pair), name) for name, places in found.items() for pair in places)
    with storage.atomic(options.table) as temporary:
        temporary.write_text("pair,list\n" + "".join(f"{pair},{name}\n" for pair, name in lines))
    for name, places in found.items():
        same = arrays[f"pairs_{name}"][:, 2].astype(bool)
        of_one = arrays["pairs"][places, 2].astype(bool)
        print(f"{name}: {of_one.sum()} of {same.sum()} pairs of one person and {(~of_one).sum()} of {(~same).sum()} "
              "of two people are pairs of View 2")  # fmt: skip


if __name__ == "__main__":
    cli.entry(main)
