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
from facepapers.common.prediction import command, drawing, finding
from facepapers.papers.coarse_to_fine import released
from facepapers.papers.coarse_to_fine.config import PAPER
from facepapers.papers.coarse_to_fine.looking import around_landmarks, points


@dataclass(frozen=True)
class Command:
    """Find the landmarks of faces. A --box is about the square around all landmarks, brows to chin and ear to ear."""

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
        boxes, roll = (faces.boxes, None) if faces.points is None else around_landmarks(faces, net)
        return [{"points_xy": command.rounded(p)} for p in points(net, [photo], boxes, [0] * len(faces), roll)]

    names = [f"{axis}{k}" for k in range(net.markup.n_points) for axis in "xy"]
    return command.Task(
        kind="points", answers=answers, line=lambda answer: f"{len(answer['points_xy'])} points",
        mark=lambda answer: drawing.Mark(points=answer["points_xy"]), columns=names,
        row=lambda answer: dict(zip(names, (v for xy in answer["points_xy"] for v in xy), strict=True)),
        about={"markup": net.markup.name},
    )  # fmt: skip


if __name__ == "__main__":
    cli.entry(main)
