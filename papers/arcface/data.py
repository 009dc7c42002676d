"""What is trained on and what is tested: the embedded people, LFW's views, and large sets read from disk."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from facepapers.common import seeding
from facepapers.common.cli import MissingData, UserError
from facepapers.common.data import characters, registry, sets
from facepapers.common.data.readers.recognition import say_fit
from facepapers.common.faces import people
from facepapers.common.protocols import pair_lists
from facepapers.common.vision import images
from facepapers.common.vision.images import resize
from facepapers.papers.arcface import readers
from facepapers.papers.arcface.config import Config

# Pictures of `people` persons train, pictures of `test_people` others test. Synthetic: see common/faces/drawing.py.
EMBEDDED = dict(people=60, train=1200, test_people=60, test=480, size=48, pairs=800, seed=1801)
BINS = ("lfw", "cfp_fp", "agedb_30")  # Table 2's verification sets
# An augmentation's largest shift in sides, its scales from and to, its largest turn in radians.
MOVED = {"light": (0.03, 0.93, 1.05, 0.09), "strong": (0.06, 0.85, 1.1, 0.17), "glyph": (0.08, 0.86, 1.14, 0.21)}


@dataclasses.dataclass(frozen=True, eq=False)
class FaceSet:
    """N aligned faces in memory. A list of pairs has rows (left, right, same, fold)."""

    images: torch.Tensor  # (N, 3, S, S) uint8 RGB
    identity: np.ndarray  # (N,)
    split: np.ndarray  # (N,) 0 train, 1 test (LFW: View 1)
    people_set: np.ndarray  # (N,) 0..9 (LFW: View 2), 255 where there is none
    pairs: dict[str, np.ndarray]  # name -> (P, 4) int
    fingerprint: str
    characters: bool = False  # drawn characters: a mirror image is another one, and each is searched among the others


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What one network learns from: `images` in memory, or a map-style `dataset` of (uint8 image, label)."""

    labels: np.ndarray  # (N,) 0..classes - 1
    classes: int
    images: torch.Tensor | None = None
    dataset: torch.utils.data.Dataset | None = None
    wrong: np.ndarray | None = None  # (N,) bool: labels that were replaced on purpose

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, keep: np.ndarray) -> "Training":
        """The same faces without those where `keep` (N,) is false, and the people left renumbered.

        UserError when nobody is left.
        """
        index = np.flatnonzero(keep)
        if not len(index):
            raise UserError("no training face is left; lower --min-images, or train longer before cleaning")
        labels = np.unique(self.labels[index], return_inverse=True)[1]
        images = None if self.images is None else self.images[torch.from_numpy(index)]
        dataset = None if self.dataset is None else Relabelled(self.dataset, index, labels)
        return Training(labels, int(labels.max()) + 1, images, dataset)

    def given(self, labels: np.ndarray, wrong: np.ndarray) -> "Training":
        """The same faces with other labels (N,), `wrong` (N,) where these were replaced."""
        dataset = None if self.dataset is None else Relabelled(self.dataset, np.arange(len(self)), labels)
        return dataclasses.replace(self, labels=labels, wrong=wrong, dataset=dataset)


class Relabelled(torch.utils.data.Dataset):
    """Images `index` (N,) of a map-style dataset with `labels` (N,) in place of its own."""

    def __init__(self, dataset: torch.utils.data.Dataset, index: np.ndarray, labels: np.ndarray) -> None:
        self.dataset, self.index, self.labels = dataset, index, labels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return self.dataset[int(self.index[k])][0], int(self.labels[k])


@dataclasses.dataclass(frozen=True, eq=False)
class Test:
    """A verification set: pairs of `images`, rows (left, right, same, fold), and the people where known.

    Of `characters` no mirror image is added, and each image is also a query against all others.
    """

    name: str  # of the metrics; empty for the main set
    images: torch.Tensor  # (N, 3, S, S) uint8
    pairs: np.ndarray  # (P, 4)
    identity: np.ndarray | None = None
    characters: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One network's training and tests; View 2 has ten."""

    name: str
    training: Training
    tests: list[Test]


# ------------------------------------------------------------------------------------------------ sets in memory


