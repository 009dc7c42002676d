"""Faces with expression labels, the split into training, validation and test, and the batches of each step.

Within each split the faces are ordered by true class. Records therefore list results class by class, which tells how
many faces of a class there are and nothing about single images.
"""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np
import torch

from facepapers.common import seeding
from facepapers.common.cli import UserError
from facepapers.common.data import expressions, sets
from facepapers.common.faces import drawing, sampling, shape
from facepapers.common.vision import images
from facepapers.papers.resup import noise
from facepapers.papers.resup.config import Config

# Synthetic: see faces/drawing.py. Stronger and more frontal than its defaults: a network of minutes must learn them.
EMBEDDED = dict(train=2000, valid=200, test=600, size=32, seed=2305)
SHOWN = (0, 1, 2, 3, 4)  # neutral, happiness, surprise, sadness, anger
LOOKS = sampling.Ranges(
    expressions=SHOWN, intensity=(1.0, 1.0), yaw_deg=5.0, pitch_deg=4.0, roll_deg=4.0, scale=(0.34, 0.37), shift=0.01,
    light_strength=(0.1, 0.3), occluded_share=0.0, blur=(0.1, 0.3),
)  # fmt: skip
PEOPLE = dict(identities=12, people_seed=23)
VALID_SHARE = 0.1  # of the training faces, in sets without a validation split (our choice)
CONTEMPT = ("contempt",)  # FER2013 has no such label


@dataclasses.dataclass(frozen=True, eq=False)
class FaceSet:
    """N faces. `other` is a second, noisier label where the set has one (-1: none)."""

    images: torch.Tensor  # (N, C, S, S) uint8, C = 1 for grey sets
    label: np.ndarray  # (N,) int64, index into classes
    split: np.ndarray  # (N,) 0 train, 1 valid, 2 test
    classes: tuple[str, ...]
    fingerprint: str
    other: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Training, validation or test faces. `given` is what is trained on; `label` stays the truth."""

    images: torch.Tensor
    label: np.ndarray
    given: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def flip(self) -> np.ndarray:
        """Where the given label is wrong, (N,) bool."""
        return self.given != self.label


class Splits(NamedTuple):
    """Training faces, whose labels carry the noise, and the others."""

    training: Split
    valid: Split
    test: Split


# ---- Sets


@functools.lru_cache(maxsize=1)
def load(name: str, rule: str = "majority") -> FaceSet:
    """A FaceSet. MissingData (with the steps to obtain it) when it is not here, UserError for unfit content."""
    if name == "embedded":
        return _embedded_set()
    pack = sets.ensure(name)
    keep, label, other, classes = (_ferplus if name == "ferplus" else _labelled)(name, pack.arrays, rule)
    if not keep.any():
        raise UserError(f"{name}: no face is left under the rule {rule!r}")
    pictures = pack.decode()[torch.from_numpy(keep)]
    if pictures.shape[1] == 3 and all(torch.equal(pictures[:, 0], pictures[:, k]) for k in (1, 2)):
        pictures = pictures[:, :1].contiguous()  # grey: a third of the memory and of the augmentation's work
    split = pack.arrays["split"][keep].astype(np.int64)
    if name != "ferplus":
        split = hold_out(np.where(split == 0, 0, 2))
    other = None if other is None else other[keep]
    return FaceSet(pictures, label[keep], split, classes, pack.meta["fingerprint"], other)


def _ferplus(name, arrays, rule):
    label = expressions.labels(arrays["votes"], rule)
    return label >= 0, label, arrays["fer2013"].astype(np.int64), expressions.EMOTIONS


def _labelled(name, arrays, rule):
    classes = {"rafdb": expressions.RAFDB, "affectnet": expressions.AFFECTNET}[name]
    label = arrays["label"].astype(np.int64)
    if label.min() < 0 or label.max() >= len(classes):
        raise UserError(
            f"{name}: labels {label.min()} to {label.max()}, expected 0 to {len(classes) - 1}; prepare it again"
        )
    if name == "affectnet" and label.max() < len(classes) - 1:
        classes = classes[:-1]  # the variant of seven classes leaves contempt, its last label, out
    return np.ones(len(label), bool), label, None, classes


def hold_out(split: np.ndarray) -> np.ndarray:
    """`split` (0 train, 2 test) with VALID_SHARE of the training faces moved to 1, the same ones for every seed."""
    train = np.flatnonzero(split == 0)
    chosen = torch.randperm(len(train), generator=seeding.generator(2305)).numpy()[: round(VALID_SHARE * len(train))]
    split = split.copy()
    split[train[chosen]] = 1
    return split


def _embedded_set():
    e = EMBEDDED
    n = e["train"] + e["valid"] + e["test"]
    drawn = drawing.generate(n, e["seed"], LOOKS, size=e["size"], grey=True, **PEOPLE)
    label = np.searchsorted(SHOWN, drawn.expression.numpy())
    split = np.repeat((0, 1, 2), (e["train"], e["valid"], e["test"]))
    digest = hashlib.sha256(drawn.images.numpy().tobytes() + label.tobytes()).hexdigest()
    return FaceSet(drawn.images, label, split, tuple(shape.EXPRESSIONS[k] for k in SHOWN), digest)


# ---- Splits


def splits(faces: FaceSet, cfg: Config) -> Splits:
    """The Splits of a set; noise is in the `given` labels of the training faces alone.

    UserError for noise that the set does not have, or that leaves a class without training labels.
    """
    other = faces.other
    if cfg.noise_kind == "fer2013" and other is None:
        raise UserError(f"--noise-kind fer2013: {cfg.data} has no second labels; this noise is FERPlus's")
    train, valid, test = (one_split(faces, k) for k in range(3))
    for name, split in (("training", train), ("validation", valid), ("test", test)):
        if not len(split):
            raise UserError(f"{cfg.data}: holds no {name} faces; obtain the complete set")
    if cfg.noise_kind == "fer2013" and other is not None:
        known = ordered(faces, 0)
        known = known[other[known] >= 0]
        if not len(known):
            raise UserError(
                f"--noise-kind fer2013: {cfg.data} was prepared without fer2013_labels.csv; add the file to its folder "
                "and prepare the set again (data/README.md)"
            )
        train = Split(faces.images[torch.from_numpy(known)], faces.label[known], other[known])
        noise.check_classes(train.given, faces.classes, allowed=CONTEMPT)
        return Splits(train, valid, test)
    given = noise.symmetric(train.label, cfg.noise, len(faces.classes), cfg.seed)
    noise.check_classes(given, faces.classes)
    return Splits(dataclasses.replace(train, given=given), valid, test)


def ordered(faces: FaceSet, split: int) -> np.ndarray:
    """Indices of a split's faces, ordered by class and then as in the set."""
    index = np.flatnonzero(faces.split == split)
    return index[np.argsort(faces.label[index], kind="stable")]


