"""Crops of faces from photos of any size: boxes or five points to maps, maps to one batch of pixels.

Boxes are x, y, width, height and points x, y in pixels of the photo, pixel centres at integers: a whole photo is the
box (-0.5, -0.5, width, height).
"""

from collections.abc import Sequence

import numpy as np
import torch

from facepapers.common.cli import UserError
from facepapers.common.vision import alignment, images

Shares = np.ndarray | Sequence[Sequence[float]]  # (5, 2) of a crop's side, from its upper left corner
SHRINK = 2.2  # bilinear sampling may shrink by about two; beyond it, pixels are averaged first
STRIP = 2**24  # pixels that are averaged at once, so that a photo of 20,000 pixels a side needs no copy in float32


def owners(
    photos: torch.Tensor | Sequence[torch.Tensor],
    boxes: torch.Tensor,
    points: torch.Tensor | None = None,
    owner: Sequence[int] | None = None,
    beyond: bool = False,
) -> list[int]:
    """The number of each face's photo: `owner` (N,), by default the n-th of the n-th face. Checks what a caller gives.

    Raises UserError for photos that are not uint8 (B, 3, H, W) or (3, H, W) of any sizes (grey ones have one channel),
    for boxes that are not (N, 4), not finite, without a size or, unless `beyond`, outside their photo, for five points
    that are not (N, 5, 2), not finite or all outside their photo, and where faces and photos do not go together. With
    points no box is looked at.
    """
    if (isinstance(photos, torch.Tensor) and photos.dim() != 4) or not all(_is_photo(photo) for photo in photos):
        found = {_kind(photo) for photo in ([photos] if isinstance(photos, torch.Tensor) else photos)}
        raise UserError(f"photos: {', '.join(sorted(found))}; give uint8 tensors, (B, 3, H, W) or a list of (3, H, W)")
    faces, shape, words = (boxes, (4,), "boxes") if points is None else (points, (5, 2), "five points")
    if not isinstance(faces, torch.Tensor) or faces.shape[1:] != shape:
        raise UserError(f"{words}: {_kind(faces)}; give a tensor (N, {', '.join(map(str, shape))}), in pixels")
    if owner is None and len(faces) != len(photos):
        raise UserError(
            f"{words} of {len(faces)} and photos of {len(photos)}: give one face of each photo, or the number of each "
            "face's photo as `owner`"
        )
    numbers = list(range(len(faces))) if owner is None else [int(k) for k in owner]
    if len(numbers) != len(faces) or not all(0 <= k < len(photos) for k in numbers):
        raise UserError(
            f"owner {numbers[:8]}: give {len(faces)} numbers, for each face that of its photo, 0 to {len(photos) - 1}"
        )
    sizes = [photos[k].shape[-2:] for k in numbers]
    if points is None:
        _check_boxes(boxes, sizes, beyond)
    else:
        _check_points(points, sizes)
    return numbers


def _is_photo(photo):
    """Whether this is a uint8 tensor of one or three channels with pixels."""
    known = isinstance(photo, torch.Tensor) and photo.dtype == torch.uint8 and photo.dim() == 3
    return known and photo.shape[0] in (1, 3) and photo.numel() > 0


def _kind(value):
    """Type and shape in words."""
    known = isinstance(value, torch.Tensor)
    return f"{value.dtype} of shape {tuple(value.shape)}" if known else f"a {type(value).__name__}"


def _check_boxes(boxes, sizes, beyond):
    """UserError for the first box (N, 4) that is none, or that shows nothing of its photo's (height, width)."""
    for n, ((x, y, w, h), (height, width)) in enumerate(zip(boxes.tolist(), sizes, strict=True)):
        words = f"box {n} ({x:g}, {y:g}, {w:g}, {h:g})"
        if not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            raise UserError(f"{words}: give x, y, width, height as finite numbers, width and height above 0")
        if not (beyond or (x < width and y < height and x + w > 0 and y + h > 0)):
            raise UserError(f"{words}: lies outside its {width}x{height} photo; give it in pixels of that photo")


def _check_points(points, sizes):
    """UserError for the first face whose five points (5, 2) are no numbers, or all outside their photo."""
    for n, (five, (height, width)) in enumerate(zip(points, sizes, strict=True)):
        x, y = five.double().unbind(1)
        if not five.isfinite().all():
            raise UserError(f"five points {n}: not numbers; give x and y of five points, in pixels of the photo")
        if not ((x > -1) & (x < width) & (y > -1) & (y < height)).any():
            raise UserError(f"five points {n}: lie outside their {width}x{height} photo; give pixels of that photo")


def box_maps(boxes: torch.Tensor, size: int, roll_rad: torch.Tensor | None = None) -> torch.Tensor:
    """Maps (N, 2, 3) from crops of `size` px to the photo: the square of each box's area around its centre (N, 4).

    Each square is turned around its centre by `roll_rad` (N,), clockwise as seen; by default not at all.
    """
    boxes = boxes.double()
    centre, side = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].prod(1).sqrt()
    still = torch.zeros(len(boxes), dtype=torch.float64)
    return images.similarity(centre, side, still if roll_rad is None else roll_rad.double(), still.bool(), size)