@functools.lru_cache(maxsize=1)
def load(name: str, held_out: bool = False) -> FaceSet:
    """A FaceSet: embedded, lfw, omniglot. MissingData (with the steps to obtain it) when it is not on this machine.

    `held_out`: of omniglot the training part alone, a fifth of its alphabets as the test.
    """
    if name == "embedded":
        return _embedded_set()
    if name == "omniglot":
        found = characters.load(held_out)
        none, pairs = np.full(len(found.split), 255, np.uint8), {"pairs_devtest": found.pairs}
        return FaceSet(found.images, found.label, found.split, none, pairs, found.fingerprint, characters=True)
    pack = sets.ensure(name)
    pairs = {key: value for key, value in pack.arrays.items() if key.startswith("pairs")}
    if "identity" not in pack.arrays or not pairs:
        raise UserError(
            f"{name}: no set of aligned faces with pairs; this paper reads embedded, lfw, omniglot, casia, ms1mv2"
        )
    identity, split, people_set = (pack.arrays[key] for key in ("identity", "split", "people_set"))
    return FaceSet(pack.decode(), identity, split, people_set, pairs, pack.meta["fingerprint"])


def _embedded_set():
    drawn = people.draw(**EMBEDDED)
    none = np.full(len(drawn.split), 255, np.uint8)
    return FaceSet(drawn.images, drawn.identity, drawn.split, none, {"pairs_devtest": drawn.pairs}, drawn.fingerprint)


# ------------------------------------------------------------------------------------------------ tasks


def tasks(cfg: Config, source: Path | None = None) -> tuple[list[Task], dict[str, str]]:
    """(list of Task, description for the record) of a configuration. `source`: folder of a set read in place."""
    if cfg.protocol == "bins":
        training, fingerprint = large_training(cfg, source)
        return [Task("", training, bin_tests(folder_of(cfg.data, source)))], {"fingerprint": fingerprint}
    alphabets = cfg.data == "omniglot" and cfg.protocol == "tune"  # are held out, rather than people
    faces = load(cfg.data, held_out=alphabets)
    if cfg.protocol == "pairs":
        raise UserError("protocol pairs tests people that training would see; use view1 or view2")
    if cfg.protocol == "view2":
        if "pairs" not in faces.pairs:
            raise UserError(f"{cfg.data}: has no View 2; --protocol view2 needs lfw")
        made = [view2_task(cfg, faces, k) for k in range(10)]
    else:
        made = [view1_task(cfg, faces, held_out=cfg.protocol == "tune" and not alphabets)]
    return made, {"fingerprint": faces.fingerprint}


def view1_task(cfg: Config, faces: FaceSet, held_out: bool = False) -> Task:
    """Train on the people of split 0, test on the others' pairs. `held_out` takes a fifth of split 0 for the test."""
    train = faces.split == 0
    pairs, test = faces.pairs["pairs_devtest"], ~train
    if held_out:  # tuning must not see the test people
        test, pairs = pair_lists.hold_out(faces.identity, train)
        train = train & ~test
    return Task("", training_of(cfg, faces, train), [test_of(faces, pairs, test)])


def view2_task(cfg: Config, faces: FaceSet, fold: int) -> Task:
    """Train on the people of nine sets, test on the tenth's 600 pairs."""
    pairs = faces.pairs["pairs"]
    test = faces.people_set == fold
    return Task(f"fold{fold}", training_of(cfg, faces, ~test), [test_of(faces, pairs[pairs[:, 3] == fold], test)])


def training_of(cfg: Config, faces: FaceSet, chosen: np.ndarray) -> Training:
    """Training faces where `chosen` (N,), as the settings want them."""
    labels = np.unique(faces.identity[chosen], return_inverse=True)[1]
    return as_wanted(cfg, Training(labels, int(labels.max()) + 1, faces.images[torch.from_numpy(chosen)]))


def as_wanted(cfg: Config, training: Training) -> Training:
    """A Training without people who have fewer than cfg.min_images, and with cfg.noise."""
    if cfg.min_images > 1:
        enough = np.bincount(training.labels)[training.labels] >= cfg.min_images
        if not enough.any():
            raise UserError(f"--min-images {cfg.min_images}: nobody in {cfg.data} has that many images")
        training = training.only(enough)
    return with_noise(training, cfg.noise, cfg.seed) if cfg.noise else training


def with_noise(training: Training, share: float, seed: int) -> Training:
    """Replace the labels of a random `share` of the faces by another person's, each with equal chance."""
    gen, n = seeding.generator(seed, 7), len(training)
    wrong = np.zeros(n, bool)
    wrong[torch.randperm(n, generator=gen)[: round(share * n)].numpy()] = True
    step = torch.randint(1, training.classes, (n,), generator=gen).numpy()
    labels = np.where(wrong, (training.labels + step) % training.classes, training.labels)
    return training.given(labels, wrong)


