"""Batched image operations on tensors: similarity crops, colour, erasing, blur, JPEG. No loop over samples.

Images are (B, C, H, W) float32 with values 0..255; points are (B, P, 2) pixels (x, y), pixel centres at integers.
Random numbers are drawn on the CPU from an explicit generator, so a CPU and a GPU see the same augmentation.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from facepapers.common.cli import UserError


def uniform(
    low: float, high: float, shape: Sequence[int], gen: torch.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform numbers in [low, high) of `shape`."""
    return (low + (high - low) * torch.rand(shape, generator=gen)).to(device)


def similarity(
    centre: torch.Tensor, side: torch.Tensor, angle_rad: torch.Tensor, flip: torch.Tensor, size: int
) -> torch.Tensor:
    """Affine maps from crop pixels to image pixels, (B, 2, 3).

    A crop of `size` pixels shows the square of `side` (B,) image pixels around `centre` (B, 2), turned by
    `angle_rad` (B,), mirrored left-right where `flip` (B,) is true.
    """
    scale = side / size
    cos, sin = torch.cos(angle_rad) * scale, torch.sin(angle_rad) * scale
    mirror = 1.0 - 2.0 * flip.to(scale.dtype)
    linear = torch.stack([torch.stack([cos * mirror, -sin], -1), torch.stack([sin * mirror, cos], -1)], -2)
    middle = (size - 1) / 2
    offset = centre - linear.sum(-1) * middle
    return torch.cat([linear, offset.unsqueeze(-1)], -1)


def invert(matrix: torch.Tensor) -> torch.Tensor:
    """Inverse of affine maps (B, 2, 3)."""
    (a, b), (c, d) = matrix[:, 0, :2].unbind(1), matrix[:, 1, :2].unbind(1)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    linear = adjugate / (a * d - b * c).view(-1, 1, 1)
    return torch.cat([linear, -linear @ matrix[:, :, 2:]], -1)


def transform_points(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply affine maps (B, 2, 3) to points (B, P, 2)."""
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, :, 2].unsqueeze(1)


def crop(images: torch.Tensor, matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Sample (B, C, size, size) crops from `images` (B, C, H, W), bilinear, edge pixels repeated outside.

    `matrix` (B, 2, 3) maps crop pixels to image pixels. Keep the shrink factor at 2 or less (see `halve`):
    bilinear sampling looks at two pixels a side and would alias beyond that.
    """
    height, width = images.shape[-2:]
    steps = torch.arange(size, device=images.device, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    pixels = (
        torch.stack([x, y], -1).view(1, -1, 2).expand(images.shape[0], -1, -1)
    )  # shape: len() would fix the batch in an export
    source = transform_points(pixels, matrix.to(images.device))
    extent = torch.tensor([width, height], device=images.device, dtype=torch.float32)
    grid = ((2 * source + 1) / extent - 1).view(-1, size, size, 2)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def halve(images: torch.Tensor) -> torch.Tensor:
    """Average 2x2 blocks of uint8 images (N, C, H, W). Point (x, y) moves to ((x - 0.5) / 2, (y - 0.5) / 2)."""
    parts = [F.avg_pool2d(chunk.float(), 2).round().to(torch.uint8) for chunk in images.split(256)]
    return torch.cat(parts)


def batch(faces: torch.Tensor) -> torch.Tensor:
    """Faces (B, C, H, W) of such a tensor or of one face (C, H, W). UserError for what is no tensor."""
    if not isinstance(faces, torch.Tensor):
        raise UserError(f"faces: a {type(faces).__name__}; give a tensor, (B, 3, H, H) uint8, as by torch.from_numpy")
    return faces.unsqueeze(0) if faces.dim() == 3 else faces


def reduced(faces: torch.Tensor, largest: float) -> torch.Tensor:
    """uint8 square face crops (B, C, H, H), or one (C, H, H), as uint8 (B, 3, h, h) with h <= `largest`, by halving.

    Grey ones get three equal channels. Raises UserError for crops that are not square (scaling them would change a
    face's shape) and for pixels that are not uint8.
    """
    faces = batch(faces)
    if faces.dim() != 4 or faces.shape[-1] != faces.shape[-2] or faces.shape[1] not in (1, 3):
        raise UserError(f"faces of shape {tuple(faces.shape)}: give square crops, (B, 3, H, H) or grey (B, 1, H, H)")
    if faces.dtype != torch.uint8:
        raise UserError(f"faces of type {faces.dtype}: give uint8 pixels, 0 to 255")
    while faces.shape[-1] > largest:
        faces = halve(faces)
    return faces.expand(-1, 3, -1, -1)


def squares(faces: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 square face crops, as `reduced` takes them, of any size as float pixels 0..255 (B, 3, size, size)."""
    return resize(reduced(faces, 2.2 * size), size)


def resize(pictures: torch.Tensor, size: int, flip: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 faces (B, 3, S, S) as float pixels (B, 3, size, size), as `crop` samples; mirrored where `flip` (B,) is."""
    if pictures.shape[-1] == size:
        x = pictures.float()
        return x if flip is None else torch.where(flip.to(x.device).view(-1, 1, 1, 1), x.flip(3), x)
    n, side = pictures.shape[0], pictures.shape[-1]
    middle = torch.full((n, 2), (side - 1) / 2)
    flip = torch.zeros(n, dtype=torch.bool) if flip is None else flip.cpu()
    where = similarity(middle, torch.full((n,), float(side)), torch.zeros(n), flip, size)
    return crop(pictures, where.to(pictures.device), size)


def flip_points(points: torch.Tensor, permutation: Sequence[int] | torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Give the points of mirrored samples the names of their new side. `permutation` is the markup's flip table."""
    return torch.where(flip.view(-1, 1, 1), points[:, permutation], points)


def colour_jitter(
    images: torch.Tensor,
    gen: torch.Generator,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    grey: float = 0.1,
) -> torch.Tensor:
    """Random gain, offset and saturation per image, and grey images with probability `grey`."""
    n, device = len(images), images.device
    gain = uniform(1 - contrast, 1 + contrast, (n, 1, 1, 1), gen, device)
    offset = uniform(-255 * brightness, 255 * brightness, (n, 1, 1, 1), gen, device)
    keep = uniform(1 - saturation, 1 + saturation, (n, 1, 1, 1), gen, device)
    keep = keep * (uniform(0, 1, (n, 1, 1, 1), gen, device) >= grey)
    weights = torch.tensor([0.299, 0.587, 0.114], device=device).view(1, 3, 1, 1)
    luma = (images * weights).sum(1, keepdim=True)
    coloured = luma + (images - luma) * keep
    mean = luma.mean((2, 3), keepdim=True)
    return ((coloured - mean) * gain + mean + offset).clamp_(0, 255)


def erase(
    images: torch.Tensor, gen: torch.Generator, probability: float = 0.5, smallest: float = 0.1, largest: float = 0.45
) -> torch.Tensor:
    """Cover a random rectangle (side lengths as shares of the image) with a random colour."""
    n, _, height, width = images.shape
    size = uniform(smallest, largest, (n, 2), gen, images.device)
    centre = uniform(0, 1, (n, 2), gen, images.device)
    on = uniform(0, 1, (n, 1, 1, 1), gen, images.device) < probability
    colour = uniform(0, 255, (n, images.shape[1], 1, 1), gen, images.device)
    y = torch.arange(height, device=images.device).view(1, -1, 1) / height
    x = torch.arange(width, device=images.device).view(1, 1, -1) / width
    inside_y = (y - centre[:, 1].view(-1, 1, 1)).abs() < size[:, 1].view(-1, 1, 1) / 2
    inside_x = (x - centre[:, 0].view(-1, 1, 1)).abs() < size[:, 0].view(-1, 1, 1) / 2
    return torch.where((inside_y & inside_x).unsqueeze(1) & on, colour, images)


def blur(
    images: torch.Tensor, gen: torch.Generator, probability: float = 0.3, largest_sigma: float = 1.5, radius: int = 4
) -> torch.Tensor:
    """Gaussian blur with a random sigma (pixels) per image, separable, one grouped convolution per axis."""
    n, channels, _, _ = images.shape
    sigma = uniform(0.2, largest_sigma, (n, 1), gen, images.device)
    on = uniform(0, 1, (n, 1), gen, images.device) < probability
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.where(on, kernel / kernel.sum(1, keepdim=True), (offsets == 0).float())
    kernel = kernel.repeat_interleave(channels, 0)
    flat = images.reshape(1, n * channels, *images.shape[-2:])
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, 2 * radius + 1), groups=n * channels)
    flat = F.conv2d(flat, kernel.view(-1, 1, 2 * radius + 1, 1), groups=n * channels)
    return flat.view_as(images)


# ITU T.81 Annex K quantisation tables, as every JPEG encoder's default at quality 50.
_LUMA = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]  # fmt: skip
_CHROMA = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
]  # fmt: skip
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]


