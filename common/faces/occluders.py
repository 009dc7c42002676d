"""Hands, glasses, masks and locks of hair, and the points that they cover."""

from collections.abc import Iterator

import torch

from facepapers.common.faces.curves import axes_of
from facepapers.common.faces.head import smooth_union
from facepapers.common.faces.layers import ellipse_planes
from facepapers.common.faces.polynomials import below, evaluate, frame_of, pixel_basis, soft_edge
from facepapers.common.faces.scene import Scene


def _hand(scene: Scene, px: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A palm and four fingers from one side: coverage (N, P) and colour (N, 3, P)."""
    u, like = scene.f.occluder_shape, scene.model
    side = torch.where(u[:, 0] < 0.5, -1.0, 1.0)
    one = torch.ones_like(side)
    palm = torch.stack([side * (0.75 + 0.3 * u[:, 1]), 0.55 + 1.1 * u[:, 2], 0.35 * one], -1)
    lean = side * (-0.9 + 1.1 * u[:, 3])
    angle = lean[:, None] + torch.tensor([-0.36, -0.13, 0.11, 0.34]).to(like)
    along = torch.stack([angle.sin(), -angle.cos(), 0 * angle], -1)  # 0 points up the face
    cross = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
    reach = torch.tensor([0.70, 0.80, 0.78, 0.66]).to(like)[:, None]
    middle = torch.stack([lean.sin(), -lean.cos(), 0 * lean], -1)[:, None]
    turn = torch.stack([lean.cos(), lean.sin(), 0 * lean], -1)[:, None]
    centre = torch.cat([palm[:, None], palm[:, None] - 0.75 * middle, palm[:, None] + reach * along], 1)
    long = torch.cat([0.50 * middle, 0.62 * middle, 0.46 * along], 1)
    short = torch.cat([0.40 * turn, 0.29 * turn, 0.115 * cross], 1)
    width = torch.tensor([0.40, 0.29, 0.115, 0.115, 0.115, 0.115]).to(like).expand(len(like), 6)
    planes = ellipse_planes(scene.pose, centre, long, short, width, px, basis)
    distance = planes.amax(1)
    shade = 0.62 + 0.42 * (distance / (0.06 * px)).clamp(0, 1)  # darker rims tell the fingers apart
    gaps = 1 - 0.35 * soft_edge(0.02 * px - planes[:, 2:].abs().amin(1))
    return soft_edge(distance), (0.95 * scene.colours["skin"])[..., None] * (shade * gaps)[:, None]


def _glasses(scene: Scene, px: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lenses (clear, or dark for kind > 0.45), bridge and temples."""
    u, flat = scene.f.occluder_shape, scene.flat
    left, right = scene.model[:, 8:12:2].mean(1), scene.model[:, 9:12:2].mean(1)
    drop = torch.tensor([0, 0.04, 0.15]).to(left)
    far = torch.tensor([1.12, -0.08, -0.9]).to(left).expand_as(left)
    near = torch.tensor([0.42, -0.06, 0.0]).to(left)
    flip = torch.tensor([-1.0, 1, 1]).to(left)
    ends = [(left + near * flip, far * flip), (right + near, far)]
    centre = torch.stack([left + drop, right + drop, (left + right) / 2 + drop] + [(a + b) / 2 for a, b in ends], 1)
    w, h = 0.34 + 0.06 * u[:, 1], 0.24 + 0.10 * u[:, 2]
    unit = torch.eye(3).to(left)
    lens_a, lens_b = w[:, None] * unit[0], h[:, None] * unit[1]
    thin = 0.03 * unit[1] + 0 * left
    long = torch.stack([lens_a, lens_a, 0.2 * unit[0] + 0 * left] + [(b - a) / 2 for a, b in ends], 1)
    short = torch.stack([lens_b, lens_b, thin, thin, thin], 1)
    width = torch.stack([h, h, 0 * h + 0.03, 0 * h + 0.03, 0 * h + 0.03], 1)
    planes = ellipse_planes(scene.pose, centre, long, short, width, px, basis)
    lens = planes[:, :2].amax(1)
    dark = (u[:, 3] > 0.45)[:, None]
    rim = soft_edge((0.022 + 0.03 * u[:, 4:5]) * px - lens.abs())
    frame = torch.maximum(rim, soft_edge(planes[:, 2:].amax(1)))
    glass = soft_edge(lens) * torch.where(dark, 0.94, 0.10)
    tint = torch.where(dark, 0.08 + 0.1 * u[:, 5:], torch.full_like(lens, 0.9))
    coverage = torch.maximum(frame, glass)
    metal = (0.05 + 0.5 * u[:, 4:5] * u[:, 5:]).expand_as(lens)
    tone = metal + (tint - metal) * (1 - frame)
    return coverage, tone[:, None] * torch.tensor([1.0, 0.95, 0.9]).to(flat)[:, None]


def _mask(scene: Scene, px: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A cloth mask from the bridge of the nose to under the chin, with two folds."""
    u, pose = scene.f.occluder_shape, scene.pose
    n = len(u)
    ends = torch.tensor([[-0.98, 0.50, -0.45], [0.98, 0.50, -0.45], [0, 0, 0]]).to(scene.model).repeat(n, 1, 1)
    ends[:, 2] = scene.model[:, 20] + torch.tensor([0.0, -0.32, -0.02]).to(scene.model)
    ends[:, :2, 1] += 0.25 * u[:, 1:2]
    flat = pose.flat(ends)
    down = axes_of(pose, scene.flat)[1]
    zero = torch.zeros_like(pose.scale)
    p, q = frame_of((flat[:, 0] + flat[:, 1]) / 2, (flat[:, 1] - flat[:, 0]) / 2, down)
    top, _ = below(p, q, zero, zero, flat[:, 2])
    planes = evaluate(torch.cat([top[:, None], scene.outline], 1), basis)
    head = smooth_union(planes[:, 1:], 1) + 0.03
    folds = 1 + 0.10 * torch.sin(planes[:, 0] * 16) * (u[:, 2:3] > 0.3)
    side = 0.8 + 0.2 * (head / 0.35).clamp(0, 1)
    colour = torch.where(u[:, 3:4] < 0.5, torch.tensor([0.72, 0.85, 0.92]).to(u), 0.08 + 0.85 * u[:, 3:6])
    return soft_edge(torch.minimum(planes[:, 0], head) * px), colour[..., None] * (folds * side)[:, None]


def _hair_lock(scene: Scene, px: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Three strands that fall from the hairline over one eye."""
    u, like = scene.f.occluder_shape, scene.model
    side = torch.where(u[:, 0] < 0.5, -1.0, 1.0)[:, None]
    step = torch.tensor([-0.16, 0.0, 0.16]).to(like) * (0.8 + 0.5 * u[:, 4:5])
    top = torch.stack([side * (0.15 + 0.2 * u[:, 1:2]) + step, -1.25 + 0 * step, -0.05 + 0 * step], -1)
    end = torch.stack(
        [side * (0.50 + 0.25 * u[:, 2:3]) + 1.3 * step, 0.15 + 0.5 * u[:, 3:4] - step.abs(), 0 * step], -1
    )
    along = (end - top) / 2
    cross = torch.stack([along[..., 1].abs(), -along[..., 0] * along[..., 1].sign(), 0 * step], -1)
    cross = 0.16 * cross / cross.norm(dim=-1, keepdim=True)
    width = torch.full_like(step, 0.16)
    planes = ellipse_planes(scene.pose, (top + end) / 2, along, cross, width, px, basis)
    distance = planes.amax(1)
    gloss = 0.75 + 0.45 * (distance / (0.07 * px)).clamp(0, 1)
    return soft_edge(distance, 1.3), scene.colours["hair"][..., None] * gloss[:, None]


PAINTERS = {1: _hand, 2: _glasses, 3: _mask, 4: _hair_lock}  # by index into OCCLUDERS


def take_faces(scene: Scene, index: slice | torch.Tensor) -> Scene:
    """The samples `index` of a scene."""
    parts = {name: getattr(scene, name)[index] for name in ("f", "pose", "light", "model", "flat", "outline")}
    for name in ("look", "act", "colours"):
        parts[name] = {key: value[index] for key, value in getattr(scene, name).items()}
    return Scene(**parts)


def occlude(scene: Scene, size: int, basis: torch.Tensor, image: torch.Tensor) -> None:
    """Draw each sample's occluder into `image` (N, 3, P)."""
    for part, index in _by_occluder(scene):
        coverage, colour = PAINTERS[int(part.f.occluder[0])](part, part.pose.scale[:, None] * size, basis)
        light = 0.45 + 0.55 * (1 - part.f.light_strength * (1 - part.light[:, 2]))
        image[index] = torch.lerp(image[index], colour * light[:, None, None], coverage[:, None])


def covered_points(scene: Scene, size: int) -> torch.Tensor:
    """Landmarks under the occluder, (N, 29) bool: its coverage there, by the same polynomials."""
    covered = torch.zeros(scene.flat.shape[:2], dtype=torch.bool, device=scene.flat.device)
    for part, index in _by_occluder(scene):
        paint, px = PAINTERS[int(part.f.occluder[0])], part.pose.scale[:, None] * size
        covered[index] = paint(part, px, pixel_basis(*part.flat.unbind(-1)))[0] > 0.5
    return covered


def _by_occluder(scene: Scene) -> Iterator[tuple[Scene, torch.Tensor]]:
    """The part of a scene with each kind of occluder, and its sample numbers."""
    for kind in PAINTERS:
        index = (scene.f.occluder == kind).nonzero()[:, 0]
        if len(index):
            yield take_faces(scene, index), index
