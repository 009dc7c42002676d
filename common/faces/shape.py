"""The linear face model: mean, identity, expression and age give 3-D points (step 1 of drawing.py)."""

from collections.abc import Iterable

import torch

from facepapers.common.data.markups import COFW29
from facepapers.common.faces.factors import Factors

Shapes = dict[int, tuple[float, ...]]  # landmark: displacement x, y, z in model units; the left side mirrors the right

EXPRESSIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OCCLUDERS = ("none", "hand", "glasses", "mask", "hair")
COFW_NAMES = tuple(COFW29.names)
MEAN_POINTS: Shapes = {
    1: (0.86, -0.27, -0.20), 3: (0.23, -0.29, 0.06), 6: (0.57, -0.43, 0.02), 7: (0.57, -0.325, 0.02),
    9: (0.725, -0.005, -0.12), 11: (0.275, 0.025, -0.04), 14: (0.5, -0.105, 0.01), 15: (0.5, 0.085, 0.0),
    17: (0.5, -0.005, 0.0), 19: (0.28, 0.72, 0.10), 20: (0, 0.60, 0.40), 21: (0, 0.79, 0.20),
    23: (0.40, 1.13, 0.0), 24: (0, 1.02, 0.19), 25: (0, 1.115, 0.19), 26: (0, 1.130, 0.19),
    27: (0, 1.265, 0.16), 28: (0, 1.80, -0.05),
}  # fmt: skip


BROW, EYE, MOUTH = (1, 3, 6, 7), (9, 11, 14, 15, 17), (23, 24, 25, 26, 27)


def _all(points: Iterable[int], *step: float) -> Shapes:
    return {point: step for point in points}


# Displacement of the named points per standard deviation of each appearance coordinate; coordinates without
# points act on the head, the colours or the hair.
IDENTITY_SHAPES: dict[str, Shapes] = {
    "face_width": {1: (0.02, 0, 0)},
    "face_length": {28: (0, 0.06, 0)} | _all(MOUTH, 0, 0.035, 0) | _all((19, 20, 21), 0, 0.015, 0),
    "jaw_width": {},
    "chin_length": {28: (0, 0.06, 0)},
    "eye_spacing": _all(EYE, 0.03, 0, 0) | _all(BROW, 0.02, 0, 0),
    "eye_width": {9: (0.025, 0, 0), 11: (-0.02, 0, 0), 14: (0, -0.006, 0)},
    "eye_opening": {14: (0, -0.018, 0), 15: (0, 0.012, 0)},
    "eye_tilt": {9: (0, -0.03, 0), 11: (0, 0.015, 0)},
    "nose_length": _all((19, 20, 21), 0, 0.045, 0),
    "nose_width": {19: (0.035, 0, 0)},
    "nose_depth": {20: (0, -0.012, 0.06), 21: (0, 0, 0.02)},
    "mouth_width": {23: (0.04, 0, 0)},
    "upper_lip": {24: (0, -0.024, 0.01)},
    "lower_lip": {27: (0, 0.028, 0.01)},
    "mouth_height": _all(MOUTH, 0, 0.035, 0),
    "brow_height": _all(BROW, 0, -0.035, 0),
    "brow_thickness": {6: (0, -0.02, 0), 7: (0, 0.014, 0)},
    "brow_arch": {6: (0, -0.025, 0), 7: (0, -0.025, 0)},
    "brow_tilt": {1: (0, -0.03, 0), 3: (0, 0.015, 0)},
    "brow_length": {1: (0.03, 0, 0), 3: (-0.03, 0, 0)},
    "skin_tone": {}, "skin_hue": {}, "lip_colour": {}, "iris_tone": {}, "iris_hue": {}, "freckles": {},
    "hair_tone": {}, "hair_hue": {}, "hair_length": {}, "hairline": {}, "hair_volume": {}, "beard": {},
}  # fmt: skip
IDENTITY_NAMES = tuple(IDENTITY_SHAPES)
IDENTITY_DIMS = len(IDENTITY_NAMES)

