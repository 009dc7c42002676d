"""Faces with attribute labels: UTKFace, FERPlus, FairFace, RAF-DB, CelebA, the embedded faces, and fixed splits.

A set is one `Dataset`; a run joins several, and an attribute that one of them does not label is missing there (-1).
Every face is brought to the trunk's frame: ArcFace's five-point template at input_px. UTKFace and FERPlus come as crops
without points but in one position, so each set has one fixed similarity: MTCNN's median points on 300 of its faces
(FRAMES).
    python -m facepapers.papers.face_attributes.data utkface       rewrites the committed split of a set without one
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from facepapers.common import cli, seeding, storage
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import duplicates, sets
from facepapers.common.faces import drawing, sampling, shape
from facepapers.common.vision import alignment, images
from facepapers.common.vision.alignment import FRAMES
from facepapers.papers.face_attributes.config import Config

SPLITS = Path(__file__).parent / "splits"
OLDEST = 100  # years; the last class holds everybody older
# FairFace's nine age groups, used for every set: lower ends in years.
AGE_EDGES = (0, 3, 10, 20, 30, 40, 50, 60, 70)
AGE_CLASSES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
GENDER = ("male", "female")
ETHNICITY = ("White", "Black", "Asian", "Indian", "Other")
FAIRFACE_ETHNICITY = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
# Synthetic faces; see faces/drawing.py. `group` of the renderer stands for no population and is called ethnicity here
# only so that the demo runs the same code. People of the trunk vary in age from picture to picture, as on photographs
# of years; the attribute faces are all different people.
EMBEDDED = dict(train=2400, val=400, test=800, size=48, people=80, trunk_train=2400, identity_test=320, seed=1609)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """What is predicted. With `years` the scores are 0..OLDEST years, of which `classes` are the AGE_EDGES."""

    name: str
    classes: tuple[str, ...]
    years: bool = False

    @property
    def scores(self) -> int:
        return OLDEST + 1 if self.years else len(self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One set: N uint8 faces, labels per attribute (years for age where known; -1 missing), and split numbers."""

    name: str
    images: torch.Tensor  # (N, C, S, S) uint8
    labels: dict[str, torch.Tensor]  # (N,) int64
    split: np.ndarray  # (N,) 0 train, 1 validation, 2 test
    attributes: dict[str, Attribute]
    frame: torch.Tensor  # (2, 3), pixels of the 112 px template to pixels of `images`
    fingerprint: str

    def index(self, split: str) -> torch.Tensor:
        """Indices (n,) of "train", "val" or "test" that carry at least one label."""
        some = np.any([label.numpy() >= 0 for label in self.labels.values()], axis=0)
        return torch.from_numpy(np.flatnonzero((self.split == ("train", "val", "test").index(split)) & some))


# ---- Sets


@functools.lru_cache(maxsize=1)
def load(name: str) -> list[Dataset]:
    """List of the Parts of "a+b". MissingData (with the steps to obtain it) when one is not on this machine.

    Raises UserError for an attribute that two sets label by different classes, or that has one class in training.
    """
    datasets = [_dataset(each) for each in name.split("+")]
    attributes_of(datasets)
    return datasets


def attributes_of(datasets: list[Dataset]) -> dict[str, Attribute]:
    """name -> Attribute over all sets, in the order age, gender, ethnicity, emotion, others."""
    found: dict[str, Attribute] = {}
    for dataset in datasets:
        for key, attribute in dataset.attributes.items():
            if found.setdefault(key, attribute) != attribute:
                raise UserError(f"--data: two sets name other classes of {key}; leave one of them out")
    order = ("age", "gender", "ethnicity", "emotion")
    for key, attribute in found.items():
        shown = torch.cat([p.labels[key][p.index("train")] for p in datasets if key in p.labels])
        if len(shown[shown >= 0].unique()) < 2:
            raise UserError(f"{attribute.name}: the training faces show one class only, so there is nothing to learn; "
                            "use a set with at least two")  # fmt: skip
    return {k: found[k] for k in sorted(found, key=lambda k: order.index(k) if k in order else len(order))}


