"""The data sets of this paper by name: the embedded faces, COFW, LFPW, 300-W."""

import functools
import hashlib

import torch

from facepapers.common import seeding
from facepapers.common.data import alignment as sets
from facepapers.common.data import markups
from facepapers.common.faces import drawing as embedded

EMBEDDED = dict(train=1600, test=400, size=96, seed=2016)


@functools.lru_cache(maxsize=1)
def load(name: str) -> sets.AlignmentSet:
    """An AlignmentSet. MissingData (with the steps to obtain it) when the set is not on this machine."""
    return _embedded_set() if name == "embedded" else sets.load_alignment(name)


def _embedded_set():
    """Synthetic faces with exact 29 points; the first ones train, the last ones test."""
    n = EMBEDDED["train"] + EMBEDDED["test"]
    drawn = embedded.generate(n, EMBEDDED["seed"], size=EMBEDDED["size"])
    return sets.AlignmentSet(
        images=drawn.images,
        points=drawn.points,
        box=torch.full((n, 4), torch.nan),
        occluded=drawn.occluded,
        split=(torch.arange(n) >= EMBEDDED["train"]).to(torch.uint8),
        scale=torch.ones(n),
        subset=[""] * n,
        names=[f"embedded_{i:05d}" for i in range(n)],
        markup=markups.COFW29,
        fingerprint=hashlib.sha256(drawn.images.numpy().tobytes() + drawn.points.numpy().tobytes()).hexdigest(),
    )


def split(faces: sets.AlignmentSet, val_share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of training, validation and test faces; validation is the same faces for every seed (none at share 0)."""
    test = (faces.split == 1).nonzero().flatten()
    train = (faces.split == 0).nonzero().flatten()
    train = train[torch.randperm(len(train), generator=seeding.generator(2016))]
    held_out = max(1, round(val_share * len(train))) if val_share else 0
    return train[held_out:].sort().values, train[:held_out].sort().values, test


def fold(faces: sets.AlignmentSet, folds: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `split`, of one of several folds: each face is tested in one fold, the same one for every seed and row."""
    order = torch.randperm(len(faces), generator=seeding.generator(29))
    held = torch.zeros(len(faces), dtype=torch.bool)
    held[order[number::folds]] = True
    return (~held).nonzero().flatten(), torch.zeros(0, dtype=torch.long), held.nonzero().flatten()


def boxes(faces: sets.AlignmentSet) -> str:
    """Which test boxes a number rests on, for records and claims."""
    has_boxes = not torch.isnan(faces.box).any()
    return "official" if has_boxes else "landmarks with a fixed jitter"
