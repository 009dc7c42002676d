"""The head as a smooth union of ellipsoids, and their outlines."""

from dataclasses import dataclass

import torch

from facepapers.common.faces.factors import Factors
from facepapers.common.faces.polynomials import constant, evaluate, frame_of, pixel_basis, product
from facepapers.common.faces.pose import Pose
from facepapers.common.faces.shape import childness, oldness

# The head is a smooth union of ellipsoids: centre and radii. The chin and the nose follow their landmarks.
HEAD = {
    "cranium": ((0, -0.33, -1.10), (1.10, 1.30, 1.35)),
    "cheeks": ((0, 0.45, -0.75), (0.96, 1.05, 0.95)),
    "jaw": ((0, 0.98, -0.70), (0.80, 0.70, 0.75)),
    "chin": ((0, 0.0, -0.42), (0.50, 0.42, 0.42)),
    "nose": ((0, -0.17, -0.31), (0.17, 0.31, 0.30)),
}
UNION_SHARPNESS = 9.0  # of the smooth union, per unit


@dataclass(frozen=True)
class Surface:
    """An ellipsoid seen from the front: outline 1 - r^2; depth = slope + bulge * sqrt(outline)."""

    outline: torch.Tensor  # (N, K, 6)
    slope: torch.Tensor  # (N, K, 3) affine, camera depth of the middle sheet, model units
    bulge: torch.Tensor  # (N, K)
    size: torch.Tensor  # (N, K) mean radius of the outline, model units


def turned_ellipsoids(pose: Pose, centres: torch.Tensor, radii: torch.Tensor) -> Surface:
    """Exact orthographic outlines and depths of ellipsoids with (N, K, 3) centres and radii."""
    spread = torch.einsum("nij,nkj,nlj->nkil", pose.rotation, radii**2, pose.rotation)  # R diag(r^2) R^T
    plane = spread[..., :2, :2]
    inverse = torch.linalg.inv(plane)
    centre, scale = pose.camera(centres), pose.scale[:, None, None]
    dx, dy = frame_of(centre[..., :2] * scale + pose.shift[:, None], *_unit_axes(scale, centre))
    q = inverse[..., 0, 0, None] * product(dx, dx) + inverse[..., 1, 1, None] * product(dy, dy)
    q = q + 2 * inverse[..., 0, 1, None] * product(dx, dy)
    lean = torch.einsum("nki,nkij->nkj", spread[..., 2, :2], inverse)
    slope = lean[..., :1] * dx + lean[..., 1:] * dy
    slope[..., 0] += centre[..., 2]
    bulge = (spread[..., 2, 2] - (lean * spread[..., 2, :2]).sum(-1)).clamp_min(0).sqrt()
    return Surface(constant(1.0, q) - q, slope, bulge, torch.linalg.det(plane) ** 0.25)


def _unit_axes(scale: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The image axes, one model unit long, as (N, K, 2) each."""
    zero = torch.zeros_like(like[..., 0])
    unit = zero + scale[..., 0]
    return torch.stack([unit, zero], -1), torch.stack([zero, unit], -1)


def head_ellipsoids(
    f: Factors, look: dict[str, torch.Tensor], points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and radii (N, 5, 3) in the order of HEAD."""
    n = len(points)
    centres = torch.tensor([c for c, _ in HEAD.values()]).to(points).repeat(n, 1, 1)
    radii = torch.tensor([r for _, r in HEAD.values()]).to(points).repeat(n, 1, 1)
    wide, jaw, child = look["face_width"] * 0.045, look["jaw_width"] * 0.055, childness(f)
    old = oldness(f)
    radii[:, :4, 0] *= 1 + wide[:, None]
    radii[:, 1, 0] *= 1 + 0.03 * child
    radii[:, 2, 0] *= 1 + jaw - 0.03 * child + 0.05 * old
    radii[:, 3, 0] *= (1 + 1.6 * jaw).clamp(0.6, 1.5)
    drop = points[:, 28, 1] - 1.80
    centres[:, 3, 1] = points[:, 28, 1] - radii[:, 3, 1]
    centres[:, 2, 1] += 0.55 * drop
    centres[:, 1, 1] += 0.20 * drop
    centres[:, 4] += points[:, 20]
    radii[:, 4, 0] *= 0.5 + 0.5 * (points[:, 19, 0] - points[:, 18, 0]) / 0.56
    return centres, radii


def smooth_union(polynomials_or_planes: torch.Tensor, dim: int) -> torch.Tensor:
    """Smooth maximum of signed distances."""
    return (polynomials_or_planes * UNION_SHARPNESS).clamp_min(-40).exp().sum(dim).log() / UNION_SHARPNESS


def chin_tip(pose: Pose, outline: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Where the head's outline ends below the chin, (N, 2): bisection along the face's down axis."""
    down = pose.axis(torch.tensor([0.0, 1, 0]).to(points).expand(len(points), 1, 3))[:, 0]
    down = down / down.norm(dim=-1, keepdim=True) * pose.scale[:, None]
    start = pose.flat(points[:, 28:] - torch.tensor([0.0, 0.3, 0.3]).to(points))[:, 0]
    low, high = torch.zeros_like(pose.scale), torch.full_like(pose.scale, 1.2)
    for _ in range(14):
        middle = (low + high) / 2
        position = start + middle[:, None] * down
        inside = smooth_union(evaluate(outline, pixel_basis(*position.unbind(-1))[:, None]), 1)[:, 0] > 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return start + low[:, None] * down
