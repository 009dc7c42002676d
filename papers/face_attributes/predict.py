"""All attributes of the faces in any photo, in one pass each.

`python -m facepapers.papers.face_attributes.predict IMAGE ...`

IMAGE is a photo or a folder of photos. Writes IMAGE.attributes.json and IMAGE.attributes.png beside each. As a library:
`attributes(released.load(), photos, boxes, five_points)` for a batch of photos (B, 3, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepapers.common import cli
from facepapers.common.prediction import command, crops, drawing, finding
from facepapers.common.vision import alignment
from facepapers.papers.face_attributes import released
from facepapers.papers.face_attributes.config import PAPER

STATEMENT = (
    "These are guesses of how annotators would label the picture, in fixed categories: perceptions, not facts about "
    "the person, and wrong more often for some groups than for others (see the card). They are for research on the "
    "method; decide nothing about anybody by them."
)
KNOWN = {"aligned": alignment.ALIGNED, **alignment.FRAMES}


@dataclass(frozen=True)
class Command:
    """Guess the attributes of faces. A --box, or with --whole the photo, is a square face crop: see --frame."""

    images: tuple[Path, ...]  # photos, or folders of photos
    weights: str | None = None  # a released model, or weights of a `chosen` row; without it attributes, or your newest
    frame: str = "utkface"  # how a face lies in a --box or --whole: utkface, ferplus, or aligned (ArcFace's template)
    photos: command.Options = field(default=command.Options())  # where the faces are, what is written


def main(argv: Sequence[str]) -> None:
    """Write and print the attributes of each photo's faces."""
    given = cli.command(Command, argv, "python -m facepapers.papers.face_attributes.predict", __doc__, least=0)
    if given.frame not in KNOWN:
        raise cli.UserError(f"--frame {given.frame}: known are {', '.join(KNOWN)}")
    device, find = command.begin(given.images, given.photos)
    net = released.load(command.weights(given.weights, PAPER, released.NAMES[0], "*-chosen-*"), device)
    command.run(task_of(net, given.frame), given.images, given.photos, find)


def task_of(net: released.Attributes, frame: str) -> command.Task:
    """The attributes' part of the command."""

    def answers(photo: torch.Tensor, faces: finding.Faces) -> list[dict[str, Any]]:
        found = attributes(net, [photo], faces.boxes, faces.points, [0] * len(faces), frame)
        return [{"attributes": worded(net, {k: v[n] for k, v in found.items()})} for n in range(len(faces))]

    columns = [c for name in net.classes for c in (name, f"{name}_probability")]
    columns += ["age_years"] if any(a.years for a in net.attributes.values()) else []
    return command.Task(
        kind="attributes", answers=answers, line=lambda answer: ", ".join(lines(answer)),
        mark=lambda answer: drawing.Mark(text=lines(answer)), columns=columns, row=row, about={"statement": STATEMENT},
    )  # fmt: skip


@torch.inference_mode()
def attributes(
    net: released.Attributes,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None = None,
    owner: Sequence[int] | None = None,
    frame: str = "aligned",
) -> dict[str, torch.Tensor]:
    """Attribute -> probabilities (N, classes), and `age_years` (N,), of N faces in one pass.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each face's photo, by default the n-th.
    Faces are placed by five `points` (N, 5, 2); without these, boxes (N, 4) are crops in which they lie as in `frame`.
    UserError as crops.owners.
    """
    owner = crops.owners(photos, boxes, points, owner)
    device = next(iter(net.state_dict().values())).device
    # With points the crop is the template's; a box is another frame's, in which the template's points are found.
    placed = points if points is not None else points_in(boxes, frame)
    to_photo = crops.frame_maps(boxes, placed, alignment.ALIGNED, net.input_px)
    pixels = crops.cut(photos, to_photo, net.input_px, owner, device)
    return {name: value.float().cpu() for name, value in net(pixels).items()}


def points_in(boxes: torch.Tensor, frame: str) -> torch.Tensor:
    """Five points (N, 5, 2), in the photo, of faces that lie in square crops `boxes` (N, 4) as `frame` says."""
    side = boxes[:, 2:].prod(1).sqrt().view(-1, 1, 1)
    corner = (boxes[:, :2] + boxes[:, 2:] / 2).unsqueeze(1) - side / 2
    return corner + side * torch.as_tensor(np.asarray(KNOWN[frame]), dtype=torch.float32)


def worded(net: released.Attributes, found: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Attribute -> {label, probability, probabilities} (and years) of one face's probabilities."""
    answer = {}
    for name, classes in net.classes.items():
        best = int(found[name].argmax())
        answer[name] = {
            "label": classes[best], "probability": round(float(found[name][best]), 4),
            "probabilities": {c: round(float(p), 4) for c, p in zip(classes, found[name], strict=True)},
        }  # fmt: skip
        if f"{name}_years" in found:
            answer[name]["years"] = round(float(found[f"{name}_years"]), 1)
    return answer


def lines(answer: dict[str, Any]) -> list[str]:
    """One line an attribute: `gender female 0.93`."""
    years = lambda value: f", {value['years']:.0f} years" if "years" in value else ""
    return [f"{name} {value['label']} {value['probability']:.2f}{years(value)}"
            for name, value in answer["attributes"].items()]  # fmt: skip


def row(answer: dict[str, Any]) -> dict[str, Any]:
    """Label and probability of each attribute, and the years."""
    found: dict[str, Any] = {}
    for name, value in answer["attributes"].items():
        found |= {name: value["label"], f"{name}_probability": value["probability"]}
        found |= {f"{name}_years": value["years"]} if "years" in value else {}
    return found


if __name__ == "__main__":
    cli.entry(main)
