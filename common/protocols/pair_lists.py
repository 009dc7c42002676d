"""Pairs of images to verify: LFW's protocol files, drawn lists, folds."""

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facepapers.common import storage
from facepapers.common.cli import MissingData, UserError


class Pairs(NamedTuple):
    """P pairs of images given by their names (people's files: Name/Name_0001.jpg)."""

    left: np.ndarray  # (P,) str, as objects: in NumPy's own strings each would take the room of the longest
    right: np.ndarray  # (P,) str
    same: np.ndarray  # (P,) bool
    fold: np.ndarray  # (P,) int, 0..9


def contiguous_folds(n_pairs: int, folds: int = 10) -> np.ndarray:
    """Fold (P,) of each pair when the list is cut into equal runs: scikit-learn's KFold without shuffling."""
    if n_pairs < folds:
        raise UserError(f"{n_pairs} pairs cannot be cut into {folds} folds")
    return np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.arange(n_pairs), folds)])


def sample_pairs(index: np.ndarray, identity: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(2 count, 4) pairs among the images `index`: `count` (or as many as there are) same, as many different."""
    rng = np.random.default_rng(seed)
    left, right = np.triu_indices(len(index), 1)
    same = identity[index[left]] == identity[index[right]]
    count = min(count, int(same.sum()), int((~same).sum()))
    chosen = np.concatenate([rng.choice(np.flatnonzero(same == kind), count, replace=False) for kind in (True, False)])
    fold = balanced_folds(same[chosen])
    return np.stack([index[left[chosen]], index[right[chosen]], same[chosen], fold], 1).astype(np.int32)


def class_folds(label: np.ndarray, chosen: np.ndarray, each: int, seed: int, folds: int = 10) -> np.ndarray:
    """(2 each folds, 4) pairs among the images where `chosen` (N,) is true, in folds that share no class.

    The classes are dealt out at random; a fold has `each` (or as many as there are) pairs of one class, as many of two.
    """
    classes = np.random.default_rng(seed).permutation(np.unique(label[chosen]))
    made = []
    for fold, some in enumerate(np.array_split(classes, folds)):
        pairs = sample_pairs(np.flatnonzero(chosen & np.isin(label, some)), label, each, seed + 1 + fold)
        pairs[:, 3] = fold
        made.append(pairs)
    return np.concatenate(made)


def hold_out(
    identity: np.ndarray, train: np.ndarray, count: int = 3000, seed: int = 2007
) -> tuple[np.ndarray, np.ndarray]:
    """(test (N,) bool, pairs (P, 4)): a fifth of the people in `train` (N,), and pairs of theirs (see sample_pairs).

    For tuning, which must not see the people of the test: train on `train & ~test`.
    """
    import torch

    from facepapers.common.seeding import generator

    people = np.unique(identity[train])
    order = torch.randperm(len(people), generator=generator(seed)).numpy()
    test = train & np.isin(identity, people[order[: len(people) // 5]])
    return test, sample_pairs(np.flatnonzero(test), identity, count, seed)


def balanced_folds(same: np.ndarray, folds: int = 10) -> np.ndarray:
    """Fold (P,) of each pair when the same-person pairs and the others are each cut into runs, in their order.

    For lists that are not in blocks, such as LFW's pairsDevTest (all same-person pairs come first): contiguous folds
    would hold one kind only. On pairs.txt both give LFW's official ten.
    """
    fold = np.empty(len(same), int)
    for kind in (True, False):
        where = np.flatnonzero(np.asarray(same, bool) == kind)
        fold[where] = contiguous_folds(len(where), folds)
    return fold


def folds_of(same: np.ndarray, source: object, folds: int = 10) -> np.ndarray:
    """Fold (P,) of each pair: contiguous, as insightface has them, or balanced where those would be of one kind.

    Lists come with all same-person pairs first, too: contiguous folds then have no threshold to learn, and rates that
    mean nothing. A fold counts as of one kind with less than half of its share of the other; stderr says so.
    """
    fold = contiguous_folds(len(same), folds)
    for kind in (True, False):
        each = np.bincount(fold[np.asarray(same, bool) == kind], minlength=folds)
        if each.min() < each.sum() / folds / 2:
            print(f"{source}: its pairs lie in blocks of one kind; each fold takes its share of both", file=sys.stderr)
            return balanced_folds(same, folds)
    return fold


def lfw_name(person: str, number: int | str) -> str:
    """Name/Name_0001.jpg"""
    return f"{person}/{person}_{int(number):04d}.jpg"


def read_pairs(path: os.PathLike[str] | str) -> Pairs:
    """Pairs of an LFW pairs file. Fold: the file's own sets (View 2), or ten balanced ones (View 1).

    The first line holds the number of sets (View 2 only) and the number of pairs of each kind per set. Raises
    UserError, with the line, for a malformed file.
    """
    lines = _protocol_lines(path)
    try:
        header = [int(word) for word in lines[0]]
        sets, each = header if len(header) == 2 else (1, *header)
    except (ValueError, IndexError, TypeError):
        raise UserError(f"{path}:1: expected '[sets] pairs-per-kind'; fetch the protocol file again") from None
    if len(lines) != 1 + 2 * sets * each:
        wanted = 2 * sets * each
        raise UserError(f"{path}: {len(lines) - 1} pairs where its first line promises {wanted}; fetch it again")
    left, right, same = [], [], []
    for number, words in enumerate(lines[1:], start=2):
        if len(words) not in (3, 4) or not (words[1] + words[-1]).isdecimal():
            found = " ".join(words)
            raise UserError(f"{path}:{number}: expected 'name n n' or 'name n name n', found {found!r}; fetch it again")
        left.append(lfw_name(words[0], words[1]))
        right.append(lfw_name(words[-2] if len(words) == 4 else words[0], words[-1]))
        same.append(len(words) == 3)
    truth = np.array(same)
    fold = folds_of(truth, path, sets) if sets > 1 else balanced_folds(truth)
    return Pairs(np.array(left, object), np.array(right, object), truth, fold)


def read_people(path: os.PathLike[str] | str) -> list[dict[str, int]]:
    """Sets of {person: number of images} of an LFW people file: a list of ten (View 2) or of one (View 1)."""
    lines = _protocol_lines(path)
    view2 = len(lines) > 1 and len(lines[0]) == len(lines[1]) == 1  # "10" and then "601": sets, people in the first
    at, sets = int(view2), []
    try:
        for _ in range(int(lines[0][0]) if view2 else 1):
            count = int(lines[at][0])
            people = lines[at + 1 : at + 1 + count]
            sets.append({name: int(images) for name, images in people})
            at += 1 + count
            if len(people) != count:
                raise IndexError
    except (ValueError, IndexError):
        raise UserError(f"{path}: set {len(sets) + 1} does not hold the people it promises; fetch it again") from None
    return sets


def index_pairs(pairs: Pairs, names: Sequence[str], path: os.PathLike[str] | str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (P,), (P,) of the pairs' images in the list `names`. UserError, with the pairs' file `path`, when an
    image is absent.
    """
    place = {_composed(name): i for i, name in enumerate(names)}
    wanted = [[_composed(name) for name in side] for side in (pairs.left, pairs.right)]
    absent = [name for side in wanted for name in side if name not in place]
    if absent:
        raise UserError(
            f"{path}: names {len(set(absent))} images that are absent, e.g. {absent[0]}; "
            "obtain the whole data set, or the protocol file that belongs to it"
        )
    left, right = (np.array([place[name] for name in side]) for side in wanted)
    return left, right


def _composed(name):
    """A name with its accents as one letter each: some file systems hand them back as two."""
    return unicodedata.normalize("NFC", str(name))


def _protocol_lines(path: os.PathLike[str] | str) -> list[list[str]]:
    """The words of each non-empty line: between tabs, where it has any, so that a name may hold blanks."""
    if not Path(path).exists():
        raise MissingData(f"{path}: no such protocol file; `make data-lfw` obtains it")
    lines = [line.strip() for line in storage.read_text(path, "fetch the protocol file again").split("\n")]
    return [[w.strip() for w in line.split("\t")] if "\t" in line else line.split() for line in lines if line]
