"""Images, the views of them that teacher and student share, and the batches of a step."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from facepapers.common import seeding, storage
from facepapers.common.cli import UserError
from facepapers.common.data import characters, sets
from facepapers.common.faces import people
from facepapers.common.progress import progress
from facepapers.common.protocols import pair_lists
from facepapers.common.vision import images
from facepapers.papers.hybrid_order_distillation.config import Config
from facepapers.papers.hybrid_order_distillation.degrade import degrade, resize

# Pictures of `people` persons train, pictures of `test_people` others test. Synthetic: see common/faces/drawing.py.
EMBEDDED = dict(people=80, train=2000, test_people=60, test=480, size=48, pairs=800, seed=2020)
# Side that a set's images are decoded to. RKD: squares of 256 px, whatever the photo's shape, then crops of 224.
DECODED_PX = {"cub200": 256, "cars196": 256}
IDENTITY = (0.75, 0.5, 0.5, 0.5, 0.5)  # the five numbers of the view that changes nothing
KNOWN = ("embedded", "lfw", "cifar100", "cub200", "cars196", "omniglot")
VIEWS_SEED = 1129
KEEP_BYTES = 2**30  # of reduced pictures of all views


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """N images in memory with one label each. A list of pairs has rows (left, right, same, fold)."""

    images: torch.Tensor  # (N, 3, S, S) uint8 RGB
    label: np.ndarray  # (N,) person or class
    split: np.ndarray  # (N,) 0 train, 1 test
    pairs: dict[str, np.ndarray]  # name -> (P, 4) int
    fingerprint: str


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What a network learns from: M images; labels 0..classes - 1, or -1 where there is none."""

    images: torch.Tensor  # (M, 3, S, S) uint8
    labels: torch.Tensor  # (M,) long
    classes: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)


# ------------------------------------------------------------------------------------------------ sets


@functools.lru_cache(maxsize=2)
def load(name: str, held_out: bool = False) -> ImageSet:
    """An ImageSet: embedded, lfw, cifar100, cub200, cars196, omniglot. MissingData when it is not on this machine.

    `held_out` (faces): a fifth of the training people is the test, and the test's people are left out. Of Omniglot it
    is a fifth of the training alphabets.
    """
    if name == "omniglot":
        found = characters.load(held_out)
        return ImageSet(found.images, found.label, found.split, {"pairs_devtest": found.pairs}, found.fingerprint)
    if held_out:
        return _held_out(load(name))
    if name == "embedded":
        return _embedded_set()
    pack = sets.ensure(name)
    arrays = pack.arrays
    label = arrays.get("identity", arrays.get("label"))
    if label is None or "split" not in arrays:
        raise UserError(f"{name}: has no labels for this paper, which reads {', '.join(KNOWN)}")
    pairs = {key: value for key, value in arrays.items() if key.startswith("pairs")}
    pictures = pack.decode(DECODED_PX.get(name))
    return ImageSet(pictures, label, arrays["split"], pairs, pack.meta["fingerprint"])


def _embedded_set():
    drawn = people.draw(**EMBEDDED)
    return ImageSet(drawn.images, drawn.identity, drawn.split, {"pairs_devtest": drawn.pairs}, drawn.fingerprint)


def _held_out(whole):
    """The training part of an ImageSet, with a fifth of its people as the test: tuning must not see the test."""
    train = whole.split == 0
    pictures, label = whole.images[torch.from_numpy(train)], whole.label[train]
    test, pairs = pair_lists.hold_out(label, np.ones(len(label), bool))
    return ImageSet(pictures, label, test.astype(np.uint8), {"pairs_devtest": pairs}, whole.fingerprint + "+held_out")


def training_of(cfg: Config, whole: ImageSet) -> Training:
    """The Training of a configuration: split 0, and behind it the unlabelled images of the set `extra`.

    Raises UserError when the images are smaller than the teacher's input, or labels are wanted of unlabelled images.
    """
    train = torch.from_numpy(whole.split == 0)
    pictures, fingerprint = whole.images[train], whole.fingerprint
    labels = np.unique(whole.label[whole.split == 0], return_inverse=True)[1]
    classes = int(labels.max()) + 1
    if cfg.teacher_px > pictures.shape[-1]:
        raise UserError(f"--teacher-px {cfg.teacher_px}: the images of {cfg.data} have {pictures.shape[-1]} px")
    if cfg.extra:
        if cfg.task or cfg.kd:
            raise UserError(f"--extra {cfg.extra}: its images have no labels; use it with orders only")
        more = sets.ensure(cfg.extra)
        pictures = torch.cat([pictures, more.decode(pictures.shape[-1])])
        labels = np.concatenate([labels, np.full(len(more), -1)])
        fingerprint = f"{fingerprint}+{more.meta['fingerprint']}"
    return Training(pictures, torch.from_numpy(labels), classes, fingerprint)


