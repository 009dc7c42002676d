"""Where the faces of a photo are: a box given by the user, the whole photo, or what the detector finds."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from facepapers.common.cli import MissingData, UserError
from facepapers.common.prediction import crops
from facepapers.common.vision import mtcnn

LARGEST_STRETCH = 1.2  # of a crop's sides: above it stderr says that it is no square
LOOK_PX = 1280  # the detector sees photos reduced to at most this, as it looks for faces of 20 px and more there


@dataclass(frozen=True)
class Faces:
    """The faces of one photo, from left to right. Points and probability are there where a detector found them."""

    boxes: torch.Tensor  # (F, 4) x, y, width, height in pixels of the photo
    points: torch.Tensor | None = None  # (F, 5, 2) left eye, right eye, nose, mouth corners as seen in the photo
    probability: torch.Tensor | None = None  # (F,) that it is a face, in the detector's opinion

    def __len__(self) -> int:
        return len(self.boxes)


Finder = Callable[[torch.Tensor, object], Faces]  # of a photo (3, H, W) uint8 and its name, for errors


def finder(box: str | None, whole: bool, folder: Path | None, device: torch.device | str = "cpu") -> Finder:
    """What `--box`, `--whole` and `--mtcnn` ask for; without any of them the detector of `make data-mtcnn`.

    The Finder raises UserError for a photo without a face or with the box outside. This function raises UserError for
    a box that is no box or options that exclude each other, and MissingData where nothing can find a face.
    """
    if box and whole:
        raise UserError("--box and --whole: give one of them")
    if box:
        given = parse_box(box)
        return lambda photo, name: as_square(inside(given, photo, name), name)
    if whole:
        return lambda photo, name: as_square(torch.tensor([[-0.5, -0.5, *map(float, photo.shape[:0:-1])]]), name)
    if folder is None and not all((mtcnn.folder() / name).is_file() for name in mtcnn.FILES):
        raise MissingData(
            "no face detector on this machine: obtain it by `make data-mtcnn`, or say where the face is by "
            "--box X,Y,W,H (--whole where the photo is a face crop)"
        )
    detector = mtcnn.Mtcnn(folder or mtcnn.folder(), device)
    return lambda photo, name: detected(detector, photo, name)


def as_square(box: torch.Tensor, name: object) -> Faces:
    """A box (1, 4) as the face; stderr says where it is far from the square that is cut of it."""
    width, height = box[0, 2:].tolist()
    if max(width, height) > LARGEST_STRETCH * min(width, height):
        print(
            f"{name}: {width:g}x{height:g} px are no square face crop; the square of that area around the centre is "
            "taken. Give a square --box, or neither --box nor --whole, so that the detector finds the face",
            file=sys.stderr,
        )
    return Faces(box)


def parse_box(text: str) -> torch.Tensor:
    """(1, 4) of `X,Y,W,H`. UserError when it is no box."""
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--box {text!r}: give four numbers, X,Y,W,H in pixels") from None
    if not (all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0):
        raise UserError(f"--box {text!r}: width and height must be above 0, and all four numbers finite")
    return torch.tensor([[x, y, w, h]])


def inside(box: torch.Tensor, photo: torch.Tensor, name: object) -> torch.Tensor:
    """The box (1, 4) itself; UserError when it shows nothing of the photo (3, H, W)."""
    (x, y, w, h), (height, width) = box[0].tolist(), photo.shape[1:]
    if not (x < width and y < height and x + w > 0 and y + h > 0):
        raise UserError(f"{name}: the box {x:g},{y:g},{w:g},{h:g} lies outside the {width}x{height} photo")
    return box


def detected(detector: mtcnn.Mtcnn, photo: torch.Tensor, name: object = "photo") -> Faces:
    """All faces that the detector finds in a photo (3, H, W) uint8, from left to right. UserError when there is none.

    Photos above LOOK_PX are halved for it until they are not.
    """
    small, times = photo[None], 1
    while max(small.shape[-2:]) > LOOK_PX and min(small.shape[-2:]) >= 2:
        small, times = crops.halved(small), 2 * times
    boxes, probability, points = detector.detect(small[0])
    if not len(boxes):
        raise UserError(
            f"{name}: no face was found; turn the photo where heads are turned by 90 degrees or more, name an upright "
            "face by --box X,Y,W,H, or give --whole where the photo is a face crop"
        )
    corners = boxes.view(-1, 2, 2) * times + (times - 1) / 2
    order = corners[:, :, 0].sum(1).argsort(stable=True)
    found = torch.cat([corners[:, 0], corners[:, 1] - corners[:, 0]], 1)
    return Faces(found[order], (points * times + (times - 1) / 2)[order], probability[order])
