"""Omniglot as a second task: characters of some alphabets train, others test, by one protocol for every paper.

Drawings of 105 px are reduced to 28, as in Matching Networks (Vinyals et al. 2016) and others after them. The rest is
our choice: ink bright on dark, the list of pairs, the alphabets that are held out for tuning.
"""

from typing import NamedTuple

import numpy as np
import torch

from facepapers.common.data import sets
from facepapers.common.protocols import pair_lists

PX = 28
PAIRS, PAIRS_SEED = 300, 964  # of a kind in each of ten folds; their folds share no character


class Characters(NamedTuple):
    """N drawings in memory with one character each."""

    images: torch.Tensor  # (N, 3, 28, 28) uint8, ink bright on dark, so that what moves in at a border is paper
    label: np.ndarray  # (N,) character
    split: np.ndarray  # (N,) 0 train, 1 test: characters of other alphabets
    pairs: np.ndarray  # (P, 4) of the test's drawings: left, right, same, fold
    fingerprint: str


def load(held_out: bool = False) -> Characters:
    """Omniglot; `held_out`: its training alphabets alone, every fifth of them the test, for tuning.

    MissingData when it is not on this machine.
    """
    pack = sets.ensure("omniglot")
    grey, fingerprint = 255 - pack.decode(PX, channels=1), pack.meta["fingerprint"]  # sooner than three equal channels
    images = grey.expand(-1, 3, -1, -1).contiguous()
    label, split = pack.arrays["label"].astype(np.int64), pack.arrays["split"]
    if held_out:
        train = split == 0
        split = (pack.arrays["alphabet"] % 5 == 4).astype(np.uint8)[train]
        images, label, fingerprint = images[torch.from_numpy(train)], label[train], f"{fingerprint}+held_out"
    pairs = pair_lists.class_folds(label, split == 1, PAIRS, PAIRS_SEED)
    return Characters(images, label, split, pairs, fingerprint)