def one_split(faces: FaceSet, number: int) -> Split:
    """The Split of a number of `faces.split`, every label given as it is."""
    index = ordered(faces, number)
    return Split(faces.images[torch.from_numpy(index)], faces.label[index], faces.label[index])


def repeated(test: Split, training: Split) -> np.ndarray:
    """Which faces of a split are byte for byte a face of the training split too, (N,) bool. FER2013 has such copies."""
    flat = [split.images.reshape(len(split), -1).numpy() for split in (test, training)]
    tested, trained = (rows.view(f"V{rows.shape[1]}")[:, 0] for rows in flat)
    return np.isin(tested, trained)


# ---- Batches


@functools.lru_cache(maxsize=4)
def order(n: int, seed: int, epoch: int, net: int) -> torch.Tensor:
    """Shuffled indices (n,) of an epoch; each network has its own."""
    return torch.randperm(n, generator=seeding.generator(seed, 1, epoch, net))


def index(cfg: Config, n: int, step: int) -> torch.Tensor:
    """Indices (M, batch) that each network sees in a step. One order once they weigh for each other."""
    per_epoch = steps_per_epoch(cfg, n)
    epoch, place = divmod(step, per_epoch)
    several = cfg.apart and epoch < cfg.warmup
    orders = [order(n, cfg.seed, epoch, m if several else 0) for m in range(cfg.nets)]
    return torch.stack([o[place * cfg.batch : (place + 1) * cfg.batch] for o in orders])