def jpeg(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """What baseline JPEG (4:2:0) at `quality` (B,) in 1..100 leaves of RGB images; 0 or less leaves them alone.

    Colour transform, block cosine transform, quantisation and back, batched; entropy coding is lossless and
    left out. Tables are scaled by the Independent JPEG Group's rule.
    """
    n, _, height, width = images.shape
    quality = quality.to(images.device).float()
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality)
    to_ycc = torch.tensor(_TO_YCC, device=images.device)
    padded = F.pad(images.float(), (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = torch.einsum("kc,bchw->bkhw", to_ycc, padded)
    luma = _quantise_blocks(planes[:, :1] - 128, _LUMA, scale) + 128
    chroma = _quantise_blocks(F.avg_pool2d(planes[:, 1:], 2), _CHROMA, scale)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    back = torch.linalg.inv(torch.tensor(_TO_YCC)).to(images.device)
    coded = torch.einsum("ck,bkhw->bchw", back, torch.cat([luma, chroma], 1))
    coded = coded[:, :, :height, :width].round().clamp(0, 255)
    return torch.where((quality > 0).view(n, 1, 1, 1), coded, images.float())


def _quantise_blocks(planes: torch.Tensor, table: list[int], scale: torch.Tensor) -> torch.Tensor:
    """Round the 8x8 cosine coefficients of (B, K, H, W) to the scaled table's steps."""
    n, k, height, width = planes.shape
    steps = torch.tensor(table, device=planes.device, dtype=torch.float32).view(1, 1, 1, 1, 8, 8)
    steps = ((steps * scale.view(n, 1, 1, 1, 1, 1) + 50) / 100).floor().clamp(1, 255)
    i = torch.arange(8, device=planes.device, dtype=torch.float32)
    dct = torch.cos(math.pi * (2 * i + 1) * i.unsqueeze(1) / 16) / 2
    dct[0] /= math.sqrt(2)
    blocks = planes.view(n, k, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = dct @ blocks @ dct.T
    blocks = dct.T @ ((coefficients / steps).round() * steps) @ dct
    return blocks.transpose(3, 4).reshape(n, k, height, width)
