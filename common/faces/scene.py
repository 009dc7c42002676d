"""What is in a picture: points, pose, palette and the surfaces of the body."""

from dataclasses import dataclass

import torch

from facepapers.common.faces.factors import Factors
from facepapers.common.faces.head import Surface, chin_tip, head_ellipsoids, turned_ellipsoids
from facepapers.common.faces.light import light_direction, palette
from facepapers.common.faces.polynomials import disc, evaluate, pixel_basis
from facepapers.common.faces.pose import PIVOT, Pose, pose_of
from facepapers.common.faces.shape import actions, appearance, childness, model_points


@dataclass(frozen=True)
class Scene:
    """N heads in place: everything that the drawing and the labels follow from."""

    f: Factors
    pose: Pose
    look: dict[str, torch.Tensor]  # (N,) appearance coordinates, IDENTITY_NAMES
    act: dict[str, torch.Tensor]  # (N,) action units, ACTION_NAMES
    colours: dict[str, torch.Tensor]  # (N, 3), see `palette`
    light: torch.Tensor  # (N, 3)
    model: torch.Tensor  # (N, 29, 3) landmarks in model space
    flat: torch.Tensor  # (N, 29, 2) landmarks in the image plane
    outline: torch.Tensor  # (N, 5, 6) ellipsoids of the head, HEAD, as distances in model units


def build_scene(f: Factors) -> Scene:
    """Everything but the pixels (steps 1 and 2 of drawing.py)."""
    look, act, pose = appearance(f), actions(f), pose_of(f)
    model = model_points(f, look, act)
    surfaces = turned_ellipsoids(pose, *head_ellipsoids(f, look, model))
    outline = surfaces.outline * (surfaces.size / 2)[..., None]
    flat = pose.flat(model)
    flat[:, 28] = chin_tip(pose, outline, model)
    return Scene(f, pose, look, act, palette(f, look), light_direction(f), model, flat, outline)


def hidden_by_pose(scene: Scene) -> torch.Tensor:
    """Landmarks that face away from the viewer or lie behind the nose, (N, 29) bool."""
    normal = (scene.model - torch.tensor([0, 0.4, -0.9]).to(scene.model)) / torch.tensor([1.0, 2.2, 1.0]).to(
        scene.model
    )
    normal = normal / normal.norm(dim=-1, keepdim=True) @ scene.pose.rotation.mT
    away = normal[..., 2] < 0.1
    centres, radii = head_ellipsoids(scene.f, scene.look, scene.model)
    nose = turned_ellipsoids(scene.pose, centres[:, 4:], radii[:, 4:])
    at = evaluate(nose.outline, pixel_basis(*scene.flat.unbind(-1)))[:, 0]
    depth = scene.pose.camera(scene.model)[..., 2]
    behind = (at > 0) & (depth < scene.pose.camera(centres[:, 4:])[..., 2] - 0.05)
    hidden = away | behind
    hidden[:, 28] = False  # the chin tip is a point of the visible outline
    return hidden


def body_shapes(scene: Scene) -> tuple[dict[str, torch.Tensor], Surface]:
    """Hair, ears, neck and shoulders: {name: (N, 6)} distances; the cranium's Surface for the hairline."""
    pose, look, like = scene.pose, scene.look, scene.model
    n = len(like)
    volume = 0.10 + 0.05 * look["hair_volume"].clamp(-1.5, 2.5)
    length = torch.sigmoid(1.6 * look["hair_length"])
    wide = 1 + 0.045 * look["face_width"]
    zero = torch.zeros_like(volume)
    rows = [  # centre x, y, z and radii x, y, z
        (zero, zero - 0.33, zero - 1.10, 1.10 * wide, zero + 1.30, zero + 1.35),
        (zero, zero - 0.36 - 0.4 * volume, zero - 1.12, 1.08 * wide + volume, 1.27 + volume, 1.35 + volume),
        (
            zero,
            -0.30 + 0.85 * length,
            zero - 1.30,
            1.06 * wide + volume + 0.12 * length,
            1.2 + 1.05 * length,
            zero + 1.2,
        ),
        (zero, zero + 1.0, zero - 0.5, 0.92 * wide, zero + 2.3, zero + 0.8),
        (-1.05 * wide, zero + 0.22, zero - 0.80, zero + 0.13, zero + 0.30, zero + 0.20),
        (1.05 * wide, zero + 0.22, zero - 0.80, zero + 0.13, zero + 0.30, zero + 0.20),
    ]
    table = torch.stack([torch.stack(row, -1) for row in rows], 1)
    surfaces = turned_ellipsoids(pose, table[..., :3], table[..., 3:])
    names = ("cranium", "hair_cap", "hair_back", "curtain", "ear_l", "ear_r")
    shapes = surfaces.outline * (surfaces.size / 2)[..., None]
    out = dict(zip(names, shapes.unbind(1), strict=True))
    throat = pose.flat(torch.tensor([0, 1.15, -0.9]).to(like).expand(n, 1, 3))[:, 0]
    body = pose.shift + torch.tensor([0.0, 2.3]).to(like) * pose.scale[:, None]
    across, down = pose.scale[:, None] * torch.tensor([1.0, 0]).to(like), (body - throat) / 2
    width = 0.66 + 0.05 * look["jaw_width"] - 0.1 * childness(scene.f)
    out["neck"] = disc((throat + body) / 2, across * width[:, None], down * 1.5, width)
    upright = torch.tensor([0.0, 1.0]).to(like) * pose.scale[:, None]
    out["cloth"] = disc(pose.shift + 3.55 * upright, across * 2.2, upright * 1.6, 1.6)
    cranium = Surface(surfaces.outline[:, :1], surfaces.slope[:, :1], surfaces.bulge[:, :1], surfaces.size[:, :1])
    return out, cranium


def surface_coordinates(pose: Pose, surface: Surface) -> tuple[torch.Tensor, torch.Tensor]:
    """Model x, y, z of the visible surface: affine part (N, 3, 3) and factor of sqrt(outline) (N, 3)."""
    unit = torch.eye(3).to(pose.scale)[1:].expand(len(pose.scale), 2, 3) / pose.scale[:, None, None]
    xy = unit.clone()
    xy[..., 0] = -pose.shift / pose.scale[:, None]
    camera = torch.cat([xy, surface.slope], 1)  # (N, xyz, affine)
    affine = pose.rotation.mT @ camera
    affine[..., 0] += torch.tensor(PIVOT).to(affine)
    return affine, pose.rotation[:, 2] * surface.bulge