def steps_per_epoch(cfg: Config, n: int) -> int:
    """Full batches of an epoch. UserError when the set is smaller than one batch."""
    if n < cfg.batch:
        raise UserError(f"--batch {cfg.batch}: only {n} training faces; take a smaller batch")
    return n // cfg.batch


def views(pictures: torch.Tensor, cfg: Config, index: torch.Tensor, step: int, share: slice) -> list[torch.Tensor]:
    """Augmented pixels of this process's share of a step for each network: a list of (b, C, input_px, input_px)."""
    made: list[torch.Tensor] = []
    for m in range(cfg.nets):
        if m and not cfg.apart:  # the released code: both networks see the same pixels
            made.append(made[0])
            continue
        batch = pictures[index[m].to(pictures.device)]
        made.append(augment(batch, cfg, seeding.generator(cfg.seed, 2, step, m))[share])
    return made


def augment(pictures: torch.Tensor, cfg: Config, gen: torch.Generator) -> torch.Tensor:
    """uint8 faces (B, C, S, S) as augmented float pixels 0..255 (B, C, input_px, input_px)."""
    n, side, device = len(pictures), pictures.shape[-1], pictures.device
    flip = torch.rand(n, generator=gen) < 0.5
    if cfg.augment == "flip":
        return plain(torch.where(flip.view(-1, 1, 1, 1).to(device), pictures.flip(3), pictures), cfg)
    if cfg.augment == "paper":
        # Half are mirrored, one in five moves by up to 32 of 224 pixels (we repeat edges, the code pads with black).
        moved = (torch.rand(n, 1, generator=gen) < 0.2) * images.uniform(-1.0, 1.0, (n, 2), gen) * side * 32 / 224
        where = images.similarity(
            (side - 1) / 2 + moved, torch.full((n,), float(side)), torch.zeros(n), flip, cfg.input_px
        )
        return erase_area(images.crop(pictures, where.to(device), cfg.input_px), gen)
    centre = (side - 1) / 2 + images.uniform(-0.08 * side, 0.08 * side, (n, 2), gen)
    extent = side * images.uniform(0.82, 1.12, (n,), gen)
    angle = images.uniform(-0.26, 0.26, (n,), gen)  # +-15 degrees
    where = images.similarity(centre, extent, angle, flip, cfg.input_px).to(device)
    x = images.colour_jitter(images.crop(pictures, where, cfg.input_px), gen, 0.12, 0.25, 0.25, 0.1)
    return images.erase(x, gen, 0.5, 0.15, 0.45)


def erase_area(
    x: torch.Tensor,
    gen: torch.Generator,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.25),
    ratio: float = 3.3,
) -> torch.Tensor:
    """RandomErasing as in the released code: a rectangle of a random area and shape; filled with mid-grey here."""
    n, _, height, width = x.shape
    size = images.uniform(*area, (n,), gen) * height * width
    aspect = torch.exp(images.uniform(-1.0, 1.0, (n,), gen) * float(np.log(ratio)))
    tall, wide = (size * aspect).sqrt().clamp(max=height), (size / aspect).sqrt().clamp(max=width)
    top, left = torch.rand(2, n, generator=gen) * torch.stack([height - tall, width - wide])
    y, across = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    erased = torch.rand(n, generator=gen) < probability
    top, left, bottom, right, erased = (v.view(-1, 1, 1) for v in (top, left, top + tall, left + wide, erased))
    inside = erased & (y >= top) & (y < bottom) & (across >= left) & (across < right)
    return torch.where(inside.unsqueeze(1).to(x.device), 120.0, x)


def plain(pictures: torch.Tensor, cfg: Config, scale: float = 1.0) -> torch.Tensor:
    """uint8 faces, or their central `scale` of width and height, as float pixels of the network's size: test views."""
    n, side = pictures.shape[0], pictures.shape[-1]
    if side == cfg.input_px and scale == 1:
        return pictures.float()
    middle, extent, still = torch.full((n, 2), (side - 1) / 2), torch.full((n,), scale * side), torch.zeros(n)
    where = images.similarity(middle, extent, still, still.bool(), cfg.input_px)
    return images.crop(pictures, where.to(pictures.device), cfg.input_px)
