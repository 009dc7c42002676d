"""Landmarks of the faces in any photo.

`python -m facepapers.papers.coarse_to_fine.predict IMAGE ...`

IMAGE is a photo or a folder of photos. Writes IMAGE.points.json and IMAGE.points.png beside each. As a library:
`points(released.load(), photos, boxes)` for a batch of photos (B, 3, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facepapers.common import cli
from facepapers.common.prediction import command, crops, drawing, finding
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine import released
from facepapers.papers.coarse_to_fine.config import PAPER

# The square around all 68 landmarks relative to MTCNN's box: shifts of the centre and ratio of the sides, as shares of
# the square root of the box's area. Medians over LFPW's training faces, 803 of whose 805 the detector finds.
# Networks for 29 points, which go from brows to chin as these do, get the same square.
DETECTED_SHIFT, DETECTED_RATIO = (0.006, 0.161), 0.902


@dataclass(frozen=True)
class Command:
    """Find the landmarks of faces. A --box is the square around the landmarks, as in the sets' boxes."""

    images: tuple[Path, ...]  # photos, or folders of photos
    weights: str | None = None  # name of a released model or a weights file; without it landmarks68, or your newest
    photos: command.Options = field(default=command.Options())  # where the faces are, what is written


def main(argv: Sequence[str]) -> None:
    """Write points and picture of each photo."""
    given = cli.command(Command, argv, "python -m facepapers.papers.coarse_to_fine.predict", __doc__, least=0)
    device, find = command.begin(given.images, given.photos)
    name = command.weights(given.weights, PAPER, released.NAMES[0], but="mean-shape")
    command.run(task_of(released.load(name, device)), given.images, given.photos, find)


def task_of(net: released.Landmarks) -> command.Task:
    """The landmarks' part of the command."""

    def answers(photo: torch.Tensor, faces: finding.Faces) -> list[dict[str, Any]]:
        boxes = around_landmarks(faces.boxes, net.margin) if faces.points is not None else faces.boxes
        return [{"points_xy": command.rounded(p)} for p in points(net, [photo], boxes, [0] * len(faces))]

    names = [f"{axis}{k}" for k in range(net.markup.n_points) for axis in "xy"]
    return command.Task(
        kind="points", answers=answers, line=lambda answer: f"{len(answer['points_xy'])} points",
        mark=lambda answer: drawing.Mark(points=answer["points_xy"]), columns=names,
        row=lambda answer: dict(zip(names, (v for xy in answer["points_xy"] for v in xy), strict=True)),
        about={"markup": net.markup.name},
    )  # fmt: skip


def around_landmarks(boxes: torch.Tensor, margin: float) -> torch.Tensor:
    """Boxes (N, 4) of the detector as the squares that the network was trained on: `margin` times the landmarks'."""
    side = boxes[:, 2:].prod(1, keepdim=True).sqrt()
    centre = boxes[:, :2] + boxes[:, 2:] / 2 + side * torch.tensor(DETECTED_SHIFT)
    side = side * DETECTED_RATIO * margin
    return torch.cat([centre - side / 2, side, side], 1)


@torch.inference_mode()
def points(
    net: released.Landmarks,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    owner: Sequence[int] | None = None,
) -> torch.Tensor:
    """Landmarks (N, P, 2), in pixels of the photo, of the faces in boxes (N, 4) x, y, width, height.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each box's photo, by default the n-th.
    """
    device = next(iter(net.state_dict().values())).device
    to_photo = crops.box_maps(boxes, net.input_px)
    pixels = crops.cut(photos, to_photo, net.input_px, owner, device)
    return images.transform_points(net(pixels).points.cpu().double(), to_photo).float()


if __name__ == "__main__":
    cli.entry(main)
