"""Synthetic people for verification: faces of some to train on, pairs of the faces of others to test on."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch

from facepapers.common.faces import drawing
from facepapers.common.protocols import pair_lists
from facepapers.common.vision import alignment


class People(NamedTuple):
    """N aligned faces; pairs have rows (left, right, same, fold)."""

    images: torch.Tensor  # (N, 3, S, S) uint8
    identity: np.ndarray  # (N,)
    split: np.ndarray  # (N,) uint8: 0 train, 1 test; no person is in both
    pairs: np.ndarray  # (P, 4) int32, of test faces
    fingerprint: str


def draw(people: int, train: int, test_people: int, test: int, size: int, pairs: int, seed: int) -> People:
    """People: `train` faces of `people` persons and `test` faces of `test_people` others, `pairs` of each kind.

    Drawn by common/faces/drawing.py and aligned by their exact five points. Different seeds give different people.
    """
    parts = ((train, people), (test, test_people))
    drawn = [
        drawing.generate(n, seed + k, size=size, identities=persons, people_seed=seed + 10 * k)
        for k, (n, persons) in enumerate(parts, start=1)
    ]
    crops = torch.cat([alignment.align(d.images, d.five.numpy(), size) for d in drawn])
    identity = np.concatenate([drawn[0].identity_label.numpy(), drawn[1].identity_label.numpy() + people])
    split = np.repeat(np.array([0, 1], np.uint8), (train, test))
    rows = pair_lists.sample_pairs(np.flatnonzero(split), identity, pairs, seed)
    fingerprint = hashlib.sha256(crops.numpy().tobytes() + rows.tobytes()).hexdigest()
    return People(crops, identity, split, rows, fingerprint)
