"""Landmarks of any face image.

`python -m facepapers.papers.coarse_to_fine.predict IMAGE ...`

Writes IMAGE.points.json and IMAGE.points.png beside each image. Without `--box` the whole image is taken as the face
box.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from facepapers.common import cli, storage
from facepapers.common.data import photos
from facepapers.common.evidence import runs
from facepapers.common.training import parallel
from facepapers.common.vision import images
from facepapers.papers.coarse_to_fine.config import PAPER, Config
from facepapers.papers.coarse_to_fine.crops import square
from facepapers.papers.coarse_to_fine.evaluate import load


@dataclass(frozen=True)
class Command:
    """Find the landmarks of faces."""

    images: tuple[Path, ...]  # image files
    weights: Path | None = None  # weights file; without it the newest that was trained on this machine
    box: str | None = None  # face box X,Y,W,H in pixels; without it the whole image
    out: Path | None = None  # folder of what is written; without it the image's own
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda


def main(argv: Sequence[str]) -> None:
    """Write points and picture of each image."""
    options = cli.command(Command, argv, "python -m facepapers.papers.coarse_to_fine.predict", __doc__)
    weights = options.weights or runs.newest_weights(PAPER, but="mean-shape")
    model, cfg, markup = load(weights, parallel.start(options.device))
    for path in options.images:
        photo = photos.read_photo(path)
        face = parse_box(options.box, photo, path)
        started = time.perf_counter()
        points = predict(model, cfg, photo, face)
        spent = 1000 * (time.perf_counter() - started)
        folder = options.out or path.parent
        value = {"image": path.name, "box_xywh": face, "markup": markup.name, "points_xy": points.tolist()}
        storage.write_json(folder / f"{path.stem}.points.json", value)
        drawing = draw(photo, points, face, folder / f"{path.stem}.points.png")
        print(f"{path}: {len(points)} points in {spent:.1f} ms -> {drawing}")


def parse_box(text: str | None, photo: torch.Tensor, path: Path) -> list[float]:
    """[x, y, w, h] from `X,Y,W,H`, or the whole image. UserError when malformed or outside the image."""
    height, width = photo.shape[1:]
    if text is None:
        return [-0.5, -0.5, float(width), float(height)]  # pixel centres are integers, so the image starts at -0.5
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise cli.UserError(f"--box {text!r}: give four numbers, X,Y,W,H in pixels") from None
    finite = all(map(math.isfinite, (x, y, w, h)))
    if not (finite and w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0):
        raise cli.UserError(f"{path}: the box {text} lies outside the {width}x{height} image or is empty")
    return [x, y, w, h]


@torch.no_grad()
def predict(model: torch.nn.Module, cfg: Config, photo: torch.Tensor, box: list[float]) -> torch.Tensor:
    """Points (P, 2) in image pixels for one face in `photo` (3, H, W), `box` = x, y, w, h."""
    device = next(iter(model.state_dict().values())).device
    centre, side = square(torch.tensor([box]))
    pixels, reduction = photo.unsqueeze(0), 1
    while side.item() / reduction > 2.2 * cfg.crop and min(pixels.shape[-2:]) >= 2:
        pixels, reduction = images.halve(pixels), reduction * 2
    centre = (centre - (reduction - 1) / 2) / reduction
    to_image = images.similarity(centre, side / reduction, torch.zeros(1), torch.zeros(1).bool(), cfg.crop)
    crop = images.crop(pixels.to(device), to_image, cfg.crop)
    points = images.transform_points(model(crop).cpu(), to_image)[0]
    return points * reduction + (reduction - 1) / 2


def draw(photo: torch.Tensor, points: torch.Tensor, box: list[float], path: Path) -> Path:
    """Write the image with its points and box as PNG at the image's own size."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(photo.permute(1, 2, 0).numpy())
    pen, radius = ImageDraw.Draw(picture), max(1.0, max(box[2:]) / 150)
    pen.rectangle([box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1], outline=(80, 160, 255))
    for x, y in points.tolist():
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(255, 60, 30))
    with storage.atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


if __name__ == "__main__":
    cli.entry(main)
