"""Low resolution: reduce an image to `resolution` pixels a side and enlarge it again. The operator decides the score.

The default repeats Pillow's bicubic resize to the last bit, in batches and on any device. Pillow filters rows, rounds
to uint8, filters columns and rounds again, with coefficients in fixed point (22 bits); both passes are matrix products
here, exact in float64 because every sum stays below 2^53.
"""

import functools
import math

import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError

BITS = 22  # Pillow's PRECISION_BITS: 32 - 8 - 2


def cubic(x: float, a: float = -0.5) -> float:
    """Keys' kernel with Pillow's a."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


FILTERS = {"bicubic": (cubic, 2.0), "bilinear": (triangle, 1.0)}  # (kernel, radius)
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
    if images.dtype != torch.uint8:
        raise UserError(f"images of type {images.dtype}: degradation is defined on uint8 pixels")
    if images.shape[-1] == images.shape[-2] == size:
        return images
    kind, filter_name = operator.split("_")
    if kind == "plain":
        y = F.interpolate(images.float(), size=(size, size), mode=filter_name, align_corners=False)
        return y.round().clamp(0, 255).to(torch.uint8)
    rows, columns = (coefficients(n, size, filter_name).to(images.device) for n in images.shape[-2:])
    return filtered(filtered(images, columns.T), rows, left=True)


def filtered(images: torch.Tensor, matrix: torch.Tensor, left: bool = False) -> torch.Tensor:
    """One filtered and rounded pass along columns, or rows (`left`), with `coefficients`. uint8 in, uint8 out."""
    x = images.double()
    y = matrix @ x if left else x @ matrix
    return y.mul_(2.0**-BITS).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)  # powers of two: still exact


@functools.lru_cache(maxsize=64)
def coefficients(size_in: int, size_out: int, filter_name: str) -> torch.Tensor:
    """(size_out, size_in) float64 matrix of Pillow's integer coefficients (ImagingResample's precompute_coeffs)."""
    kernel, radius = FILTERS[filter_name]
    scale = size_in / size_out
    stretch = max(1.0, scale)  # a reduction averages over `scale` pixels, an enlargement does not
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    for i in range(size_out):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - radius * stretch + 0.5))
        last = min(size_in, int(centre + radius * stretch + 0.5))
        weights = [kernel((k - centre + 0.5) / stretch) for k in range(first, last)]
        total = sum(weights)
        for k, weight in zip(range(first, last), weights, strict=True):
            matrix[i, k] = math.trunc(weight / total * 2**BITS + math.copysign(0.5, weight))
    return matrix
