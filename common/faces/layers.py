"""Pixels of the layers, composited front to back (step 4 of drawing.py)."""

import functools
import math
from types import SimpleNamespace

import torch

from facepapers.common.faces.curves import (
    IRIS_RADIUS,
    PUPIL_SHARE,
    brow_curves,
    eye_curves,
    mouth_curves,
    stroke_colours,
    stroke_polynomials,
)
from facepapers.common.faces.factors import Factors
from facepapers.common.faces.head import HEAD, Surface, smooth_union
from facepapers.common.faces.polynomials import bell, disc, evaluate, frame_of, lift, product, soft_edge
from facepapers.common.faces.pose import Pose
from facepapers.common.faces.scene import Scene, body_shapes, surface_coordinates
from facepapers.common.faces.shading import body_shade, head_shade, lighting
from facepapers.common.faces.shape import oldness

Planes = dict[str, torch.Tensor]  # polynomials at every pixel, (N, P) each
Layer = tuple[torch.Tensor, str]  # coverage (N, P) and name


@functools.cache
def _textures(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Two noise tables (1, 1, 128, 128), mean 0, standard deviation 1, constant."""
    noise = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(11))
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    smooth = torch.nn.functional.pad(noise[:, None], (2, 2, 2, 2), mode="circular")
    smooth = torch.nn.functional.conv2d(smooth, (kernel[:, None] * kernel)[None, None])[:, 0]
    return (smooth / smooth.std((1, 2), keepdim=True))[:, None, None].to(device).unbind(0)


def _sample(texture: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Bilinear look-up of a (1, 1, H, W) table at coordinates in -1..1: (N, P) -> (N, P)."""
    grid = torch.stack([u, v], -1)[None]
    return torch.nn.functional.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)[0, 0]


