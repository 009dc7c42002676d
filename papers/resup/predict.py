"""Expressions of the faces in any photo, each with the probability of all classes.

`python -m facepapers.papers.resup.predict IMAGE ...`

IMAGE is a photo or a folder of photos. Writes IMAGE.expression.json and IMAGE.expression.png beside each. As a library:
`expressions(released.load(), photos, boxes, five_points)` for a batch of photos (B, 3, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from facepapers.common import cli
from facepapers.common.prediction import command, crops, drawing, finding
from facepapers.common.vision import alignment
from facepapers.papers.resup import released
from facepapers.papers.resup.config import PAPER

STATEMENT = (
    "These are shares of annotators who would name the expression that the picture shows, as the network guesses them. "
    "An expression on a picture is not what the person feels; decide nothing about anybody by it."
)


@dataclass(frozen=True)
class Command:
    """Name the expression of faces. A --box, or with --whole the photo, is a square face crop as of FERPlus."""

    images: tuple[Path, ...]  # photos, or folders of photos
    weights: str | None = None  # name of a released model or a weights file; without it expression, or your newest
    photos: command.Options = field(default=command.Options())  # where the faces are, what is written


def main(argv: Sequence[str]) -> None:
    """Write and print the expression of each photo's faces."""
    given = cli.command(Command, argv, "python -m facepapers.papers.resup.predict", __doc__, least=0)
    device, find = command.begin(given.images, given.photos)
    net = released.load(command.weights(given.weights, PAPER, released.NAMES[0]), device)
    command.run(task_of(net), given.images, given.photos, find)


def task_of(net: released.Classifier) -> command.Task:
    """The expressions' part of the command."""

    def answers(photo: torch.Tensor, faces: finding.Faces) -> list[dict[str, Any]]:
        found = expressions(net, [photo], faces.boxes, faces.points, [0] * len(faces))
        return [worded(net.classes, one) for one in found]

    return command.Task(
        kind="expression", answers=answers, line=lambda answer: ", ".join(lines(answer)),
        mark=lambda answer: drawing.Mark(text=lines(answer)[:3]), columns=["expression", *net.classes],
        row=lambda answer: {"expression": answer["expression"], **answer["probabilities"]},
        about={"statement": STATEMENT},
    )  # fmt: skip


@torch.inference_mode()
def expressions(
    net: released.Classifier,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None = None,
    owner: Sequence[int] | None = None,
) -> torch.Tensor:
    """Probabilities (N, K), in the order of `net.classes`, of N faces.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each face's photo, by default the n-th.
    Faces are placed as in FERPlus by five `points` (N, 5, 2); without these, boxes (N, 4) are such crops.
    UserError as crops.owners.
    """
    owner = crops.owners(photos, boxes, points, owner)
    device = next(iter(net.state_dict().values())).device
    to_photo = crops.frame_maps(boxes, points, alignment.FRAMES["ferplus"], net.input_px)
    pixels = crops.cut(photos, to_photo, net.input_px, owner, device)
    return net(pixels).probabilities.float().cpu()


def worded(classes: Sequence[str], probabilities: torch.Tensor) -> dict[str, Any]:
    """The most probable class and all probabilities (K,), rounded."""
    best = int(probabilities.argmax())
    shares = {name: round(float(p), 4) for name, p in zip(classes, probabilities, strict=True)}
    return {"expression": classes[best], "probabilities": shares}


def lines(answer: dict[str, Any]) -> list[str]:
    """`happiness 0.93` for each class, the most probable first."""
    ordered = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
    return [f"{name} {share:.2f}" for name, share in ordered]


if __name__ == "__main__":
    cli.entry(main)
