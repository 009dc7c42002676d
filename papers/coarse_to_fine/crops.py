"""From prepared faces to network inputs: face boxes, the training augmentation, the fixed test crops.

The authors rotate the face, take the box of the rotated landmarks, move (and, in their sequel, scale) it, flip, and
compress with JPEG (author's answer in ZhiwenShao/CFT#3). The amounts are not stated for CFT: all are our choice
and stand in the configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from facepapers.common import seeding
from facepapers.common.data import markups
from facepapers.common.data.alignment import AlignmentSet
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import data
from facepapers.papers.coarse_to_fine.config import Config


@dataclass(frozen=True)
class Offsets:
    """How given boxes lie relative to the landmarks' box: mean and largest expected deviation.

    Shifts are shares of the landmark box's side, sizes are natural logarithms of side ratios.
    """

    mean_shift: tuple[float, float] = (0.0, 0.0)
    mean_log_size: float = 0.0
    shift_range: tuple[float, float] = (0.0, 0.0)
    log_size_range: float = 0.0


ALIKE = Offsets()  # boxes that are the landmarks' own


@dataclass(frozen=True)
class Crops:
    """Network inputs (B, 3, S, S) 0..255, points (B, P, 2) in crop pixels, normaliser d (B,) in crop pixels, and
    the maps (B, 2, 3) from crop to image pixels."""

    images: torch.Tensor
    points: torch.Tensor
    distance: torch.Tensor
    to_image: torch.Tensor

    def part(self, rows: slice) -> "Crops":
        """The crops of a slice of the batch."""
        return Crops(self.images[rows], self.points[rows], self.distance[rows], self.to_image[rows])


class FaceCrops:
    """The faces of one data set on the training device, reduced so that cropping never skips pixels."""

    def __init__(self, faces: AlignmentSet, crop: int, margin: float, device: torch.device) -> None:
        self.markup, self.crop, self.margin = faces.markup, crop, margin
        pixels, self.reduction = faces.images, 1
        points, boxes = faces.points.clone(), faces.box.clone()
        side = landmark_boxes(points, margin)[1].median()
        while side / self.reduction > 2.2 * crop:  # bilinear sampling may shrink by about two
            pixels, self.reduction = images.halve(pixels), self.reduction * 2
        shift = (self.reduction - 1) / 2
        self.points = ((points - shift) / self.reduction).to(device)
        boxes[:, :2] -= shift
        self.boxes = (boxes / self.reduction).to(device)
        self.pixels, self.device = pixels.to(device), device
        self.flip = torch.tensor(faces.markup.flip, device=device)
        self.official = not torch.isnan(boxes).any()

    def offsets(self, index: torch.Tensor) -> Offsets:
        """Where official boxes lie relative to the landmarks of the training faces `index`; zero without boxes."""
        if not self.official:
            return ALIKE
        centre, side = landmark_boxes(self.points[index], self.margin)
        given_centre, given_side = square(self.boxes[index])
        shift, size = (given_centre - centre) / side.unsqueeze(1), (given_side / side).log()
        spread = 3**0.5  # a uniform distribution's half-width in units of its standard deviation
        return Offsets(
            tuple(shift.mean(0).tolist()), size.mean().item(),
            tuple((shift.std(0) * spread).tolist()), size.std().item() * spread,
        )  # fmt: skip

    def training(self, index: torch.Tensor, gen: torch.Generator, cfg: Config, offsets: Offsets) -> Crops:
        """Augmented crops of the faces `index`, all random numbers from `gen`."""
        n, truth = len(index), self.points[index]
        angle = images.uniform(-1, 1, (n,), gen, self.device) * torch.deg2rad(torch.tensor(cfg.rotation_deg))
        centre, side = landmark_boxes(truth, self.margin, angle)
        reach = torch.tensor([max(cfg.shift, r) for r in offsets.shift_range], device=self.device)
        move = images.uniform(-1, 1, (n, 2), gen, self.device) * reach
        log_size = images.uniform(-1, 1, (n,), gen, self.device) * max(cfg.log_size, offsets.log_size_range)
        centre, side = shifted(centre, side, angle, offsets, move, log_size)
        flip = images.uniform(0, 1, (n,), gen, self.device) < 0.5
        crops = self._cut(index, centre, side, angle, flip)
        return Crops(degrade(crops.images, gen, cfg), crops.points, crops.distance, crops.to_image)

    def testing(self, index: torch.Tensor, cfg: Config, offsets: Offsets) -> Crops:
        """Crops from the official boxes, or from the landmarks' boxes under a fixed, documented jitter.

        A face's jitter depends on its index alone, so every model of every run sees the same boxes.
        """
        n = len(index)
        zero = torch.zeros(n, device=self.device)
        if self.official:
            centre, side = square(self.boxes[index])
        else:
            draws = images.uniform(-1, 1, (len(self.points), 3), seeding.generator(2016), self.device)[index]
            centre, side = landmark_boxes(self.points[index], self.margin)
            move, log_size = draws[:, :2] * cfg.test_shift, draws[:, 2] * cfg.test_log_size
            centre, side = shifted(centre, side, zero, offsets, move, log_size)
        return self._cut(index, centre, side, zero, zero.bool())

    def _cut(self, index, centre, side, angle, flip):
        to_image = images.similarity(centre, side, angle, flip, self.crop)
        pixels = images.crop(self.pixels[index], to_image, self.crop)
        truth = images.transform_points(self.points[index], images.invert(to_image))
        truth = images.flip_points(truth, self.flip, flip)
        return Crops(pixels, truth, markups.inter_pupil(truth, self.markup), to_image)


@dataclass(frozen=True)
class Feed:
    """The faces of a run and the crops that it trains and tests on."""

    cfg: Config
    faces: AlignmentSet
    crops: FaceCrops
    offsets: Offsets
    fit: torch.Tensor  # numbers of the training faces
    val: torch.Tensor  # of the validation faces
    test: torch.Tensor  # of the test faces
    pick: Callable[[int], torch.Tensor]  # step -> places (batch,) in `fit`

    @classmethod
    def of(cls, cfg: Config, device: torch.device, fold: int | None = None) -> "Feed":
        """The faces of `cfg.data` on a device, parted by its split, or by a `fold` of cfg.folds.

        MissingData where the set is not on this machine.
        """
        faces = data.load(cfg.data)
        crops = FaceCrops(faces, cfg.crop, cfg.margin, device)
        parts = data.split(faces, cfg.val_share) if fold is None else data.fold(faces, cfg.folds, fold)
        fit, val, test = (part.to(device) for part in parts)
        pick = seeding.shuffled(len(fit), cfg.batch, cfg.seed)
        return cls(cfg, faces, crops, crops.offsets(fit), fit, val, test, pick)

    def chosen(self, step: int) -> torch.Tensor:
        """Numbers (batch,) of the training faces of a step."""
        return self.fit[self.pick(step).to(self.fit.device)]

    def batch(self, step: int) -> Crops:
        """The augmented crops of a step."""
        return self.augmented(self.chosen(step), 2, step)

    def names(self, step: int) -> str:
        """The names of a step's faces, for messages."""
        return ", ".join(self.faces.names[i] for i in self.chosen(step).tolist())

    def augmented(self, index: torch.Tensor, *keys: int) -> Crops:
        """Training crops of the faces `index`; the seed and `keys` decide their random numbers."""
        return self.crops.training(index, seeding.generator(self.cfg.seed, *keys), self.cfg, self.offsets)

    def plain(self, index: torch.Tensor) -> Crops:
        """Test crops of the faces `index`."""
        return self.crops.testing(index, self.cfg, self.offsets)