def background_plan(f: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient, stripes, three blobs: polynomials (N, 5, 6), colours (N, 3, 5), base colour (N, 3)."""
    u = f.background
    base, dark = u[:, :3], u[:, 3:4]
    base = base + 0.6 * (base.mean(1, keepdim=True) - base)  # mostly muted colours
    centre = (u[:, 4:10].unflatten(1, (3, 2)) - 0.5) * 1.2
    radius = 0.12 + 0.35 * u[:, 10:13, None]
    axes = torch.eye(2).to(u)
    p, q = frame_of(centre, radius * axes[0], radius * axes[1])
    angle = u[:, 13] * math.pi
    wave = 8 + 50 * u[:, 14] ** 2
    stripes = torch.stack([6 * u[:, 15], wave * angle.cos(), wave * angle.sin()], 1)
    gradient = torch.stack([0 * angle, u[:, 16] - 0.5, u[:, 17] - 0.5], 1)
    affine = lift(torch.stack([gradient, stripes], 1))
    blobs = -product(p, p) - product(q, q)
    flat = torch.ones(len(u), 3, 1).to(u)
    contrast = 0.5 * (u[:, 18, None, None] - 0.4).clamp_min(0)
    tints = torch.cat([flat, flat * contrast, (u[:, 3:12].unflatten(1, (3, 3)).mT - 0.5) * 0.6], 2)
    return torch.cat([affine, blobs], 1), tints, (base * 0.75 + 0.15) * (0.4 + 0.6 * dark)


def _draw_background(d: SimpleNamespace, basis: torch.Tensor) -> torch.Tensor:
    planes = evaluate(d.background, basis)
    planes[:, 1].sin_()
    bell(planes[:, 2:])
    return torch.baddbmm(d.background_base[..., None], d.background_tints, planes)


def hair_plan(scene: Scene, cranium: Surface) -> dict[str, torch.Tensor]:
    """The hairline on the skull's surface: see `_hair_mask` for what each number does."""
    look, f = scene.look, scene.f
    affine, factor = surface_coordinates(scene.pose, cranium)
    old, gender = oldness(f), f.gender.to(f.scale)
    line = -0.98 + 0.09 * look["hairline"] + 0.34 * torch.sigmoid(5 * (look["hairline"] - 1.2))
    line = line - 0.45 * (old * (0.25 + 0.75 * gender) * (0.9 - 0.4 * look["hairline"]).clamp(0, 1.6))
    return {
        "surface": lift(affine),
        "surface_bulge": factor,
        "hair_line": line,
        "hair_part": 0.06 * look["hair_hue"],
        "hair_side": 0.15 + 0.25 * torch.sigmoid(4 * (look["hair_length"] - 0.3)),
        "hair_long": torch.sigmoid(12 * (look["hair_length"] - 0.5)),
        "bulge_unit": 2 / cranium.size[:, 0],
    }


def _hair_mask(
    d: SimpleNamespace, planes: Planes, px: torch.Tensor, basis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coverage of the hair in front of the head (N, P); model x, y, z of the skull's surface (N, 3, P)."""
    bulge = (planes["cranium"].clamp_min(0) * (d.bulge_unit[:, None] / px)).sqrt_()
    xyz = torch.addcmul(evaluate(d.surface, basis), d.surface_bulge[..., None], bulge[:, None])
    x, y, z = xyz.unbind(1)
    top = d.hair_line[:, None] + (d.hair_part[:, None] + 0.30 * x) * x - y
    flank = torch.minimum(-0.58 - z - 0.1 * y, d.hair_side[:, None] - y)
    distance = torch.minimum(torch.maximum(top, flank) * px, planes["hair_cap"])
    sides = d.hair_long[:, None] * soft_edge(torch.minimum(planes["hair_back"], -planes["curtain"]), 1.5)
    return torch.maximum(soft_edge(distance, 1.5), sides), xyz


def _eye_layers(planes: Planes, px: torch.Tensor, clip: torch.Tensor) -> list[Layer]:
    """Lash line, glint, pupil, iris, white: [(coverage (N, P), name)], front first."""
    parts = []
    for side in "lr":
        inside = torch.minimum(planes[f"lid_top_{side}"], planes[f"lid_bottom_{side}"])
        white = soft_edge(inside) * soft_edge(planes[f"eye_window_{side}"])
        iris = planes[f"iris_{side}"]
        pupil = soft_edge((iris - px * (IRIS_RADIUS / 2 * (1 - PUPIL_SHARE**2))) * 2)
        upper = soft_edge(0.022 * px - planes[f"lid_top_{side}"].abs())
        lower = soft_edge(0.010 * px - planes[f"lid_bottom_{side}"].abs()) * 0.45
        lash = torch.maximum(upper, lower) * soft_edge(planes[f"eye_window_{side}"])
        parts.append((lash, white * soft_edge(planes[f"glint_{side}"]), white * pupil, white * soft_edge(iris), white))
    both = [torch.maximum(left, right) * clip for left, right in zip(*parts, strict=True)]
    return list(zip(both, ("lash", "glint", "pupil", "iris", "white"), strict=True))


def _mouth_layers(d: SimpleNamespace, planes: Planes, px: torch.Tensor, clip: torch.Tensor) -> list[Layer]:
    """Lip line, teeth, open mouth, lower and upper lip, front first."""
    one, two, three, four = (planes[f"lip_{k}"] for k in (1, 2, 3, 4))
    line = soft_edge(0.014 * px - (two + three).abs() / 2) * soft_edge(planes["mouth_window"])
    gap = soft_edge(torch.minimum(two, -three))
    row = gap * soft_edge(d.teeth[:, None] * px - two)
    lower, upper = soft_edge(torch.minimum(three, -four)), soft_edge(torch.minimum(one, -two))
    names = ("line", "teeth", "gap", "lower_lip", "upper_lip")
    return [(a * clip, name) for a, name in zip((line, row, gap, lower, upper), names, strict=True)]


def _brow_layer(d: SimpleNamespace, planes: Planes, clip: torch.Tensor) -> list[Layer]:
    edges = [torch.minimum(planes[f"brow_top_{s}"], planes[f"brow_bottom_{s}"]) for s in "lr"]
    edges = [torch.minimum(e, planes[f"brow_ends_{s}"]) for e, s in zip(edges, "lr", strict=True)]
    return [(soft_edge(torch.maximum(*edges), 1.6) * clip * d.brow_density[:, None], "brow")]


def _ear_layer(d: SimpleNamespace, planes: Planes) -> list[Layer]:
    """An ear shows when its side is turned to the viewer."""
    left, right = d.ear_facing[:, :1], d.ear_facing[:, 1:]
    return [(torch.maximum(soft_edge(planes["ear_l"]) * left, soft_edge(planes["ear_r"]) * right), "ear")]


LAYERS = (  # front first
    "hair", "brow", "lash", "glint", "pupil", "iris", "white", "line", "teeth", "gap", "lower_lip",
    "upper_lip", "ear", "skin", "neck", "cloth", "hair_back",
)  # fmt: skip


def layer_colours(scene: Scene) -> torch.Tensor:
    """Flat colours of LAYERS, (N, 3, L)."""
    c, f = scene.colours, scene.f
    like = c["skin"]
    black, white = (
        torch.zeros_like(like),
        torch.tensor([0.93, 0.91, 0.89]).to(like) * (0.75 + 0.25 * like.mean(1, True)),
    )
    table = {
        "hair": c["hair"], "brow": c["brow"], "lash": 0.25 * c["brow"] + 0.02, "glint": black + 0.95,
        "pupil": black + 0.03, "iris": c["iris"], "white": white, "line": 0.35 * c["lip"],
        "teeth": 0.95 * white, "gap": black + torch.tensor([0.25, 0.06, 0.06]).to(like),
        "lower_lip": 1.05 * c["lip"],
        "upper_lip": 0.85 * c["lip"], "ear": 0.92 * c["skin"], "skin": c["skin"], "neck": 0.85 * c["skin"],
        "cloth": 0.1 + 0.8 * f.cloth, "hair_back": 0.70 * c["hair"],
    }  # fmt: skip
    return torch.stack([table[name] for name in LAYERS], 2)


def _over(layers: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the layers (front first) after hiding one another (N, K, P); what shines through (N, P)."""
    through, weights = torch.ones_like(layers[0]), []
    for coverage in layers:
        weights.append(through * coverage)
        through = through - weights[-1]
    return torch.stack(weights, 1), through


SHAPES = (
    "cranium", "hair_cap", "hair_back", "curtain", "ear_l", "ear_r", "neck", "cloth",
    *(f"{name}_{side}" for side in "lr" for name in ("lid_top", "lid_bottom", "eye_window", "iris", "glint",
                                                     "brow_top", "brow_bottom", "brow_ends")),
    "lip_1", "lip_2", "lip_3", "lip_4", "mouth_window",
)  # fmt: skip


LIGHTS = ("light", "light_outline", "nose_light", "nose_outline")


def plan(scene: Scene) -> SimpleNamespace:
    """All that the pixel stage needs, as a namespace of tensors with leading dimension N."""
    f, look, act = scene.f, scene.look, scene.act
    shapes, cranium = body_shapes(scene)
    for side in "lr":
        shapes |= eye_curves(scene.pose, scene.flat, side) | brow_curves(scene.pose, scene.flat, side)
    shapes |= mouth_curves(scene.pose, scene.flat)
    light, head_bulge, nose_bulge = lighting(scene)
    ears = torch.tensor([[-1.0, 0, 0.3], [1.0, 0, 0.3]]).to(scene.model) @ scene.pose.rotation.mT
    teeth = 0.015 + 0.13 * act["corner_pull"] + 0.10 * act["lip_stretch"] + 0.05 * act["upper_lip_raise"]
    background, tints, base = background_plan(f)
    return SimpleNamespace(
        scale=f.scale,
        shapes=torch.stack([shapes[name] for name in SHAPES], 1),
        lights=torch.stack([light[name] for name in LIGHTS], 1),
        outline=scene.outline,
        bulge=torch.cat([head_bulge, nose_bulge], 1),
        ambient=0.66 * (1 - f.light_strength),
        body_light=1.05 * (1 - f.light_strength) + 1.3 * f.light_strength * scene.light[:, 2].clamp_min(0.2),
        strokes=stroke_polynomials(scene.pose, scene.model),
        stroke_colours=stroke_colours(f, look, act, scene.light, scene.colours).mT.contiguous(),
        layer_colours=layer_colours(scene),
        brow_density=(0.75 + 0.1 * look["brow_thickness"]).clamp(0.45, 0.95),
        teeth=teeth + 0.05 * act["jaw_drop"],
        ear_facing=(4 * ears[..., 2] + 0.1).clamp(0, 1),
        texture_offset=0.2 * f.identity[:, :2],
        rough=0.012 + 0.012 * oldness(f),
        freckles=0.08 * (look["freckles"] - 0.8).clamp(0, 1.5),
        background=background,
        background_tints=tints,
        background_base=base,
        **hair_plan(scene, cranium),
    )


def _all_planes(d: SimpleNamespace, px: torch.Tensor, basis: torch.Tensor) -> Planes:
    """Every polynomial of the head at every pixel, {name: (N, P)}, distances in pixels."""
    values = evaluate(torch.cat([d.shapes * px[:, :, None], d.lights, d.outline], 1), basis)
    planes = dict(zip([*SHAPES, *LIGHTS], values.unbind(1)))
    planes["head"] = smooth_union(values[:, -len(HEAD) :], 1) * px
    planes["nose_cover"] = soft_edge(values[:, -1] * px)
    return planes


def compose_layers(d: SimpleNamespace, size: int, basis: torch.Tensor) -> torch.Tensor:
    """The picture without occluder: (N, 3, P), about 0..1."""
    px = d.scale[:, None] * size
    planes = _all_planes(d, px, basis)
    skin = soft_edge(planes["head"])
    clip = skin * (1 - planes["nose_cover"])
    hair, xyz = _hair_mask(d, planes, px, basis)
    layers = [(hair, "hair"), *_brow_layer(d, planes, clip), *_eye_layers(planes, px, clip)]
    layers += [*_mouth_layers(d, planes, px, skin), *_ear_layer(d, planes), (skin, "skin")]
    layers += [(soft_edge(planes[name], soft), name) for name, soft in (("neck", 1), ("cloth", 1), ("hair_back", 1.5))]
    assert tuple(name for _, name in layers) == LAYERS
    weights, behind = _over([coverage for coverage, _ in layers])
    weight = dict(zip(LAYERS, weights.unbind(1), strict=True))
    relief = d.stroke_colours @ bell(evaluate(d.strokes, basis))
    flat = torch.baddbmm(relief.mul_(weight["skin"][:, None]), d.layer_colours, weights)
    body = weight["neck"] + weight["cloth"]
    shade = torch.lerp(head_shade(d, planes), body_shade(d, planes["head"] / px), body)
    shade = shade.mul_(_texture(d, xyz, weight))
    return flat.mul_(shade[:, None]).addcmul_(_draw_background(d, basis), behind[:, None])


def _texture(d: SimpleNamespace, xyz: torch.Tensor, weight: dict[str, torch.Tensor]) -> torch.Tensor:
    """Factor (N, P): strands in the hair, mottling, freckles and rough old skin on the face."""
    x, y, z = xyz.unbind(1)
    smooth, fine = _textures(x.device)
    strands = _sample(smooth, 0.9 * x + d.texture_offset[:, :1], 0.12 * y + 0.3 * z)
    grain = _sample(fine, 0.8 * x + d.texture_offset[:, 1:], 0.8 * y)
    hair = 0.14 * strands * (weight["hair"] + weight["hair_back"])
    spots = d.freckles[:, None] * (grain - 0.8).clamp_min_(0)
    return 1 + hair + (d.rough[:, None] * grain - spots) * weight["skin"]


def ellipse_planes(
    pose: Pose,
    centre: torch.Tensor,
    long: torch.Tensor,
    short: torch.Tensor,
    width: torch.Tensor,
    px: torch.Tensor,
    basis: torch.Tensor,
) -> torch.Tensor:
    """Distances in pixels to ellipses given by model-space centres and axes (N, K, 3); width (N, K)."""
    shape = disc(pose.flat(centre), pose.axis(long), pose.axis(short), width)
    return evaluate(shape * px[..., None], basis)
