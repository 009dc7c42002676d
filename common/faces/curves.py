"""Lids, brows, lips and strokes of the skin, as polynomials through the landmarks."""

import functools
from typing import NamedTuple

import torch

from facepapers.common.data.markups import COFW29
from facepapers.common.faces.factors import Factors
from facepapers.common.faces.polynomials import affine_at, below, constant, disc, frame_of, product
from facepapers.common.faces.pose import Pose
from facepapers.common.faces.shape import childness, oldness

IRIS_RADIUS = 0.108
PUPIL_SHARE = 0.42  # of the iris radius
# Soft strokes on the skin: (anchor landmarks, offset, long axis, short axis, luminance, luminance per unit
# of sideways light, driver). Axes are the 1/e radii. A driver multiplies the luminance (see `_drivers`). The
# names that end in _r are mirrored.
STROKES: dict[str, tuple] = {
    "bridge": ((20, 20, 16, 17), (0, 0.02, 0), (0, 0.26, 0.1), (0.07, 0, 0), 0.07, 0, None),
    "bridge_side_r": ((20, 20, 16, 17), (0.14, 0, -0.1), (0.03, 0.24, 0.1), (0.075, 0, 0), -0.05, 0.11, None),
    "tip": ((20,), (0, -0.03, 0), (0.08, 0, 0), (0, 0.08, 0), 0.09, 0, None),
    "tip_side_r": ((20,), (0.13, 0.04, -0.1), (0.05, 0, 0), (0, 0.08, 0), -0.05, 0.06, None),
    "wing_r": ((19,), (0.01, -0.03, 0), (0.01, 0.085, 0), (0.028, 0.0, 0), -0.30, 0, None),
    "wing_ball_r": ((19,), (-0.07, -0.04, 0.05), (0.055, 0, 0), (0, 0.06, 0), 0.08, 0.05, None),
    "nostril_r": ((19, 21), (-0.01, 0.015, 0.08), (0.07, -0.015, 0), (0.0, 0.028, 0), -0.36, 0, None),
    "nose_shadow": ((21,), (0, 0.05, 0), (0.20, 0, 0), (0, 0.05, 0), -0.11, 0, None),
    "socket_r": ((11, 3), (0.02, 0.06, 0), (0.13, -0.03, 0), (0.0, 0.10, 0), -0.10, 0.03, None),
    "crease_r": ((14,), (0.01, -0.065, 0), (0.20, 0.0, 0), (0.0, 0.025, 0), -0.13, 0, None),
    "lid_r": ((14, 7), (0.05, 0.0, 0), (0.22, 0.0, 0), (0.0, 0.05, 0), 0.04, 0, None),
    "under_eye_r": ((15,), (0, 0.09, 0), (0.20, 0, 0), (0, 0.05, 0), -0.045, 0, None),
    "bag_r": ((15,), (0.0, 0.15, 0), (0.19, 0.01, 0), (0, 0.022, 0), -0.16, 0, "age"),
    "cheek_r": ((15, 19), (0.30, 0.12, 0), (0.24, 0, 0), (0, 0.20, 0), 0.05, 0.05, None),
    "hollow_r": ((23,), (0.38, -0.02, -0.3), (0.15, 0.1, 0), (-0.1, 0.28, 0), -0.06, 0.03, None),
    "apple_r": ((15, 19), (0.27, 0.10, 0.1), (0.17, 0, 0), (0, 0.13, 0), 0.10, 0.05, "smile"),
    "fold_r": ((19, 23), (0.10, -0.05, 0), (0.09, 0.22, 0), (0.035, -0.015, 0), -0.22, 0, "fold"),
    "crow_upper_r": ((9,), (0.13, -0.03, -0.05), (0.09, -0.03, 0), (0.004, 0.014, 0), -0.20, 0, "crow"),
    "crow_lower_r": ((9,), (0.12, 0.06, -0.05), (0.08, 0.045, 0), (-0.006, 0.014, 0), -0.20, 0, "crow"),
    "furrow_r": ((3,), (-0.13, 0.03, 0), (0.01, 0.11, 0), (0.022, 0, 0), -0.24, 0, "furrow"),
    "forehead_1": ((4, 6), (0, -0.16, 0.05), (0.46, 0, 0), (0, 0.020, 0), -0.15, 0, "forehead"),
    "forehead_2": ((4, 6), (0, -0.30, 0.05), (0.50, 0, 0), (0, 0.020, 0), -0.15, 0, "forehead"),
    "forehead_3": ((4, 6), (0, -0.44, 0.02), (0.44, 0, 0), (0, 0.020, 0), -0.12, 0, "forehead"),
    "forehead_shine": ((4, 6), (0, -0.33, 0), (0.45, 0, 0), (0, 0.22, 0), 0.06, 0, None),
    "nose_wrinkle": ((16, 17), (0, 0.14, 0.1), (0.14, 0, 0), (0, 0.03, 0), -0.25, 0, "sneer"),
    "sneer_r": ((20, 16, 17), (0.17, 0.05, -0.1), (0.05, 0.11, 0), (0.025, -0.01, 0), -0.25, 0, "sneer"),
    "philtrum": ((21, 24), (0, 0.0, 0), (0, 0.10, 0), (0.04, 0, 0), -0.06, 0, None),
    "below_lip": ((27,), (0, 0.09, 0), (0.20, 0, 0), (0, 0.06, 0), -0.13, 0, None),
    "chin_shine": ((27, 28), (0, 0.06, 0.1), (0.20, 0, 0), (0, 0.14, 0), 0.06, 0, None),
    "corner_r": ((23,), (0.015, 0.01, 0), (0.045, 0.0, 0), (0, 0.035, 0), -0.22, 0, None),
    "marionette_r": ((23,), (0.04, 0.20, 0), (0.03, 0.14, 0), (0.025, -0.005, 0), -0.20, 0, "age"),
    "dimple": ((23,), (0.12, -0.05, -0.05), (0.03, 0.09, 0), (0.03, -0.01, 0), -0.30, 0, "smirk_right"),
    "dimple_left": ((22,), (-0.12, -0.05, -0.05), (-0.03, 0.09, 0), (0.03, 0.01, 0), -0.30, 0, "smirk_left"),
    "blush_r": ((15, 19), (0.30, 0.15, 0), (0.26, 0, 0), (0, 0.20, 0), 0, 0, "blush"),
    "moustache": ((21, 24), (0, 0.02, 0), (0.30, 0, 0), (0, 0.085, 0), 0, 0, "beard"),
    "beard_chin": ((27, 28), (0, 0.10, 0), (0.42, 0, 0), (0, 0.30, 0), 0, 0, "beard"),
    "beard_jaw_r": ((23,), (0.42, 0.22, -0.3), (0.18, -0.10, 0), (0.08, 0.40, 0), 0, 0, "beard"),
}  # fmt: skip


