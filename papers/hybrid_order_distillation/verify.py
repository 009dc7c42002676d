"""Do photos with few pixels show the same person? By the student for low resolution.

`python -m facepapers.papers.hybrid_order_distillation.verify A.jpg B.jpg`

Faces are taken as they are and brought to the pixels that the student was trained for, 16 a side; `--size 8` first
reduces them to 8, to see what fewer do. Writes A.verify.json and A.verify.png beside the first photo. As a library:
`embeddings(released.load(), photos, boxes, five_points)` for a batch of photos (B, 3, H, W).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from facepapers.common import cli
from facepapers.common.prediction import command, crops, finding, identity
from facepapers.common.training import parallel
from facepapers.common.training.released import find as weights_file
from facepapers.common.vision import alignment
from facepapers.papers.hybrid_order_distillation import released
from facepapers.papers.hybrid_order_distillation.config import PAPER
from facepapers.papers.hybrid_order_distillation.degrade import resize


@dataclass(frozen=True)
class Command:
    """Compare the main faces of photos. A --box, or with --whole the photo, is aligned to ArcFace's template."""

    images: tuple[Path, ...]  # photos, or folders of photos
    size: int | None = None  # pixels a side to which the aligned faces are reduced first; without it they stay
    weights: str | None = None  # name of a released model or a weights file; without it embedding16, or your newest
    photos: identity.Options = field(default=identity.Options())  # threshold, where the faces are, what is written


def main(argv: Sequence[str]) -> None:
    """Compare photos."""
    given = cli.command(Command, argv, "python -m facepapers.papers.hybrid_order_distillation.verify", __doc__)
    options, device = given.photos, parallel.start(given.photos.device)
    find = finding.finder(options.box, options.whole, options.mtcnn, device)
    name = command.weights(given.weights, PAPER, released.NAMES[0])
    net = released.load(name, device)
    if given.size is not None and not 1 <= given.size <= net.aligned_px:
        raise cli.UserError(
            f"--size {given.size}: aligned faces have {net.aligned_px} px; choose 1 to {net.aligned_px}"
        )
    threshold = identity.threshold_of(weights_file(PAPER, name, released.NAMES), PAPER, options)
    if threshold and threshold.false_accepts_pct is not None and given.size and given.size < net.input_px:
        source = f"{threshold.source}; measured on faces of {net.input_px} px and not of {given.size}"
        threshold = identity.Threshold(threshold.value, source=source)
    identity.compare(given.images, options, find, lambda photo, faces: seen(net, photo, faces, given.size), threshold)


def seen(
    net: released.LowEmbedder, photo: torch.Tensor, faces: finding.Faces, size: int | None = None
) -> identity.Seen:
    """Crops and embeddings of a photo's faces; stderr says where one has fewer pixels than the network needs."""
    to_photo = crops.frame_maps(faces.boxes, faces.points, alignment.ALIGNED, net.aligned_px)
    for side in crops.sides(to_photo, net.aligned_px).tolist():
        if side < net.input_px - 0.5:
            print(
                f"a face of {side:.0f} px: the network was trained for {net.input_px}; expect more errors",
                file=sys.stderr,
            )
    pixels = low(net, [photo], faces.boxes, faces.points, [0] * len(faces), size)
    with torch.inference_mode():
        return identity.Seen(pixels.cpu(), net(pixels).embedding.cpu())


@torch.inference_mode()
def embeddings(
    net: released.LowEmbedder,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None = None,
    owner: Sequence[int] | None = None,
    size: int | None = None,
) -> torch.Tensor:
    """Unit embeddings (N, d) of N faces; the squared distance of two is 2 - 2 cos.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each face's photo, by default the n-th.
    Faces are aligned by five `points` (N, 5, 2); without these, boxes (N, 4) are aligned crops. With `size` they are
    reduced to that many pixels a side first. UserError as crops.owners.
    """
    return net(low(net, photos, boxes, points, owner, size)).embedding.cpu()


def low(
    net: released.LowEmbedder,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None,
    owner: Sequence[int] | None,
    size: int | None,
) -> torch.Tensor:
    """Aligned faces (N, 3, r, r) uint8 of the r pixels that the student takes.

    They are cut at the pixels that they have, but at least r and at most 112, and reduced as the test images were.
    """
    device = next(iter(net.state_dict().values())).device
    owner = crops.owners(photos, boxes, points, owner)
    faces = boxes if points is None else points  # with points no box is looked at
    found = [torch.empty(0, 3, net.input_px, net.input_px, dtype=torch.uint8, device=device)]
    for k, face in zip(owner, faces.unsqueeze(1), strict=True):
        place = lambda px, face=face: crops.frame_maps(face, None if points is None else face, alignment.ALIGNED, px)
        side = round(float(crops.sides(place(net.aligned_px), net.aligned_px)[0]))
        px = min(max(side, net.input_px), net.aligned_px)
        cut = crops.cut([photos[k]], place(px), px, device=device).round().to(torch.uint8)
        found.append(net.preprocess(resize(resize(cut, size, net.operator), px, net.operator) if size else cut))
    return torch.cat(found)


if __name__ == "__main__":
    cli.entry(main)
