"""Do photos show the same person? And embeddings of many faces.

    python -m facepapers.papers.arcface.verify A.jpg B.jpg           distance, threshold, decision, its error rates
    python -m facepapers.papers.arcface.verify embed FOLDER          all faces' embeddings with names, as an .npz

Writes A.verify.json and A.verify.png beside the first photo. Of more than two photos each pair is compared. As a
library: `embeddings(released.load(), photos, boxes, five_points)` for a batch of photos (B, 3, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from facepapers.common import cli
from facepapers.common.prediction import command, crops, finding, identity
from facepapers.common.training import parallel
from facepapers.common.training.released import find as weights_file
from facepapers.common.vision import alignment
from facepapers.papers.arcface import released
from facepapers.papers.arcface.config import PAPER

PROG = "python -m facepapers.papers.arcface.verify"


@dataclass(frozen=True)
class Command:
    """Compare the main faces of photos. A --box, or with --whole the photo, is aligned to ArcFace's template."""

    images: tuple[Path, ...]  # photos, or folders of photos
    weights: str | None = None  # name of a released model or a weights file; without it embedding, or your newest
    photos: identity.Options = field(default=identity.Options())  # threshold, where the faces are, what is written


@dataclass(frozen=True)
class Embed:
    """Embed all faces of photos. A --box, or with --whole the photo, is aligned to ArcFace's template."""

    images: tuple[Path, ...]  # photos, or folders of photos
    to: Path = Path("embeddings.npz")  # .npz file that is written
    weights: str | None = None  # name of a released model or a weights file; without it embedding, or your newest
    box: str | None = None  # X,Y,W,H of the face in pixels, the same in every photo
    whole: bool = False  # each photo is an aligned face crop
    mtcnn: Path | None = None  # folder of the detector's networks, if not that of `make data-mtcnn`
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Compare photos, or with the word `embed` first, embed them."""
    if list(argv[:1]) == ["embed"]:
        every = cli.command(Embed, argv[1:], f"{PROG} embed", __doc__)
        find, net, _ = prepared(every.box, every.whole, every.mtcnn, every.weights, every.device)
        identity.embed_all(every.images, every.to, find, lambda photo, faces: seen(net, photo, faces))
        return
    given = cli.command(Command, argv, PROG, __doc__)
    options = given.photos
    find, net, path = prepared(options.box, options.whole, options.mtcnn, given.weights, options.device)
    threshold = identity.threshold_of(path, PAPER, options)
    identity.compare(given.images, options, find, lambda photo, faces: seen(net, photo, faces), threshold)


def prepared(
    box: str | None, whole: bool, mtcnn: Path | None, weights: str | None, device: str
) -> tuple[finding.Finder, released.Embedder, Path]:
    """(what finds faces, the network, its weights file)."""
    used = parallel.start(device)
    find = finding.finder(box, whole, mtcnn, used)
    name = command.weights(weights, PAPER, released.NAMES[0])
    return find, released.load(name, used), weights_file(PAPER, name, released.NAMES)


def seen(net: released.Embedder, photo: torch.Tensor, faces: finding.Faces) -> identity.Seen:
    """Crops and embeddings of a photo's faces."""
    pixels = aligned(net, [photo], faces.boxes, faces.points, [0] * len(faces))
    with torch.inference_mode():
        return identity.Seen(pixels.to(torch.uint8).cpu(), net(pixels).embedding.cpu())


@torch.inference_mode()
def embeddings(
    net: released.Embedder,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None = None,
    owner: Sequence[int] | None = None,
) -> torch.Tensor:
    """Unit embeddings (N, d) of N faces; the squared distance of two is 2 - 2 cos.

    photos: uint8 (B, 3, H, W), or (3, H, W) of any sizes; `owner` (N,) numbers each face's photo, by default the n-th.
    Faces are aligned by five `points` (N, 5, 2); without these, boxes (N, 4) are aligned crops.
    UserError as crops.owners.
    """
    return net(aligned(net, photos, boxes, points, owner)).embedding.cpu()


def aligned(
    net: released.Embedder,
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None,
    owner: Sequence[int] | None,
) -> torch.Tensor:
    """Crops (N, 3, 112, 112), whole numbers 0..255, aligned to the template."""
    owner = crops.owners(photos, boxes, points, owner)
    device = next(iter(net.state_dict().values())).device
    to_photo = crops.frame_maps(boxes, points, alignment.ALIGNED, net.input_px)
    return crops.cut(photos, to_photo, net.input_px, owner, device).round()


if __name__ == "__main__":
    cli.entry(main)