# Action units: what the muscles do to the points. `smirk` is one-sided and handled apart.
ACTION_SHAPES: dict[str, Shapes] = {
    "inner_brow_raise": {3: (0, -0.15, 0), 6: (0, -0.06, 0), 7: (0, -0.06, 0)},
    "outer_brow_raise": {1: (0, -0.10, 0), 6: (0, -0.09, 0), 7: (0, -0.09, 0)},
    "brow_lower": {3: (-0.06, 0.11, 0), 6: (-0.03, 0.08, 0), 7: (-0.03, 0.08, 0), 1: (0, 0.02, 0)},
    "upper_lid_raise": {14: (0, -0.06, 0)},
    "lid_tighten": {14: (0, 0.04, 0), 15: (0, -0.035, 0)},
    "cheek_raise": {15: (0, -0.035, 0), 14: (0, 0.015, 0)},
    "nose_wrinkle": _all((20, 21), 0, -0.04, 0) | {19: (0.03, -0.06, 0), 3: (-0.02, 0.06, 0)},
    "upper_lip_raise": {24: (0, -0.09, 0.01), 25: (0, -0.075, 0), 23: (0, -0.01, 0)},
    "corner_pull": {23: (0.13, -0.10, -0.06), 24: (0, 0.01, -0.02), 27: (0, -0.01, -0.02)},
    "corner_drop": {23: (0.0, 0.10, -0.02)},
    "chin_raise": {
        27: (0, -0.05, 0),
        26: (0, -0.04, 0),
        25: (0, -0.03, 0),
        24: (0, -0.02, 0),
        28: (0, -0.04, 0),
    },
    "lip_stretch": {23: (0.13, 0.04, -0.06)},
    "lip_press": {24: (0, 0.04, 0), 27: (0, -0.055, 0), 23: (-0.03, 0, 0)},
    "lips_part": {25: (0, -0.03, 0), 26: (0, 0.07, 0), 27: (0, 0.06, 0)},
    "jaw_drop": {
        26: (0, 0.27, 0),
        27: (0, 0.29, 0),
        28: (0, 0.27, 0),
        23: (-0.07, 0.11, 0),
        25: (0, -0.01, 0),
    },
    "smirk": {},
}
ACTION_NAMES = tuple(ACTION_SHAPES)
EXPRESSION_ACTIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happiness": {"cheek_raise": 0.9, "corner_pull": 1.0, "lips_part": 0.6},
    "surprise": {"inner_brow_raise": 1.0, "outer_brow_raise": 1.0, "upper_lid_raise": 0.8, "jaw_drop": 0.8},
    "sadness": {"inner_brow_raise": 0.9, "brow_lower": 0.35, "corner_drop": 0.9, "chin_raise": 0.6,
                "lid_tighten": 0.3},
    "anger": {"brow_lower": 1.0, "lid_tighten": 0.6, "upper_lid_raise": 0.2, "lip_press": 0.8},
    "disgust": {"nose_wrinkle": 1.0, "upper_lip_raise": 0.8, "brow_lower": 0.4, "lid_tighten": 0.5,
                "corner_drop": 0.4},
    "fear": {"inner_brow_raise": 0.9, "outer_brow_raise": 0.4, "brow_lower": 0.4, "upper_lid_raise": 0.9,
             "lip_stretch": 0.9, "lips_part": 0.7, "jaw_drop": 0.2},
    "contempt": {"smirk": 1.0, "lip_press": 0.2},
}  # fmt: skip
AGE_SHAPES: Shapes = {14: (0, 0.02, 0), 20: (0, 0.02, 0), 21: (0, 0.02, 0), 24: (0, 0.02, 0), 27: (0, -0.02, 0)}
CHILD_SHAPES: Shapes = (
    {28: (0, -0.36, 0), 14: (0, -0.045, 0), 15: (0, 0.035, 0), 9: (0.04, 0, 0), 6: (0, 0.02, 0)}
    | _all(MOUTH, 0, -0.22, 0)
    | {23: (-0.08, -0.22, 0)}
    | _all((20, 21), 0, -0.16, -0.10)
    | {19: (-0.06, -0.16, 0)}
)

# Mean shifts of the appearance coordinates, in standard deviations: gender 1 minus gender 0, and a fixed
# arbitrary table for the five groups (drawn once from a generator, so nothing is modelled on anybody).
GENDER_SHIFT = {
    "jaw_width": 1.3, "chin_length": 0.8, "brow_thickness": 1.4, "brow_height": -1.0, "brow_arch": -0.8,
    "upper_lip": -0.9, "lower_lip": -0.9, "lip_colour": -1.4, "hair_length": -2.2, "beard": 2.0,
    "nose_width": 0.7, "eye_opening": -0.8, "face_width": 0.5,
}  # fmt: skip
GROUP_SHIFT_STD = 1.0