def test_of(faces: FaceSet, pairs: np.ndarray, chosen: np.ndarray) -> Test:
    """The Test on `pairs`, holding the faces where `chosen` (N,) is true and no others."""
    place = np.cumsum(chosen) - 1
    moved = np.column_stack([place[pairs[:, 0]], place[pairs[:, 1]], pairs[:, 2:]])
    return Test("", faces.images[torch.from_numpy(chosen)], moved, faces.identity[chosen], faces.characters)


# ------------------------------------------------------------------------------------------------ large sets


def folder_of(name: str, source: Path | None = None) -> Path:
    """Folder of a set that is read in place. MissingData when it is absent."""
    folder = Path(source) if source else Path(os.environ.get("DATA_ROOT") or registry.REPOSITORY_DATA) / name
    if not folder.is_dir():
        raise MissingData(f"{folder}: no such folder; name the one that holds {name} by --source FOLDER")
    return folder


def large_training(cfg: Config, source: Path | None) -> tuple[Training, str]:
    """(Training, fingerprint) from RecordIO (train.rec, train.idx, property) or from <identity>/<image> folders."""
    folder = folder_of(cfg.data, source)
    dataset: readers.RecordIO | readers.FolderSet
    if (folder / "train.rec").exists() or (folder / "property").exists():
        dataset = readers.RecordIO(folder)
        what = f"{(folder / 'train.rec').stat().st_size} bytes of RecordIO"
        needed = cfg.images_per_person or cfg.min_images > 1 or cfg.noise or cfg.row in ("subcenter", "cleaned")
        labels = dataset.labels() if needed else np.zeros(len(dataset), int)  # reads every record; else only counted
    else:
        dataset = readers.FolderSet(folder)
        labels, what = dataset.labels, "identity folders"
    say_fit(folder, len(dataset), lambda k: dataset[k][0])
    return as_wanted(cfg, Training(labels, dataset.classes, dataset=dataset)), f"{what}, {len(dataset)} images"


def bin_tests(folder: Path) -> list[Test]:
    """A Test for each of Table 2's sets whose .bin lies in the folder; LFW's comes first. UserError if none does."""
    found = [name for name in BINS if (folder / f"{name}.bin").exists()]
    if not found:
        raise UserError(f"{folder}: holds none of {', '.join(f'{name}.bin' for name in BINS)} to test on; add one")
    return [bin_test(folder / f"{name}.bin", "" if name == "lfw" else name) for name in found]


def bin_test(path: Path, name: str = "") -> Test:
    """The Test of a .bin file, with ten folds as `pair_lists.folds_of` has them."""
    pictures, same = readers.read_bin(path)
    say_fit(path, len(pictures), lambda k: pictures[k])
    left = 2 * np.arange(len(same))
    return Test(name, pictures, np.stack([left, left + 1, same, pair_lists.folds_of(same, path)], 1))


def folder_test(folder: Path, pairs_file: Path) -> Test:
    """The Test of a tree <identity>/<image> (see readers.FolderSet) and a list of pairs in LFW's format."""
    dataset, pairs = readers.FolderSet(folder), pair_lists.read_pairs(pairs_file)
    named = [Path(name).with_suffix(".jpg").as_posix() for name in dataset.names]  # as the lists name any kind of image
    left, right = pair_lists.index_pairs(pairs, named, pairs_file)
    used, moved = np.unique([left, right], return_inverse=True)
    pictures = torch.stack([dataset[int(k)][0] for k in used])
    say_fit(folder, len(pictures), lambda k: pictures[k])
    left, right = moved.reshape(2, -1)
    return Test("", pictures, np.stack([left, right, pairs.same, pairs.fold], 1))


# ------------------------------------------------------------------------------------------------ batches


