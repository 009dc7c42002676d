"""Light and shade: what the head, the nose and the body make of the light."""

from types import SimpleNamespace

import torch

from facepapers.common.faces.head import head_ellipsoids, turned_ellipsoids
from facepapers.common.faces.polynomials import lift
from facepapers.common.faces.pose import Pose
from facepapers.common.faces.scene import Scene


def lambert(
    pose: Pose, centre: torch.Tensor, radii: torch.Tensor, light: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Light on an ellipsoid's sphere normals: polynomial (N, 6), bulge factor (N,) and outline (N, 6).

    The brightness at a pixel is polynomial + factor * sqrt(outline).
    """
    surface = turned_ellipsoids(pose, centre[:, None], radii[:, None])
    middle = pose.camera(centre[:, None])[:, 0]
    weight = (((light[:, None] @ pose.rotation)[:, 0] / radii)[:, None] @ pose.rotation.mT)[:, 0]  # R (R^T l / r)
    scale = pose.scale[:, None]
    xy = weight[:, :2] / scale
    shifted = -(xy * (middle[:, :2] * scale + pose.shift)).sum(-1, keepdim=True)
    slope = surface.slope[:, 0].clone()
    slope[:, 0] -= middle[:, 2]
    affine = torch.cat([shifted, xy], 1) + weight[:, 2:] * slope
    return lift(affine), weight[:, 2] * surface.bulge[:, 0], surface.outline[:, 0]


def lighting(scene: Scene) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Lambert terms of the head and the nose: {name: (N, 6)} and the factors of their bulges, (N, 1) each."""
    f, like = scene.f, scene.model
    strength = f.light_strength[:, None]
    frontal = torch.tensor([0.0, 0.0, 1.0]).to(like)
    light = 1.5 * strength * scene.light + 0.42 * (1 - strength) * frontal
    centre = torch.tensor([0, 0.30, -0.95]).to(like).expand(len(like), 3)
    radii = torch.tensor([1.12, 1.62, 1.20]).to(like).expand(len(like), 3)
    head = lambert(scene.pose, centre, radii, light)
    centres, sizes = head_ellipsoids(f, scene.look, scene.model)
    nose = lambert(scene.pose, centres[:, 4], sizes[:, 4], light)
    polynomials = {"light": head[0], "light_outline": head[2], "nose_light": nose[0], "nose_outline": nose[2]}
    return polynomials, head[1][:, None], nose[1][:, None]


def head_shade(d: SimpleNamespace, planes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Factor on the colours (N, P): ambient plus Lambert on the head and, as its own surface, the nose."""
    head = planes["light"] + d.bulge[:, :1] * planes["light_outline"].clamp_min(0).sqrt_()
    outline = planes["nose_outline"].clamp_min(0)
    nose = planes["nose_light"] + d.bulge[:, 1:] * outline.sqrt()
    lit = torch.lerp(head, nose, (1.1 * outline).clamp_(0, 0.45))
    return lit.clamp_(0, 1.4).add_(d.ambient[:, None])


def body_shade(d: SimpleNamespace, head: torch.Tensor) -> torch.Tensor:
    """Factor on the colours of neck and shoulders (N, P): front light, less under the chin."""
    return d.body_light[:, None] * (0.62 + 0.9 * (-head).clamp(0, 0.42))