def eye_curves(pose: Pose, flat: torch.Tensor, side: str) -> dict[str, torch.Tensor]:
    """Lids, iris and catch light of one eye; `side` is 'l' or 'r'."""
    outer, inner, top, bottom, pupil = (8, 10, 12, 13, 16) if side == "l" else (9, 11, 14, 15, 17)
    across, down = axes_of(pose, flat)
    u, v = frame_of((flat[:, outer] + flat[:, inner]) / 2, (flat[:, outer] - flat[:, inner]) / 2, down)
    zero = torch.zeros_like(pose.scale)
    half = (flat[:, outer] - flat[:, inner]).norm(dim=-1) / pose.scale / 2
    square = product(u, u)
    return {
        f"lid_top_{side}": below(u, v, zero, zero, flat[:, top])[0],
        f"lid_bottom_{side}": -below(u, v, zero, zero, flat[:, bottom])[0],
        f"eye_window_{side}": (constant(1.05, square) - square) * half[:, None] / 2,
        f"iris_{side}": disc(flat[:, pupil], across * IRIS_RADIUS, down * IRIS_RADIUS, IRIS_RADIUS),
        f"glint_{side}": disc(flat[:, pupil] + 0.035 * (across - down), across * 0.03, down * 0.03, 0.03),
    }