def batches(
    training: Training, cfg: Config, first: int, share: slice, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (uint8 images (b, 3, S, S), labels (b,)) of this process's `share` of steps first, first + 1, ...

    For augmentations but "flip" the whole batch comes, since its random numbers belong to whole batches.
    """
    whole = share if cfg.augment == "flip" else slice(0, cfg.batch)
    pick = picker(training, cfg)
    if training.images is not None:
        pictures, labels = training.images.to(device), torch.from_numpy(training.labels).to(device)
        for step in range(first, cfg.steps):
            index = pick(step)[whole].to(device)
            yield pictures[index], labels[index]
        return
    assert training.dataset is not None  # one of the two is there
    loader = torch.utils.data.DataLoader(
        training.dataset, batch_sampler=_Plan(pick, whole, first, cfg.steps), num_workers=cfg.workers,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    for pictures, labels in loader:
        yield pictures.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _Plan:
    """The image numbers of each step, for a DataLoader."""

    def __init__(self, pick, part, first, steps):
        self.pick, self.part, self.first, self.steps = pick, part, first, steps

    def __len__(self):
        return self.steps - self.first

    def __iter__(self):
        return (self.pick(step)[self.part].tolist() for step in range(self.first, self.steps))


def picker(training: Training, cfg: Config) -> Callable[[int], torch.Tensor]:
    """A function step -> indices (batch,): shuffled passes one after another, or people with several images each."""
    if cfg.images_per_person:
        order, start, count = _by_person(training.labels)
        return functools.partial(people_batch, order, start, count, cfg)
    return seeding.shuffled(len(training), cfg.batch, cfg.seed)


def _by_person(labels):
    """(images sorted by person (N,), first (C,) and number (C,) of each person's)."""
    order = np.argsort(labels, kind="stable")
    count = np.bincount(labels)
    return torch.from_numpy(order), torch.from_numpy(np.cumsum(count) - count), torch.from_numpy(count)


def people_batch(order: torch.Tensor, start: torch.Tensor, count: torch.Tensor, cfg: Config, step: int) -> torch.Tensor:
    """Indices (batch,) of batch / K random people with K of their images each; fewer images are repeated."""
    gen, k = seeding.generator(cfg.seed, 1, step), cfg.images_per_person
    able = (count >= 2).nonzero().flatten()
    if len(able) < cfg.batch // k:
        raise UserError(f"--batch {cfg.batch}: only {len(able)} people have two images, {cfg.batch // k} are needed")
    people = able[torch.randperm(len(able), generator=gen)[: cfg.batch // k]]
    base = (torch.rand(len(people), generator=gen) * count[people]).long()
    place = (base.unsqueeze(1) + torch.arange(k)) % count[people].unsqueeze(1)
    return order[(start[people].unsqueeze(1) + place).flatten()]


def augment(pictures: torch.Tensor, cfg: Config, step: int, share: slice) -> torch.Tensor:
    """Network input pixels 0..255 (b, 3, input_px, input_px) float of this process's share of a batch.

    "flip" mirrors half of the faces. "light" also shifts, turns, scales and colours them a little; "strong" does so
    more, and adds low resolution, blur and covered rectangles. "glyph" shifts, turns and scales, and mirrors nothing.
    Amounts are our choice.
    """
    gen = seeding.generator(cfg.seed, 2, step)
    flip = torch.rand(cfg.batch, generator=gen) < (0.0 if cfg.augment == "glyph" else 0.5)
    if cfg.augment == "flip":
        return resize(pictures, cfg.input_px, flip[share])
    n, side, device = len(pictures), pictures.shape[-1], pictures.device
    shift, low, high, turn = MOVED[cfg.augment]
    centre = (side - 1) / 2 + images.uniform(-shift * side, shift * side, (n, 2), gen, device)
    extent = side * images.uniform(low, high, (n,), gen, device)
    angle = images.uniform(-turn, turn, (n,), gen, device)  # radians
    where = images.similarity(centre, extent, angle, flip.to(device), cfg.input_px)
    x = images.crop(pictures, where, cfg.input_px)
    if cfg.augment == "glyph":
        return x[share]
    if cfg.augment == "light":
        return images.colour_jitter(x, gen, 0.1, 0.2, 0.2, 0.0)[share]
    x = images.colour_jitter(coarse(x, gen), gen, 0.15, 0.3, 0.3, 0.15)
    x = images.blur(x, gen, 0.2, 1.5)
    return images.erase(x, gen, 0.4, 0.1, 0.4)[share]


def coarse(x: torch.Tensor, gen: torch.Generator, probability: float = 0.2) -> torch.Tensor:
    """Reduce and enlarge some faces (B, 3, S, S); one factor of 0.3 to 0.7 for the whole batch keeps it batched."""
    some = images.uniform(0, 1, (len(x), 1, 1, 1), gen, x.device) < probability
    small = int(x.shape[-1] * (0.3 + 0.4 * torch.rand((), generator=gen).item()))
    blocks = torch.nn.functional.interpolate(x, size=small, mode="area")
    return torch.where(some, torch.nn.functional.interpolate(blocks, size=x.shape[-1], mode="bilinear"), x)