def _dataset(name):
    if name == "embedded":
        return embedded_dataset()
    if name not in READERS:
        raise UserError(f"--data {name}: no set with attributes; known are embedded, {', '.join(READERS)}, joined by +")
    pack = sets.ensure(name)
    return READERS[name](name, pack)


def _made(name, pack, labels, split, attributes, **decode):
    pictures = pack.decode(**decode)
    labels = {key: torch.as_tensor(np.asarray(value).astype(np.int64)) for key, value in labels.items()}
    frame = frame_of(name, pictures.shape[-1])
    known = {a.name: a for a in attributes}
    return Dataset(name, pictures, labels, np.asarray(split), known, frame, pack.meta["fingerprint"])


def _utkface(name, pack):
    a = pack.arrays
    labels = {key: a[key] for key in ("age", "gender", "ethnicity")}
    attributes = Attribute("age", AGE_CLASSES, True), Attribute("gender", GENDER), Attribute("ethnicity", ETHNICITY)
    return _made(name, pack, labels, stored_split(name, a["name"]), attributes)


def _ferplus(name, pack):
    from facepapers.common.data.expressions import EMOTIONS
    from facepapers.common.data.expressions import labels as vote

    a = pack.arrays
    emotion = np.asarray(vote(a["votes"], "majority"))  # Microsoft's rule; the others are left out
    split = np.asarray(a["split"]).astype(np.uint8)
    split = without_doubles(name, a["name"], split)
    return _made(name, pack, {"emotion": emotion}, split, [Attribute("emotion", tuple(EMOTIONS))], channels=1)


def _fairface(name, pack):
    """Official training part, a tenth of it held out; its validation part is our test, as everybody's."""
    a = pack.arrays
    attributes = (
        Attribute("age", AGE_CLASSES),
        Attribute("gender", GENDER),
        Attribute("ethnicity", FAIRFACE_ETHNICITY),
    )
    labels = {key: a[key] for key in ("age", "gender", "ethnicity")}
    return _made(name, pack, labels, held_out(a["name"], np.asarray(a["split"]) > 0), attributes, size=128)


def _rafdb(name, pack):
    a = pack.arrays
    emotions = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    split = held_out(a["name"], np.asarray(a["split"]) > 0)
    return _made(name, pack, {"emotion": a["label"]}, split, [Attribute("emotion", emotions)])


CELEBA = {"gender": (20, ("female", "male")), "smiling": (31, ("no", "yes")), "hat": (35, ("no", "yes")),
          "young": (39, ("no", "yes"))}  # fmt: skip


def _celeba(name, pack):
    """Four of the forty attributes, by their place in list_attr_celeba.txt. Official split, disjoint in people."""
    a = pack.arrays
    labels = {key: a["attributes"][:, place] for key, (place, _) in CELEBA.items()}
    attributes = [Attribute(key, classes) for key, (_, classes) in CELEBA.items()]
    return _made(name, pack, labels, a["split"], attributes, size=128)


READERS = {"utkface": _utkface, "ferplus": _ferplus, "fairface": _fairface, "rafdb": _rafdb, "celeba": _celeba}


def frame_of(name: str, side: int) -> torch.Tensor:
    """(2, 3) map from template pixels (112) to pixels of a set's crops of `side` px; the whole crop without points."""
    if name not in FRAMES:
        scale = side / 112
        return torch.tensor([[scale, 0.0, scale / 2 - 0.5], [0.0, scale, scale / 2 - 0.5]])
    points = np.array(FRAMES[name]) * side - 0.5
    return torch.tensor(alignment.similarity_transform(alignment.TEMPLATE_112[None], points)[0], dtype=torch.float32)


# ---- Embedded faces