def landmark_boxes(
    points: torch.Tensor, margin: float, angle: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre (B, 2) and side (B,) of the square around points (B, P, 2), `margin` times their larger extent.

    With `angle` (B,) the square is taken in the frame turned by it, so it fits the rotated landmarks.
    """
    if angle is not None:
        points = turn(points, -angle)
    low, high = points.amin(1), points.amax(1)
    centre, side = (low + high) / 2, (high - low).amax(1) * margin
    return (centre if angle is None else turn(centre.unsqueeze(1), angle).squeeze(1)), side


def turn(points: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Rotate points (B, P, 2) about the origin by `angle` (B,) radians (x towards y)."""
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return points @ matrix.transpose(1, 2)


def shifted(
    centre: torch.Tensor,
    side: torch.Tensor,
    angle: torch.Tensor,
    offsets: Offsets,
    move: torch.Tensor | float = 0.0,
    log_size: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the set's mean offset and a jitter (shares of the side, in the turned frame) to square boxes."""
    mean = torch.tensor(offsets.mean_shift, dtype=centre.dtype, device=centre.device)
    step = turn(((move + mean) * side.unsqueeze(1)).unsqueeze(1), angle).squeeze(1)
    return centre + step, side * torch.as_tensor(log_size + offsets.mean_log_size, dtype=side.dtype).exp()


def square(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (B, 4) x, y, w, h as centre and side of the square of the same area (our choice: crops keep shape)."""
    return boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].prod(1).sqrt()


def degrade(pixels: torch.Tensor, gen: torch.Generator, cfg: Config) -> torch.Tensor:
    """JPEG at the qualities of the lab's earlier paper (none, 15, 45 or 75); with `colour` also changes of our own."""
    if cfg.colour:
        pixels = images.colour_jitter(pixels, gen, 0.15, 0.3, 0.4, 0.15)
        pixels = images.blur(pixels, gen)
        pixels = images.erase(pixels, gen, cfg.erase)
    if not cfg.jpeg:
        return pixels
    qualities = torch.tensor([0, 15, 45, 75])
    return images.jpeg(pixels, qualities[torch.randint(4, (len(pixels),), generator=gen)])