def axes_of(pose: Pose, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's x and y axes in the image plane, (N, 2) each."""
    axes = pose.axis(torch.eye(3)[:2].to(points).expand(len(points), 2, 3))
    return axes[:, 0], axes[:, 1]


def brow_curves(pose: Pose, flat: torch.Tensor, side: str) -> dict[str, torch.Tensor]:
    """Upper edge, lower edge and ends of one brow; blunt at the inner end, thin at the outer one."""
    outer, inner, top, bottom = (0, 2, 4, 5) if side == "l" else (1, 3, 6, 7)
    down = axes_of(pose, flat)[1]
    u, v = frame_of((flat[:, outer] + flat[:, inner]) / 2, (flat[:, outer] - flat[:, inner]) / 2, down)
    thick = (affine_at(v, flat[:, bottom]) - affine_at(v, flat[:, top])).clamp_min(0.02)
    half = (flat[:, outer] - flat[:, inner]).norm(dim=-1) / pose.scale / 2
    square = product(u, u)
    return {
        f"brow_top_{side}": below(u, v, -0.42 * thick, -0.12 * thick, flat[:, top])[0],
        f"brow_bottom_{side}": -below(u, v, 0.42 * thick, 0.12 * thick, flat[:, bottom])[0],
        f"brow_ends_{side}": (constant(1.0, square) - square) * half[:, None] / 2,
    }


def mouth_curves(pose: Pose, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four lip curves through both corners, and the window between the corners."""
    left, right = flat[:, 22], flat[:, 23]
    u, v = frame_of((left + right) / 2, (right - left) / 2, axes_of(pose, flat)[1])
    zero = torch.zeros_like(pose.scale)
    names = {"lip_1": 24, "lip_2": 25, "lip_3": 26, "lip_4": 27}
    square = product(u, u)
    curves = {name: below(u, v, zero, zero, flat[:, point])[0] for name, point in names.items()}
    half = (right - left).norm(dim=-1) / pose.scale / 2
    return curves | {"mouth_window": (constant(1.0, square) - square) * half[:, None] / 2}


class Strokes(NamedTuple):
    """K strokes as tensors, those of both sides included."""

    anchors: torch.Tensor  # (K, 29) weights of the landmarks
    offset: torch.Tensor  # (K, 3)
    long: torch.Tensor  # (K, 3) axis
    short: torch.Tensor  # (K, 3) axis
    luminance: torch.Tensor  # (K,)
    side_light: torch.Tensor  # (K,) luminance per unit of sideways light
    drivers: list[str | None]


@functools.cache
def stroke_tables() -> Strokes:
    """STROKES with the mirrored ones."""
    rows: list[tuple] = []
    for name, (anchors, offset, long, short, lum, side, driver) in STROKES.items():
        rows.append((anchors, offset, long, short, lum, side, driver))
        if name.endswith("_r"):
            mirror = [(-x, y, z) for x, y, z in (offset, long, short)]
            rows.append((tuple(COFW29.flip[a] for a in anchors), *mirror, lum, -side, driver))
    weights = torch.zeros(len(rows), 29)
    for k, row in enumerate(rows):
        for anchor in row[0]:
            weights[k, anchor] += 1 / len(row[0])
    numbers = (torch.tensor([row[i] for row in rows], dtype=torch.float32) for i in range(1, 6))
    offset, long, short, luminance, side_light = numbers
    return Strokes(weights, offset, long, short, luminance, side_light, [row[6] for row in rows])


def stroke_polynomials(pose: Pose, points: torch.Tensor) -> torch.Tensor:
    """-(u^2 + v^2) of every stroke, (N, K, 6): the exponential is the stroke."""
    strokes = stroke_tables()
    centre = pose.flat(strokes.anchors.to(points) @ points + strokes.offset.to(points))
    long, short = (pose.axis(axis.to(points).expand(len(points), -1, 3)) for axis in (strokes.long, strokes.short))
    u, v = frame_of(centre, long, short)
    return -product(u, u) - product(v, v)


def stroke_colours(
    f: Factors,
    look: dict[str, torch.Tensor],
    act: dict[str, torch.Tensor],
    light: torch.Tensor,
    colours: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Colour change (N, K, 3) of every stroke under this light, age and expression."""
    strokes = stroke_tables()
    lit = strokes.side_light.to(light) * light[:, :1] * f.light_strength[:, None] * 2
    amount = strokes.luminance.to(light) + lit  # (N, K)
    level = _drivers(f, look, act)
    one = torch.ones_like(f.scale)
    amount = amount * torch.stack([level.get(d, one) if d else one for d in strokes.drivers], 1)
    colour = amount[..., None] * (0.25 + 0.75 * colours["skin"])[:, None]
    special = {"beard": colours["hair"] * 0.8 - colours["skin"] * 0.85, "blush": colours["blush"]}
    for name, delta in special.items():
        rows = [k for k, d in enumerate(strokes.drivers) if d == name]
        colour[:, rows] = (level[name][:, None] * delta)[:, None]
    return colour


def _drivers(f: Factors, look: dict[str, torch.Tensor], act: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How strongly wrinkles, dimples, beard and blush show, (N,) each."""
    old, grown = oldness(f), 1 - childness(f)
    return {
        "age": old,
        "smile": act["corner_pull"],
        "fold": 0.15 + 0.6 * old + 0.6 * act["corner_pull"] + 0.6 * act["upper_lip_raise"] + 0.3 * act["smirk"],
        "crow": 0.8 * old + 0.5 * act["cheek_raise"],
        "furrow": 0.35 * old + act["brow_lower"],
        "forehead": 0.8 * old + 0.6 * (act["inner_brow_raise"] + act["outer_brow_raise"]) * (0.4 + 0.6 * old),
        "sneer": act["nose_wrinkle"],
        "smirk_right": act["smirk"] * (f.smirk_side > 0),
        "smirk_left": act["smirk"] * (f.smirk_side < 0),
        "blush": torch.ones_like(old),
        "beard": (0.35 * (look["beard"] - 1.3)).clamp(0, 0.9) * (grown > 0.95),
    }