@functools.lru_cache(maxsize=1)
def embedded_dataset() -> Dataset:
    """Faces of different synthetic people, aligned by their exact points, with all four labels."""
    e = EMBEDDED
    counts = [e["train"], e["val"], e["test"]]
    drawn = drawing.generate(sum(counts), e["seed"], size=e["size"])
    crops = alignment.align(drawn.images, drawn.five.numpy(), e["size"])
    labels = {"age": drawn.age_years.round().long(), "gender": drawn.gender, "ethnicity": drawn.group,
              "emotion": drawn.expression}  # fmt: skip
    attributes = (
        Attribute("age", AGE_CLASSES, True), Attribute("gender", ("0", "1")),
        Attribute("ethnicity", tuple("01234")), Attribute("emotion", tuple(shape.EXPRESSIONS)),
    )  # fmt: skip
    fingerprint = hashlib.sha256(crops.numpy().tobytes()).hexdigest()
    split, known = np.repeat([0, 1, 2], counts), {a.name: a for a in attributes}
    return Dataset("embedded", crops, labels, split, known, frame_of("embedded", e["size"]), fingerprint)


def embedded_people(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(aligned faces (N, 3, S, S), identity (N,)) of synthetic people: "train" for the trunk, or others for "test"."""
    e = EMBEDDED
    n, seed = (e["trunk_train"], 1) if split == "train" else (e["identity_test"], 2)
    factors = sampling.sample_factors(n, e["seed"] + seed, identities=e["people"], people_seed=e["seed"] + 10 * seed)
    years = images.uniform(6.0, 80.0, (n,), seeding.generator(e["seed"], seed))
    drawn = drawing.render(dataclasses.replace(factors, age_years=years), size=e["size"])
    return alignment.align(drawn.images, drawn.five.numpy(), e["size"]), drawn.identity_label


# ---- Splits


def hashes(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """(N,) uint64: the first eight bytes of the sha256 of each file name."""
    return np.array([int.from_bytes(hashlib.sha256(str(n).encode()).digest()[:8], "big") for n in names], np.uint64)


def held_out(names: Sequence[str], test: np.ndarray) -> np.ndarray:
    """Split numbers with a tenth of what is not `test` (N,) held out for validation, by the hash of its file name."""
    return np.where(test, 2, np.where(hashes(names) % np.uint64(10) == 0, 1, 0)).astype(np.uint8)


def _stored(name):
    path = SPLITS / f"{name}.npz"
    if not path.exists():
        raise MissingData(
            f"{path}: no such split; restore it from git, or `python -m facepapers.papers.face_attributes.data {name}`"
        )
    return storage.read_arrays(path)


def stored_split(name: str, names: Sequence[str]) -> np.ndarray:
    """Split numbers (N,) from the committed hashes of file names. UserError when the set is another one."""
    stored, own = _stored(name), hashes(names)
    split = np.where(np.isin(own, stored["test"]), 2, np.where(np.isin(own, stored["val"]), 1, 0)).astype(np.uint8)
    absent = len(stored["test"]) + len(stored["val"]) - int((split > 0).sum())
    if absent:
        raise UserError(f"{name}: {absent} of the split's file names are not in this set; obtain the official one")
    return split


def without_doubles(name: str, names: Sequence[str], split: np.ndarray) -> np.ndarray:
    """An official split (N,) without training faces whose near-duplicate is held out (number 3: used nowhere)."""
    doubles = np.isin(hashes(names), _stored(name)["left_out"])
    return np.where(doubles & (split == 0), 3, split).astype(np.uint8)


def new_split(
    names: Sequence[str] | np.ndarray, groups: np.ndarray, val: float = 0.1, test: float = 0.2
) -> dict[str, np.ndarray]:
    """{"val", "test"}: sorted hashes of file names; faces of one group (N,) of near-duplicates stay together.

    Groups are taken in the order of their smallest hash until the shares are full, so the split depends on names alone.
    """
    own = hashes(names)
    first = np.full(groups.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, groups, own)
    order = np.argsort(first[groups], kind="stable")  # whole groups one after another
    begin = np.full(groups.max() + 1, np.inf)
    np.minimum.at(begin, groups[order], np.arange(len(own)) / len(own))
    place = begin[groups]  # a group lies where its first face lies
    return {"test": np.sort(own[place < test]), "val": np.sort(own[(place >= test) & (place < test + val)])}


# ---- Pictures in the trunk's frame

ViewParameters = dict[str, torch.Tensor]  # random numbers of one augmented version of faces


def view_parameters(cfg: Config, count: int, view: int, number: int) -> ViewParameters:
    """Random numbers of augmented version `view` of all `count` faces of set `number`; a function of these alone.

    Returns (count, ...) tensors: centre and side of the crop as shares, angle, mirroring, gain, offset, saturation.
    """
    gen = seeding.generator(1609, cfg.seed if not cfg.views else 0, view, number)

    def spread(amount, *shape):
        return images.uniform(-amount, amount, (count, *shape), gen)

    return {
        "shift": spread(cfg.shift, 2), "log_size": spread(cfg.log_size), "angle": spread(np.radians(cfg.rotation_deg)),
        "flip": torch.rand(count, generator=gen) < 0.5, "gain": 1 + spread(cfg.colour, 1, 1, 1),
        "offset": 128 * spread(cfg.colour, 1, 1, 1), "saturation": 1 + spread(cfg.colour, 1, 1, 1),
    }  # fmt: skip


def pictures(
    dataset: Dataset, index: torch.Tensor, cfg: Config, device: torch.device, parameters: ViewParameters | None = None
) -> torch.Tensor:
    """Faces `index` (b,) of a Dataset as RGB pixels 0..255 (b, 3, px, px), plain or by `parameters` of a view."""
    px, n = cfg.input_px, len(index)
    some = dataset.images[index].to(device).expand(-1, 3, -1, -1)
    size, middle = torch.full((n,), 112.0), torch.full((n, 2), 55.5)
    if parameters is None:
        where = images.similarity(middle, size, torch.zeros(n), torch.zeros(n, dtype=torch.bool), px)
        return images.crop(some, after(dataset.frame, where), px)
    p = {key: value[index] for key, value in parameters.items()}
    where = images.similarity(middle + 112 * p["shift"], size * p["log_size"].exp(), p["angle"], p["flip"], px)
    x = images.crop(some, after(dataset.frame, where), px)
    gain, offset, saturation = (p[key].to(device) for key in ("gain", "offset", "saturation"))
    grey = (x * torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (((grey + (x - grey) * saturation) - 128) * gain + 128 + offset).clamp_(0, 255)


def after(frame: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Affine maps (b, 2, 3): `where` (b, 2, 3) first, then `frame` (2, 3)."""
    linear = frame[:, :2] @ where[:, :, :2]
    offset = frame[:, :2] @ where[:, :, 2:] + frame[:, 2:]
    return torch.cat([linear, offset], 2)


# ---- The command


@dataclasses.dataclass(frozen=True)
class Command:
    """Rewrite a committed split."""

    name: Literal["utkface", "ferplus"]  # the set


def main(argv: Sequence[str]) -> None:
    """Write the split of a set and print its size."""
    name = cli.command(Command, argv, "python -m facepapers.papers.face_attributes.data", __doc__).name
    pack = sets.ensure(name)
    groups = duplicates.groups(pack.decode())
    names, several = pack.arrays["name"], np.bincount(groups)[groups] > 1
    print(f"{name}: {len(names)} faces, {several.sum()} of them in {len(np.unique(groups[several]))} groups")
    made: dict[str, Any]
    if name == "utkface":
        made = new_split(names, groups)
    else:
        held = np.isin(groups, groups[pack.arrays["split"] > 0])
        made = {"left_out": np.sort(hashes(names)[held & (pack.arrays["split"] == 0)])}
    SPLITS.mkdir(exist_ok=True)
    np.savez(SPLITS / f"{name}.npz", **made)
    print("  " + ", ".join(f"{key} {len(value)}" for key, value in made.items()), file=sys.stderr)


if __name__ == "__main__":
    cli.entry(main)