def rolls(points: torch.Tensor) -> torch.Tensor:
    """By how much faces are turned in the photo (N,), in radians, clockwise as seen: of their five points (N, 5, 2).

    Least squares over all five, as in a profile the line of the eyes alone is short. Raises UserError when all points
    of a face coincide.
    """
    onto_template = alignment.similarity_transform(points.double().numpy(), alignment.TEMPLATE_112)
    return -torch.from_numpy(np.arctan2(onto_template[:, 1, 0], onto_template[:, 0, 0]))


def point_maps(points: torch.Tensor, target: np.ndarray) -> torch.Tensor:
    """Maps (N, 2, 3) from crops to the photo that best take `target` (5, 2), in the crop, to five points (N, 5, 2).

    Least squares over rotation, scale and shift. Raises UserError when all points of a face coincide.
    """
    onto_crop = torch.from_numpy(alignment.similarity_transform(points.double().numpy(), target))
    return images.invert(onto_crop)


def frame_maps(boxes: torch.Tensor, points: torch.Tensor | None, shares: Shares, size: int) -> torch.Tensor:
    """Maps (N, 2, 3) from crops of `size` px, in which five points lie at `shares` (5, 2) of the side, to the photo.

    Without `points` (N, 5, 2) each box (N, 4) is such a crop already.
    """
    return box_maps(boxes, size) if points is None else point_maps(points, np.asarray(shares) * size - 0.5)


def sides(to_photo: torch.Tensor, size: int) -> torch.Tensor:
    """Sides (N,), in pixels of the photo, of crops of `size` px with these maps (N, 2, 3)."""
    return size * torch.linalg.det(to_photo[:, :, :2].double()).abs().sqrt()


def cut(
    photos: torch.Tensor | Sequence[torch.Tensor],
    to_photo: torch.Tensor,
    size: int,
    owner: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Crops (N, 3, size, size) float32 0..255 on `device` of uint8 photos (B, 3, H, W), or (3, H, W) of any sizes.

    `to_photo` (N, 2, 3) maps crop pixels to photo pixels, `owner` (N,) numbers the photo of each (by default the n-th).
    Where a crop shrinks the photo by more than SHRINK, the part that it shows is halved first, so nothing aliases.
    Outside the photo its edge pixels are repeated.
    """
    owner = range(len(to_photo)) if owner is None else owner  # the caller has checked it: `owners`
    layout = torch.channels_last  # in which convolutions are fastest
    crops = torch.empty(len(to_photo), 3, size, size, device=device, memory_format=layout)
    for n, (k, part) in enumerate(zip(owner, _parts(photos, to_photo.double().numpy(), size, owner), strict=True)):
        (top, bottom, left, right), levels = part
        pixels = photos[k][None, :, top:bottom, left:right]
        for _ in range(levels):
            pixels = halved(pixels)
        crops[n] = images.crop(pixels.to(device), _inside(to_photo[n], left, top, levels)[None], size)[0]
    return crops


def _parts(photos, maps, size, owner):
    """For each crop ((top, bottom, left, right) of the part that it shows, how often that is halved)."""
    edge = size - 0.5
    corners = np.array([[-0.5, -0.5], [edge, -0.5], [-0.5, edge], [edge, edge]]) @ maps[:, :, :2].swapaxes(1, 2)
    corners = corners + maps[:, None, :, 2]
    scales = np.sqrt(np.abs(np.linalg.det(maps[:, :, :2])))
    found = []
    for k, scale, low, high in zip(owner, scales, corners.min(1), corners.max(1), strict=True):
        height, width = photos[k].shape[-2:]
        levels = 0
        while scale / 2**levels > SHRINK and min(height, width) >> levels >= 2:
            levels += 1
        rows, columns = (_span(low[a], high[a], extent, 2**levels) for a, extent in ((1, height), (0, width)))
        found.append(((*rows, *columns), levels))
    return found


def _span(low, high, extent, block):
    """First and end pixel, within 0..extent, of what lies between low and high: in whole blocks, with a margin of two.

    A last, incomplete block is left out, as halving does; without any, the nearest block is taken.
    """
    last = extent // block - 1
    first = min(max(int(np.floor(low / block)) - 2, 0), last)
    end = min(max(int(np.ceil(high / block)) + 2, first), last) + 1
    return first * block, end * block


def _inside(to_photo, left, top, levels):
    """The map to pixels of the part that begins at (left, top) and was halved `levels` times."""
    block, moved = 2**levels, to_photo.double().clone()
    moved[:, 2] -= torch.tensor([left, top], dtype=torch.float64) + (block - 1) / 2
    return (moved / block).float()


def halved(pixels: torch.Tensor) -> torch.Tensor:
    """images.halve of one uint8 photo (1, 3, H, W), in strips of rows."""
    rows = max(2, STRIP // pixels.shape[-1] // 2 * 2)
    return torch.cat([images.halve(strip) for strip in pixels.split(rows, 2) if strip.shape[2] > 1], 2)
