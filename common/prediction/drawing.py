"""A photo with the faces that were found, their points and what is said of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facepapers.common import storage
from facepapers.common.prediction import crops

LARGEST_PX = 2000  # larger photos are drawn reduced
BOX, POINT = (80, 160, 255), (255, 60, 30)


@dataclass(frozen=True)
class Mark:
    """What is drawn of a face beside its box and number: points (x, y) in pixels of the photo, lines of text."""

    points: Sequence[Sequence[float]] = ()
    text: Sequence[str] = ()


def write(photo: torch.Tensor, faces: Sequence[tuple[Sequence[float], Mark]], path: Path) -> Path:
    """Write the photo (3, H, W) uint8 as PNG with each face's box (x, y, width, height) and Mark.

    It has the photo's own size, or the half, quarter, ... that LARGEST_PX allows. Raises UserError as storage.atomic.
    """
    from PIL import Image, ImageDraw

    small, times = photo[None], 1
    while max(small.shape[-2:]) > LARGEST_PX and min(small.shape[-2:]) >= 2:
        small, times = crops.halved(small), 2 * times
    picture = Image.fromarray(small[0].permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(picture)
    for number, (box, mark) in enumerate(faces, start=1):
        x, y, width, height = (v / times for v in box)
        corner = max(x, x + width - 1), max(y, y + height - 1)  # a box may be less than a pixel of the drawing
        pen.rectangle([x, y, *corner], outline=BOX, width=max(1, round(max(width, height) / 150)))
        radius = max(1.0, max(width, height) / 150)
        for px, py in mark.points:
            px, py = px / times, py / times
            pen.ellipse([px - radius, py - radius, px + radius, py + radius], fill=POINT)
        words = [*([f"face {number}"] if len(faces) > 1 else []), *mark.text]
        if words:
            write_words(pen, picture.size, (x, y + height), words)
    with storage.atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def write_words(pen: Any, size: tuple[int, int], corner: tuple[float, float], words: Sequence[str]) -> None:
    """Lines of text on a dark ground below `corner`, moved into the picture where they would leave it."""
    from PIL import ImageFont

    font = ImageFont.load_default(max(10, min(28, max(size) // 45)))
    left, top, right, bottom = pen.multiline_textbbox(corner, "\n".join(words), font=font)
    x = max(0, min(corner[0], size[0] - (right - left) - 4))
    y = max(0, min(corner[1] + 2, size[1] - (bottom - top) - 6))
    left, top, right, bottom = pen.multiline_textbbox((x, y), "\n".join(words), font=font)
    pen.rectangle([left - 2, top - 2, right + 2, bottom + 2], fill=(0, 0, 0))
    pen.multiline_text((x, y), "\n".join(words), font=font, fill=(255, 255, 255))


def sheet(crops: Sequence[torch.Tensor], names: Sequence[str], lines: Sequence[str], path: Path, px: int = 200) -> Path:
    """Write face crops (3, S, S) uint8 side by side, each `px` wide with its name, and lines of text below them."""
    from PIL import Image, ImageDraw, ImageFont

    font, line = ImageFont.load_default(13), 18
    wide = math.ceil(max([len(crops) * (px + 8), 480, *(font.getlength(words) + 8 for words in lines)]))
    picture = Image.new("RGB", (wide, px + line * (len(lines) + 2)), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    for k, (crop, name) in enumerate(zip(crops, names, strict=True)):
        face = Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy())
        picture.paste(face.resize((px, px), Image.Resampling.NEAREST), (k * (px + 8), 0))
        pen.text((k * (px + 8) + 2, px + 2), end_of(name, font, px), font=font, fill=(0, 0, 0))
    for k, words in enumerate(lines, start=1):
        pen.text((2, px + line * k + 4), words, font=font, fill=(0, 0, 0))
    with storage.atomic(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def end_of(name: str, font: Any, px: int) -> str:
    """The last letters of a name that are at most `px` wide: it is there that photos' names differ."""
    return next(name[k:] for k in range(len(name) + 1) if font.getlength(name[k:]) <= px)