def shared_pairs_excluded(whole: ImageSet) -> np.ndarray:
    """LFW's 6,000 pairs without those in which a person of DevTrain occurs, rows (left, right, same, fold)."""
    pairs = whole.pairs["pairs"]
    return pairs[(whole.split[pairs[:, :2]] == 1).all(1)]


# ------------------------------------------------------------------------------------------------ views


def view_numbers(views: int, count: int) -> torch.Tensor:
    """(views, count, 5) uniform numbers that fix the views of all images; view 0 changes nothing."""
    numbers = torch.rand(views, count, 5, generator=seeding.generator(VIEWS_SEED, count))
    numbers[0] = torch.tensor(IDENTITY)
    return numbers


def augmented(pictures: torch.Tensor, numbers: torch.Tensor, kind: str, size: int) -> torch.Tensor:
    """uint8 views (B, 3, size, size) of uint8 pictures (B, 3, S, S); numbers (B, 5) in [0, 1).

    The five are mirror, x, y, scale, turn. "face": mirror, shift by up to 4 % of the side, scale 0.93 to 1.07, turn by
    up to 6 degrees (amounts: our choice). "glyph": twice as much of it, without the mirror, which would be another
    character. "pad4": mirror and shift by up to 4 px over black (RepDistiller). "crop": mirror and a random crop of
    `size` (RKD).
    """
    numbers = numbers.cpu()
    flip, n, side = numbers[:, 0] < 0.5, len(pictures), pictures.shape[-1]
    if kind in ("face", "glyph"):
        spread = 2 * numbers[:, 1:] - 1
        if kind == "glyph":
            spread, flip = 2 * spread, torch.zeros_like(flip)
        centre = (side - 1) / 2 + 0.04 * side * spread[:, :2]
        where = images.similarity(centre, side * (1 + 0.07 * spread[:, 2]), 0.105 * spread[:, 3], flip, size)
        return images.crop(pictures, where.to(pictures.device), size).round().clamp_(0, 255).to(torch.uint8)
    if kind == "pad4":
        pictures = F.pad(pictures, (4, 4, 4, 4))
    room = pictures.shape[-1] - size + 1
    if room < 1:
        raise UserError(f"crops of {size} px from images of {side} px; lower --teacher-px")
    corner = (numbers[:, 1:3] * room).long()
    steps = torch.arange(size)
    columns = torch.where(flip.view(-1, 1), steps.flip(0), steps) + corner[:, :1]
    rows = steps + corner[:, 1:]
    picked = pictures.permute(0, 2, 3, 1)[torch.arange(n).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.permute(0, 3, 1, 2).contiguous()


def plain(pictures: torch.Tensor, cfg: Config) -> torch.Tensor:
    """The view of the test: unchanged, the middle crop, or the whole picture; uint8 (B, 3, teacher_px, teacher_px)."""
    if cfg.augment in ("face", "glyph") and pictures.shape[-1] != cfg.teacher_px:
        return resize(pictures, cfg.teacher_px)
    if pictures.shape[-1] == cfg.teacher_px:
        return pictures
    return augmented(pictures, torch.tensor(IDENTITY).expand(len(pictures), 5), "crop", cfg.teacher_px)


# ------------------------------------------------------------------------------------------------ batches


class Batch(NamedTuple):
    """A step's share of samples."""

    index: torch.Tensor  # type: ignore[assignment]  # (b,) rows of the training images; hides tuple.index
    view: torch.Tensor  # (b,) which of the fixed views; zeros with fresh ones
    seen: torch.Tensor  # (b, 3, P, P) uint8, what the student sees
    high: torch.Tensor | None  # (b, 3, T, T) uint8, what the teacher sees; None when nobody needs it
    labels: torch.Tensor  # (b,)


class Feed:
    """Batches of one stage: the student sees `resolution` px enlarged to `px`; views are fixed (cfg.views) or fresh."""

    def __init__(self, training: Training, cfg: Config, resolution: int, px: int, steps: int, device: torch.device):
        self.training, self.cfg, self.resolution, self.px, self.device = training, cfg, resolution, px, device
        self.pick = picker(training.labels.numpy(), cfg)
        self.numbers = view_numbers(cfg.views, len(training)) if cfg.views else None
        pictures, side = cfg.views * len(training), min(resolution, px)
        worth = steps * cfg.batch > pictures and side < cfg.teacher_px and 3 * side**2 * pictures <= KEEP_BYTES
        self.small = self._reduced(side) if cfg.views and worth else None

    def _reduced(self, r):
        """(views, N, 3, r, r) uint8: reduced pictures are small enough to keep, which saves work in each step."""
        count = len(self.training)
        kept = torch.empty(self.cfg.views, count, 3, r, r, dtype=torch.uint8)
        for v in range(self.cfg.views):
            for part in progress(torch.arange(count).split(256), f"view {v}", "batches"):
                kept[v, part] = resize(self._high(part, self.numbers[v, part]).cpu(), r, self.cfg.operator)
        return kept

    def _high(self, index, numbers):
        pictures = self.training.images[index].to(self.device)
        return augmented(pictures, numbers, self.cfg.augment, self.cfg.teacher_px)

    def batch(self, step: int, share: slice, high: bool = True) -> Batch:
        """The Batch of a step. `high`: whether the teacher's picture is needed too."""
        cfg, gen = self.cfg, seeding.generator(self.cfg.seed, 2, step)
        index = self.pick(step)
        view = torch.randint(max(1, cfg.views), (cfg.batch,), generator=gen)
        numbers = self.numbers[view, index] if self.numbers is not None else torch.rand(cfg.batch, 5, generator=gen)
        index, view, numbers = index[share], view[share], numbers[share]
        labels = self.training.labels[index].to(self.device)
        if self.small is not None and not high:
            seen = resize(self.small[view, index].to(self.device), self.px, cfg.operator)
            return Batch(index, view, seen, None, labels)
        pictures = self._high(index, numbers)
        seen = degrade(pictures, self.resolution, self.px, cfg.operator)
        return Batch(index, view, seen, pictures, labels)


def picker(labels: np.ndarray, cfg: Config) -> Callable[[int], torch.Tensor]:
    """A function step -> indices (batch,): shuffled passes one after another, or classes with several images each."""
    n = len(labels)
    if n < cfg.batch:
        raise UserError(f"--batch {cfg.batch}: {cfg.data} has only {n} training images")
    if cfg.per_class:
        order, start, count = _by_class(labels)
        return functools.partial(class_batch, order, start, count, cfg)
    return seeding.shuffled(n, cfg.batch, cfg.seed)


def _by_class(labels):
    """(images sorted by class (N,), first (C,) and number (C,) of each class's)."""
    count = np.bincount(labels)
    return torch.from_numpy(np.argsort(labels, kind="stable")), torch.from_numpy(np.cumsum(count) - count), count


def class_batch(order: torch.Tensor, start: torch.Tensor, count: np.ndarray, cfg: Config, step: int) -> torch.Tensor:
    """Indices (batch,) of batch / K random classes with K of their images each. UserError with too few classes."""
    gen, k = seeding.generator(cfg.seed, 1, step), cfg.per_class
    able = torch.from_numpy(np.flatnonzero(count >= k))
    if len(able) < cfg.batch // k:
        raise UserError(f"--batch {cfg.batch}: only {len(able)} classes have {k} images, {cfg.batch // k} are needed")
    chosen = able[torch.randperm(len(able), generator=gen)[: cfg.batch // k]]
    size = torch.from_numpy(count)[chosen]
    first = (torch.rand(len(chosen), generator=gen) * size).long()
    place = (first.unsqueeze(1) + torch.arange(k)) % size.unsqueeze(1)
    return order[(start[chosen].unsqueeze(1) + place).flatten()]


# ------------------------------------------------------------------------------------------------ what a source says


@torch.no_grad()
def view_outputs(
    network: Callable[[torch.Tensor], torch.Tensor] | None,
    training: Training,
    cfg: Config,
    folder: Path | str | None,
    device: torch.device,
    chunk: int = 128,
) -> torch.Tensor:
    """(views, N, d) float32 embeddings of all fixed views by `network` (uint8 pictures -> (B, d)).

    One file per view in `folder` (None: nothing is kept), so that an interrupted computation continues.
    """
    rows, numbers = [], view_numbers(cfg.views, len(training))
    for v in range(cfg.views):
        path = Path(folder) / f"view{v}.npy" if folder else None
        if path is None or not path.exists():
            assert network is not None  # None only reads what is complete
            parts = progress(torch.arange(len(training)).split(chunk), f"teacher, view {v}", "batches")
            made = torch.cat([
                network(augmented(training.images[i].to(device), numbers[v, i], cfg.augment, cfg.teacher_px)).cpu()
                for i in parts
            ])  # fmt: skip
            if path:
                with storage.atomic(path) as temporary, open(temporary, "wb") as handle:
                    np.save(handle, made.numpy())
        rows.append(stored_view(path) if path else made)
    return torch.stack(rows)


def stored_view(path: Path) -> torch.Tensor:
    """(N, d) embeddings of a view that is kept. UserError where the file is damaged."""
    return torch.from_numpy(storage.read_array(path, "delete it, and it is computed again"))
