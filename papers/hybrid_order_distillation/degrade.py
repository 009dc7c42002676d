"""Low resolution: reduce an image to `resolution` pixels a side and enlarge it again. The operator decides the score.

The default repeats Pillow's bicubic resize to the last bit (vision/resampling.py), in batches and on any device.
"""

import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError
from facepapers.common.vision import resampling

OPERATORS = ("pil_bicubic", "pil_bilinear", "plain_bicubic")


def degrade(
    images: torch.Tensor, resolution: int, size: int | None = None, operator: str = "pil_bicubic"
) -> torch.Tensor:
    """uint8 images (B, C, S, S) reduced to `resolution` pixels, rounded to uint8, and brought to `size` (default S).

    Operators: pil_bicubic and pil_bilinear are Pillow's (antialiased down, plain up); plain_bicubic is torch's bicubic
    without antialiasing both ways, of the family of OpenCV's, which aliases. `size` = `resolution` leaves them small.
    Raises UserError for an unknown operator and for a resolution above the image's.
    """
    side = images.shape[-1]
    if operator not in OPERATORS:
        raise UserError(f"--operator {operator}: known are {', '.join(OPERATORS)}")
    if not 1 <= resolution <= side:
        raise UserError(f"--resolution {resolution}: the images have {side} px; choose 1 to {side}")
    return resize(resize(images, resolution, operator), size or side, operator)


def resize(images: torch.Tensor, size: int, operator: str = "pil_bicubic") -> torch.Tensor:
    """uint8 images (B, C, H, H) as uint8 (B, C, size, size); the same tensor when they have that size already."""
    kind, filter_name = operator.split("_")
    if kind == "pil":
        return resampling.resize(images, size, filter_name)
    if images.dtype != torch.uint8:
        raise UserError(f"images of type {images.dtype}: degradation is defined on uint8 pixels")
    if images.shape[-1] == images.shape[-2] == size:
        return images
    y = F.interpolate(images.float(), size=(size, size), mode=filter_name, align_corners=False)
    return y.round().clamp(0, 255).to(torch.uint8)
