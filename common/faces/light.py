"""Colours of skin, hair and lips, and the light on them."""

import torch

from facepapers.common.faces.head import head_ellipsoids, turned_ellipsoids
from facepapers.common.faces.polynomials import lift


def _blend(dark, light, share):
    """Geometric mixture of two colours, (N,) -> (N, 3): saturated middle tones, as pigments have."""
    dark, light = (torch.tensor(c).to(share).log() for c in (dark, light))
    return (dark + (light - dark) * share[:, None]).exp()


def palette(f, look):
    """Colours in 0..1, (N, 3) each, from the appearance coordinates and age."""
    tint = torch.tensor([0.04, 0.0, -0.05]).to(f.scale)
    skin = _blend((0.36, 0.22, 0.16), (0.95, 0.79, 0.69), torch.sigmoid(1.1 * look["skin_tone"] + 0.7))
    skin = skin * (1 + tint * look["skin_hue"][:, None])
    hair = _blend((0.06, 0.045, 0.04), (0.82, 0.65, 0.38), torch.sigmoid(1.3 * look["hair_tone"] - 0.9))
    hair = hair * (1 + 3 * tint * look["hair_hue"][:, None])
    grey = torch.sigmoid((f.age_years - 56) / 7 + 0.5 * look["hair_hue"])[:, None] * 0.9
    hair = hair + (0.78 - hair) * grey
    rosy = torch.tensor([1.0, 0.56, 0.56]).to(skin)
    lip = skin * (rosy + 0.10 * (look["lip_colour"].clamp(-2.5, 2)[:, None] * torch.tensor([0.5, -1, -0.8]).to(skin)))
    blush = torch.tensor([0.03, -0.035, -0.03]).to(skin) * (1 + 0.5 * look["lip_colour"].clamp(-2, 2))[:, None]
    iris = _blend((0.15, 0.08, 0.05), (0.45, 0.62, 0.72), torch.sigmoid(1.5 * look["iris_tone"] - 0.7))
    iris = iris * (1 + 3 * tint * look["iris_hue"][:, None])
    colours = {"skin": skin, "hair": hair, "lip": lip, "blush": blush, "iris": iris, "brow": 0.75 * hair}
    return {name: c if name == "blush" else c.clamp(0.01, 1) for name, c in colours.items()}


def light_direction(f):
    """Unit vector towards the light in camera coordinates, (N, 3)."""
    side, up = torch.deg2rad(f.light_azimuth_deg), torch.deg2rad(f.light_elevation_deg)
    return torch.stack([side.sin() * up.cos(), -up.sin(), side.cos() * up.cos()], 1)


def lambert(pose, centre, radii, light):
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


def lighting(scene):
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


def _shading(d, planes):
    """Factor on the colours (N, P): ambient plus Lambert on the head and, as its own surface, the nose."""
    head = planes["light"] + d.bulge[:, :1] * planes["light_outline"].clamp_min(0).sqrt_()
    outline = planes["nose_outline"].clamp_min(0)
    nose = planes["nose_light"] + d.bulge[:, 1:] * outline.sqrt()
    lit = torch.lerp(head, nose, (1.1 * outline).clamp_(0, 0.45))
    return lit.clamp_(0, 1.4).add_(d.ambient[:, None])


def _body_shade(d, head):
    """Factor on the colours of neck and shoulders (N, P): front light, less under the chin."""
    return d.body_light[:, None] * (0.62 + 0.9 * (-head).clamp(0, 0.42))
