"""Pillow's resize, to the last bit: in batches, on any device, and as a module that exports to ONNX.

Pillow filters rows, rounds to uint8, filters columns and rounds again, with coefficients in fixed point (22 bits); both
passes are matrix products here, exact in float64 because every sum stays below 2^53. Of squares alone: from 13.0 on
Pillow filters columns first where the height shrinks most, and then differs from 12 by up to some 14 grey levels.

ONNX's own Resize is another function: with mode cubic and cubic_coeff_a -0.5 it repeats edge pixels where Pillow leaves
out what lies outside, and differs from Pillow by ten grey levels near the border of a noisy picture until
exclude_outside is 1 (onnx 1.23, onnxruntime 1.32; findings/onnx-resize-cubic-border.sh). A graph with `PillowResize`
has no Resize in it.
"""

import functools
import math

import torch
from torch import nn

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


def resize(images: torch.Tensor, size: int, filter_name: str = "bicubic") -> torch.Tensor:
    """uint8 images (B, C, S, S) as uint8 (B, C, size, size); the same tensor when they have that size already.

    `filter_name` is one of FILTERS: antialiased where an image is reduced, plain where it is enlarged. Raises UserError
    for images of another type and for those that are not square.
    """
    height, width = images.shape[-2:]
    if images.dtype != torch.uint8:
        raise UserError(f"images of type {images.dtype}: Pillow's resize is defined on uint8 pixels")
    if height != width:
        raise UserError(f"images of {width}x{height} px: Pillow's versions differ on them; cut squares first")
    if height == size:
        return images
    return _resampled(images, coefficients(height, size, filter_name).to(images.device)).to(torch.uint8)


class PillowResize(nn.Module):
    """`resize` of square images with both sizes fixed, made for torch.onnx.export: two matrix products, no Resize.

    (B, C, size_in, size_in) of whole pixel values 0..255, of any type, become float32 (B, C, size_out, size_out), again
    whole. In float64, which ONNX Runtime computes on CPUs, equal to Pillow; where a runtime lacks it, `dtype` float32
    is off by one grey level in fewer than one of a thousand values.
    """

    rows: torch.Tensor  # (size_out, size_in)

    def __init__(
        self, size_in: int, size_out: int, filter_name: str = "bicubic", dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.register_buffer("rows", coefficients(size_in, size_out, filter_name).to(dtype), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _resampled(x, self.rows).float()


def _resampled(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Images (B, C, S, S) filtered along their rows, rounded, filtered along their columns and rounded again."""
    return _rounded(rows @ _rounded(images.to(rows.dtype) @ rows.T))


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    """Sums in fixed point, in place, as whole grey levels. Powers of two, so float64 stays exact."""
    return sums.mul_(2.0**-BITS).add_(0.5).floor_().clamp_(0, 255)


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