def _displacements(table: Shapes) -> torch.Tensor:
    """(29, 3) from one entry of the tables: the right side is mirrored to the left."""
    out = torch.zeros(29, 3)
    for point, step in table.items():
        out[point] = torch.tensor(step, dtype=torch.float32)
        if COFW29.flip[point] != point:
            out[COFW29.flip[point]] = out[point] * torch.tensor([-1.0, 1, 1])
    return out


def appearance(f: Factors) -> dict[str, torch.Tensor]:
    """Appearance coordinates with the shifts of gender and group: a dict of (N,), IDENTITY_NAMES."""
    gender = torch.tensor([GENDER_SHIFT.get(name, 0.0) for name in IDENTITY_NAMES])
    group = GROUP_SHIFT_STD * torch.randn(5, IDENTITY_DIMS, generator=torch.Generator().manual_seed(5))
    # No group grows a beard or keeps its hair short more than another: those belong to gender.
    group[:, [IDENTITY_NAMES.index(name) for name in ("beard", "hair_length")]] = 0
    gender, group = gender.to(f.identity), group.to(f.identity)
    z = f.identity + (f.gender[:, None] - 0.5) * gender + group[f.group]
    z[:, [IDENTITY_NAMES.index(name) for name in ("hair_length", "hairline", "hair_volume")]] += f.hair_jitter
    return dict(zip(IDENTITY_NAMES, z.unbind(1), strict=True))


def actions(f: Factors) -> dict[str, torch.Tensor]:
    """Action units from expression, intensity and jitter: a dict of (N,), ACTION_NAMES; all >= 0."""
    table = torch.tensor([[row.get(a, 0.0) for a in ACTION_NAMES] for row in EXPRESSION_ACTIONS.values()])
    level = 1.4 * f.intensity[:, None] * table.to(f.intensity)[f.expression] + f.action_jitter
    return dict(zip(ACTION_NAMES, level.clamp(0, 1.6).unbind(1), strict=True))


def oldness(f: Factors) -> torch.Tensor:
    """0 up to about 25 years, 1 at 75."""
    return ((f.age_years - 25) / 50).clamp(0, 1.2)


def childness(f: Factors) -> torch.Tensor:
    """1 at 4 years, 0 from 17 on."""
    return ((17 - f.age_years) / 13).clamp(0, 1)


def model_points(f: Factors, look: dict[str, torch.Tensor], act: dict[str, torch.Tensor]) -> torch.Tensor:
    """The 29 landmarks in model space before posing, (N, 29, 3)."""
    weights = [*look.values(), *act.values(), oldness(f), childness(f)]
    tables = [*IDENTITY_SHAPES.values(), *ACTION_SHAPES.values(), AGE_SHAPES, CHILD_SHAPES]
    basis = torch.stack([_displacements(t) for t in tables]).to(f.identity)
    points = _displacements(MEAN_POINTS).to(f.identity) + torch.einsum("nk,kpd->npd", torch.stack(weights, 1), basis)
    points[:, 16:18, :2] += f.gaze[:, None]
    smirk, right = act["smirk"][:, None], (f.smirk_side > 0)[:, None]
    lift = torch.tensor([0.08, -0.13, -0.04]).to(points)
    points[:, 23] += smirk * lift * right
    points[:, 22] += smirk * lift * torch.tensor([-1.0, 1, 1]).to(points) * ~right
    return _in_order(points)


def _in_order(points: torch.Tensor) -> torch.Tensor:
    """Keep lids, lips and brows from crossing, whatever the sum of blend shapes says."""
    y = points[:, :, 1]
    for upper, lower, gap in ((12, 13, 0.05), (14, 15, 0.05), (24, 25, 0.03), (25, 26, 0.012), (26, 27, 0.04),
                              (4, 5, 0.05), (6, 7, 0.05)):  # fmt: skip
        y[:, lower] = torch.maximum(y[:, lower], y[:, upper] + gap)
    # The lid cuts the eyeball, not the pupil's position: keep the pupil between the lids.
    for pupil, top, bottom in ((16, 12, 13), (17, 14, 15)):
        y[:, pupil] = y[:, pupil].clamp(y[:, top] + 0.02, y[:, bottom] - 0.02)
    return points
